"""A table from elsewhere, scaled by a few networks timed here."""

from __future__ import annotations

import numpy as np
import pytest
from samples import MINILM, PLAN, TARGET, TINY

from hwnas.errors import UserError
from hwnas.latency.adapt import adapt, fit_factors, telling_networks
from hwnas.latency.plan import Plan
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.profiling import profile
from hwnas.latency.table import LatencyTable
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork

THERE = LatencyPredictor(
    fixed_ms=0.5,
    attention=Curve.of({1: 0.25, 6: 0.8, 12: 1.4}),
    ffn=Curve.of({32: 0.05, 768: 1.0, 1536: 2.1}),
    baseline_ms=21.5,
)
NETWORKS = [PLAN.full, *telling_networks(PLAN)]


def here(fixed: float, attention: float, ffn: float) -> LatencyPredictor:
    """A device on which each part costs so many times what it costs there."""
    return LatencyPredictor(
        fixed_ms=fixed * THERE.fixed_ms,
        attention=Curve(THERE.attention.widths, attention * THERE.attention.ms),
        ffn=Curve(THERE.ffn.widths, ffn * THERE.ffn.ms),
        baseline_ms=1.0,
    )


def test_a_tenth_of_the_networks() -> None:
    profiled = len(PLAN.stacks()) + len(PLAN.whole) + 8
    assert len(telling_networks(PLAN)) <= profiled / 10 + 1
    assert len({s.depth for s in NETWORKS}) > 1


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.8), (0.4, 0.4, 1.5)])
def test_factors_are_found(factors: tuple[float, float, float]) -> None:
    device = here(*factors)
    found = fit_factors(THERE, {s: device.predict(s) for s in NETWORKS})
    adapted = here(found.fixed, found.attention, found.ffn)
    unseen = Plan.of(MINILM, unseen=30, seed=2).unseen
    errors = [adapted.predict(s) / device.predict(s) - 1 for s in unseen]
    assert np.max(np.abs(errors)) < 0.03
    unscaled = [THERE.predict(s) / device.predict(s) - 1 for s in unseen]
    if factors != (1.0, 1.0, 1.0):
        assert np.mean(np.abs(unscaled)) > 5 * np.mean(np.abs(errors))


def test_factors_keep_together_where_little_is_known() -> None:
    noise = np.random.default_rng(0)
    device = here(1.5, 1.5, 1.5)
    found = fit_factors(THERE, {s: device.predict(s) * noise.normal(1, 0.02) for s in NETWORKS})
    assert found.attention == pytest.approx(1.5, rel=0.15)
    assert found.ffn == pytest.approx(1.5, rel=0.1)
    assert found.fixed == pytest.approx(1.5, rel=0.5)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return profile(TINY, TARGET, minutes=0)


def test_adapted_on_this_machine(table: LatencyTable) -> None:
    adapted = adapt(table, TINY, "openvino:cpu:threads=2,batch=1,seq=16", validate=2)
    origin = adapted.adapted_from
    assert origin is not None and origin.target == table.target
    assert set(origin.scales) == {entry.op for entry in table.entries}
    assert adapted.target == "openvino:cpu:threads=2,batch=1,seq=16"
    assert adapted.validation is not None and adapted.validation.n == 2
    assert any("scaled" in doubt for doubt in adapted.doubts())
    first, second = table.entries[0], adapted.entries[0]
    assert second.ms.median / first.ms.median == pytest.approx(origin.scales[first.op], rel=1e-6)
    full = Subnetwork.of([[4, 64]] * 2)
    assert full in SearchSpace.whole(adapted.model.shape)
    assert 1 / 4 < adapted.predictor().predict(full) / adapted.reference_ms < 4


def test_adapted_to_other_lengths_or_models(table: LatencyTable) -> None:
    with pytest.raises(UserError, match="lengths, phase and statistic"):
        adapt(table, TINY, "openvino:cpu:seq=32")
    other = type(TINY)(**(TINY.to_dict() | {"hidden_size": 64}))
    with pytest.raises(UserError, match="hidden 64"):
        adapt(table, other)
