"""Tables side by side and joined: what is the same, what is scaled, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from samples import small_table

from hwnas.errors import UserError
from hwnas.latency.compare import compare, merge
from hwnas.latency.parts import AtLength
from hwnas.latency.table import LatencyTable
from hwnas.subnetwork import Subnetwork

FULL = Subnetwork.of([[4, 128]] * 2)
FULL_MS = 2.0  # of the small table's full model


def at(seq: int, scale: float, **changes: Any) -> LatencyTable:
    return small_table(seq, scale, validation=None, **changes)


def slow_ones(seq: int, scale: float) -> LatencyTable:
    """A table of the 95th percentile, 1.2 of the median."""
    full = FULL_MS * scale
    quantiles = {"0.5": 1.0, "0.95": 1.2}
    return at(
        seq,
        scale,
        target=f"openvino:cpu:threads=1,batch=1,seq={seq},statistic=p95",
        reference_ms=1.2 * full,
        lengths=(AtLength(tokens=seq, share=1.0, reference_ms=full, quantiles=quantiles),),
    )


def test_a_faster_machine_in_proportion() -> None:
    (found,) = compare(at(64, 1.0), at(64, 0.5))
    assert found.scale == pytest.approx(0.5)
    assert found.apart == pytest.approx(0, abs=1e-9)
    assert found.kendall_tau == pytest.approx(1)
    assert found.drift == pytest.approx(0, abs=1e-9)
    assert {cost.second / cost.first for cost in found.costs} == {0.5}


def test_operators_that_moved_apart() -> None:
    slow = at(64, 1.0)
    dearer = [
        e.model_copy(
            update={
                "ms": type(e.ms)(**{name: 2 * value for name, value in e.ms}),
                "ratio_to_reference": 2 * e.ratio_to_reference,
            }
        )
        if e.op == "attention"
        else e
        for e in slow.entries
    ]
    (found,) = compare(slow, LatencyTable(**(dict(slow) | {"entries": tuple(dearer)})))
    assert found.scale > 1.2 and found.apart > 1
    assert found.kendall_tau < 1
    changed = {c.op for c in found.costs if c.second > 1.5 * c.first}
    assert changed == {"attention"}


def test_tables_that_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="no length in common"):
        compare(at(64, 1.0), at(32, 1.0))
    other = at(64, 1.0).model.model_copy(update={"hidden": 768})
    with pytest.raises(UserError, match="hidden 768"):
        compare(at(64, 1.0), at(64, 1.0, model=other))


def test_lengths_join_to_a_mix() -> None:
    joined = merge([at(128, 2.0), at(64, 1.0)])
    assert joined.target == "openvino:cpu:threads=1,batch=1,seq=64/128"
    assert [length.share for length in joined.lengths] == [0.5, 0.5]
    assert joined.reference_ms == pytest.approx(1.5 * FULL_MS)
    one = at(64, 1.0).predictor().predict(FULL)
    assert joined.predictor().predict(FULL) == pytest.approx(1.5 * one)
    assert joined.predictor_at(128).predict(FULL) == pytest.approx(2 * one)
    assert joined.validation is None and joined.interval_90 == 0.05


def test_the_same_length_measured_twice_is_averaged_by_networks() -> None:
    few, many = at(64, 1.0), at(64, 1.3)
    few = few.model_copy(update={"protocol": few.protocol.model_copy(update={"networks": 10})})
    many = many.model_copy(update={"protocol": many.protocol.model_copy(update={"networks": 20})})
    joined = merge([few, many])
    assert joined.predictor().predict(FULL) == pytest.approx(1.2 * few.predictor().predict(FULL))
    assert joined.protocol.networks == 30
    assert joined.target == few.target


def test_percentiles_join() -> None:
    joined = merge([slow_ones(64, 1.0), slow_ones(128, 2.0)])
    assert joined.target.endswith("seq=64/128,statistic=p95")
    # the slowest twentieth of all is the slowest tenth of the longer ones
    assert joined.reference_ms == pytest.approx(2 * FULL_MS * (1 + 0.2 * 0.4 / 0.45))


def test_tables_that_do_not_belong_together() -> None:
    first = at(64, 1.0)
    with pytest.raises(UserError, match="two tables"):
        merge([first])
    device = first.device.model_copy(update={"cpu": "Another"})
    with pytest.raises(UserError, match="table 2 is of another device"):
        merge([first, at(64, 1.0, device=device)])
    with pytest.raises(UserError, match="another versions"):
        merge([first, at(64, 1.0, versions={"openvino": "1"})])
    onnx = "onnxruntime:cpu:threads=1,batch=1,seq=64"
    with pytest.raises(UserError, match="only lengths may differ"):
        merge([first, at(64, 1.0, target=onnx)])
