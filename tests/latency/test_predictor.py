"""The predictor: additive, monotone, the same for one and for many."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.anatomy import Shape
from hwnas.latency.caches import PERCENTS
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.space import SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork, Weights, genomes

SPACE = SearchSpace.whole(Shape("bert", 384, 32, (12,) * 6, (1536,) * 6, 30522))
POINTS = st.dictionaries(st.integers(1, 4096), st.floats(0, 100), min_size=1, max_size=20)


@pytest.fixture
def predictor() -> LatencyPredictor:
    return LatencyPredictor(
        fixed_ms=0.5,
        attention=Curve.of({12: 1.4, 6: 0.8, 1: 0.25}),
        ffn=Curve.of({32: 0.05, 768: 1.0, 1536: 2.1}),
        baseline_ms=21.5,
    )


def test_latency_is_the_sum_of_its_parts(predictor: LatencyPredictor) -> None:
    subnetwork = Subnetwork.of([[12, 1536], [0, 0], [6, 768], [1, 32], [0, 0], [0, 0]])
    assert predictor.block_ms(Block(6, 768)) == pytest.approx(0.8 + 1.0)
    assert predictor.block_ms(DROPPED) == 0
    assert predictor.predict(subnetwork) == pytest.approx(0.5 + 3.5 + 1.8 + 0.3)
    assert predictor.predict(Subnetwork((DROPPED,) * 6)) == 0.5


def test_between_measured_widths_lies_a_straight_line(predictor: LatencyPredictor) -> None:
    assert predictor.attention.at([3, 9]) == pytest.approx([0.25 + 0.55 * 2 / 5, 1.1])
    assert predictor.ffn.at(1152) == pytest.approx(1.55)


def test_beyond_the_ends_the_line_goes_on_but_never_below_zero() -> None:
    curve = Curve.of({100: 1.0, 200: 3.0})
    assert curve.at([250, 80, 10]) == pytest.approx([4.0, 0.6, 0.0])
    assert Curve.of({100: 1.0}).at([50, 200]) == pytest.approx([0.5, 2.0])


@given(st.integers(0, 10**6))
def test_many_are_predicted_as_each_alone(seed: int) -> None:
    curves = Curve.of({2: 0.4, 12: 1.4}), Curve.of({64: 0.2, 1536: 2.0})
    predictor = LatencyPredictor(0.3, *curves, baseline_ms=20.7)
    rng = random.Random(seed)
    subnetworks = [SPACE.sample(rng, drop=0.3) for _ in range(5)]
    found = predictor.predict_many(genomes(subnetworks))
    assert found.shape == (5,)
    np.testing.assert_allclose(found, [predictor.predict(s) for s in subnetworks], rtol=1e-12)


@given(POINTS)
def test_no_wider_operator_is_cheaper(points: dict[int, float]) -> None:
    cost = Curve.of(points).at(np.arange(1, 5000))
    assert (cost >= 0).all()
    assert (np.diff(cost) >= -1e-9).all()


@given(st.integers(0, 10**6))
def test_pressure_goes_with_the_size_of_the_weights(seed: int) -> None:
    shape = Shape("bert", 384, 32, (12,) * 6, (1536,) * 6, 30522)
    curves = Curve.of({2: 0.4, 12: 1.4}), Curve.of({64: 0.2, 1536: 2.0})
    alone = LatencyPredictor(0.3, *curves, baseline_ms=20.7)
    crowded = Curve.of({p: 4.0 * (p / 100) ** 2 for p in (0, *PERCENTS)})
    pressed = replace(alone, pressure=crowded, weights=Weights.of(shape))
    full = Subnetwork.full(shape)
    assert pressed.predict(full) == pytest.approx(alone.predict(full) + 4.0)
    half = Subnetwork((Block(6, 768),) * 6)
    assert pressed.predict(half) == pytest.approx(alone.predict(half) + 1.0)
    assert pressed.at_share(0.5).pressure_ms == 0
    assert pressed.at_share(0.5).predict(half) == pytest.approx(pressed.predict(half))
    rng = random.Random(seed)
    subnetworks = [SPACE.sample(rng, drop=0.3) for _ in range(5)]
    found = pressed.predict_many(genomes(subnetworks))
    np.testing.assert_allclose(found, [pressed.predict(s) for s in subnetworks], rtol=1e-12)
    for ms in (5.0, 10.0, 20.0):
        near = pressed.near(ms)
        assert near.pressure_ms == 0
        for subnetwork in subnetworks:
            if abs(pressed.predict(subnetwork) / ms - 1) < 0.2:
                assert near.predict(subnetwork) == pytest.approx(
                    pressed.predict(subnetwork), abs=0.01 * ms
                )


def test_weights_are_shares_of_the_models() -> None:
    shape = Shape("llama", 48, 8, (6, 6), (64, 64), 100, group=2, gated=True, decoder=True)
    weights = Weights.of(shape)
    assert weights.share(Subnetwork.full(shape)) == pytest.approx(1)
    assert 6 * weights.head / (64 * weights.neuron) == pytest.approx((2 + 2 / 2) * 48 / (3 * 64))
    assert Weights.of(shape, 24).share(Subnetwork.full(shape)) == pytest.approx(0.5)


def test_scaled_corrects_every_cost_and_no_measurement(predictor: LatencyPredictor) -> None:
    subnetwork = SPACE.scaled(0.4)
    scaled = predictor.scaled(1.1)
    assert scaled.predict(subnetwork) == pytest.approx(1.1 * predictor.predict(subnetwork))
    assert scaled.baseline_ms == predictor.baseline_ms


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, hwnas.latency, hwnas.latency.predictor; "
        "print([m for m in ('torch', 'scipy', 'openvino', 'transformers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
