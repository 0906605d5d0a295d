"""Profiling: the fit finds the costs that are there, and a measured table predicts networks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig

from hwnas.anatomy import Shape
from hwnas.errors import UserError
from hwnas.latency.profile import _Costs, _fit, _Grid, profile, unseen, validate_table
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork, macs

SHAPE = Shape("bert", hidden=384, head_size=32, heads=(12,) * 6, ffn=(1536,) * 6, vocab=30522)
TARGET = Target.parse("openvino:cpu:threads=1,batch=1,seq=16")
TINY = BertConfig(
    vocab_size=120,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
)


def true_cost(subnetwork: Subnetwork) -> float:
    """Shares of the full model on a device whose vectors hold four heads: a step, not a line."""
    blocks = (
        0.01 + 0.02 * math.ceil(b.heads / 4) + 0.08 * b.ffn / 1536 for _, b in subnetwork.kept
    )
    return 0.1 + sum(blocks)


def fitted(noise: float) -> _Costs:
    rng = np.random.default_rng(0)
    grid = _Grid.of(SHAPE)
    return _fit(
        grid,
        {
            stack: [true_cost(stack.subnetwork(6)) * rng.normal(1, noise) for _ in range(2)]
            for stack in grid.stacks()
        },
    )


def test_fit_finds_the_costs() -> None:
    costs = fitted(noise=0.0)
    assert costs.fixed == pytest.approx(0.1)
    assert costs.interval_90 == pytest.approx(0, abs=1e-9)
    for heads, cost in costs.attention.items():
        assert cost == pytest.approx(0.01 + 0.02 * math.ceil(heads / 4), abs=1e-6)
    for width, cost in costs.ffn.items():
        assert cost == pytest.approx(0.08 * width / 1536, abs=1e-6)


def test_fit_averages_noise_and_stays_monotone() -> None:
    costs = fitted(noise=0.03)
    for curve in (costs.attention, costs.ffn):
        assert list(curve.values()) == sorted(curve.values())
    assert 0.02 < costs.interval_90 < 0.08
    errors = []
    for subnetwork in unseen(SHAPE, 30, seed=1):
        blocks = (
            np.interp(b.heads, list(costs.attention), list(costs.attention.values()))
            + np.interp(b.ffn, list(costs.ffn), list(costs.ffn.values()))
            for _, b in subnetwork.kept
        )
        errors.append((costs.fixed + sum(blocks)) / true_cost(subnetwork) - 1)
    assert np.mean(np.abs(errors)) < 0.015


def test_every_head_count_and_both_ends_of_the_ffn_are_measured() -> None:
    grid = _Grid.of(SHAPE)
    assert grid.heads == tuple(range(1, 13))
    assert (grid.ffn[0], grid.ffn[-1]) == (32, 1536)
    assert all(width in SearchSpace.whole(SHAPE).blocks[0].ffn for width in grid.ffn)
    large = _Grid.of(dataclasses.replace(SHAPE, heads=(40,) * 6))
    assert len(large.heads) == 16 and large.heads[-1] == 40


def test_unseen_networks() -> None:
    found = unseen(SHAPE, 40, seed=3)
    assert found == unseen(SHAPE, 40, seed=3) != unseen(SHAPE, 40, seed=4)
    assert len(set(found)) == 40
    assert not set(found) & {stack.subnetwork(6) for stack in _Grid.of(SHAPE).stacks()}
    assert all(s in SearchSpace.whole(SHAPE) for s in found)
    whole = macs(Subnetwork.full(SHAPE), SHAPE, 64)
    shares = [macs(s, SHAPE, 64) / whole for s in found]
    assert min(shares) > 0.19 and min(shares) < 0.4 and max(shares) > 0.7
    assert {len(s.kept) for s in found} >= {4, 5, 6}
    kinds = {len({b for _, b in s.kept}) > 1 for s in found}
    assert kinds == {True, False}


def test_a_model_too_small_for_unseen_networks() -> None:
    assert unseen(Shape("bert", 8, 8, (1,), (32,), 100), 5, seed=0) == []


@pytest.fixture(scope="module")
def measured() -> LatencyTable:
    return profile(TINY, TARGET, validate=3, seed=7)


def test_measured_table_is_whole(measured: LatencyTable, tmp_path: Path) -> None:
    measured.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == measured
    assert {e.dims["heads"] for e in measured.entries if e.op == "attention"} == {1, 2, 3, 4}
    assert {e.dims["width"] for e in measured.entries if e.op == "ffn"} == {32, 64}
    assert measured.protocol.clock == "process"
    assert all(e.ms.p10 <= e.ms.median <= e.ms.p90 for e in measured.entries)
    full = measured.predictor().predict(Subnetwork.of([[4, 64]] * 2))
    # a network of some microseconds on a machine that does other things
    assert 1 / 3 < full / measured.reference_ms < 3


def test_validation_says_what_its_rows_say(measured: LatencyTable) -> None:
    found = measured.validation
    assert found is not None and found.n == len(found.rows) == 3
    errors = [100 * (row.predicted_ms / row.measured_ms - 1) for row in found.rows]
    again = [100 * (row.remeasured_ms / row.measured_ms - 1) for row in found.rows]
    flops = [100 * (row.flops_ms / row.measured_ms - 1) for row in found.rows]
    assert found.mape == pytest.approx(np.mean(np.abs(errors)))
    assert found.bias == pytest.approx(np.mean(errors))
    assert found.noise == pytest.approx(np.mean(np.abs(again)))
    assert found.flops_mape == pytest.approx(np.mean(np.abs(flops)))
    predictor = measured.predictor()
    for row in found.rows:
        assert row.predicted_ms == predictor.predict(Subnetwork.of(row.genome))


def test_table_of_another_model_or_target_is_not_validated(measured: LatencyTable) -> None:
    with pytest.raises(UserError, match="seq=32"):
        validate_table(measured, TINY, Target.parse("openvino:cpu:seq=32"), 2)
    other = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(UserError, match="hidden 64"):
        validate_table(measured, other, TARGET, 2)


def test_validated_again_elsewhere(measured: LatencyTable) -> None:
    again = validate_table(measured, TINY, TARGET, 2, seed=8)
    assert again.entries == measured.entries
    assert again.validation is not None and again.validation.n == 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_other_runtimes(runtime: str) -> None:
    table = profile(TINY, Target(runtime, seq=16))
    table.check_target(Target(runtime, seq=16))
    assert table.validation is None


@pytest.mark.slow  # about two minutes: a real model, every width
def test_real_model_is_predicted_within_the_machines_noise() -> None:
    from hwnas.models import load_model

    target = Target.parse("openvino:cpu:threads=1,batch=1,seq=64")
    table = profile(load_model("demo:minilm")[0].config, target, validate=12, seed=1)
    found = table.validation
    assert found is not None
    assert found.kendall_tau > 0.8
    assert found.mape < 4 + 2 * found.noise
