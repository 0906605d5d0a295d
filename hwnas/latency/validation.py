"""How well a table predicts whole subnetworks that it has not seen.

Each is compiled several times and timed twice, so the machine's own noise stands beside the
table's error, and so does the rival that costs nothing: a straight line through FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.anatomy import Shape, find_shape
from hwnas.latency.graphs import builder
from hwnas.latency.measure import Paired, as_stated
from hwnas.latency.parts import Validation, ValidationRow
from hwnas.latency.pinning import pinned
from hwnas.latency.plan import Plan
from hwnas.latency.session import Measurement, Stopwatch, check
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.progress import bar
from hwnas.subnetwork import Subnetwork, macs

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PretrainedConfig

    Floats = npt.NDArray[np.float64]


def validate_table(
    table: LatencyTable, config: PretrainedConfig, target: Target, n: int, seed: int = 0
) -> LatencyTable:
    """`table` with a new validation record on `n` unseen subnetworks, each measured twice.

    Where the model is so small that every subnetwork is profiled, the table stays as it is.

    Raises:
        UserError: the table is of another model or target.
    """
    shape = find_shape(config)
    table.check_model(shape)
    table.check_target(target)
    plan = Plan.of(shape, n, seed, target.phase)  # of the model's own residual width
    build = builder(config, target)
    with pinned(target), bar("check the table", 2 * len(plan.unseen)) as advance:
        stopwatch = Stopwatch(build, target, plan.full)
        found = check(plan, stopwatch, advance)
    return validated(table, plan, found, [length.reference_ms for length in table.lengths])


def validated(
    table: LatencyTable,
    plan: Plan,
    measured: Sequence[tuple[Measurement, Measurement]],
    beside: Sequence[float],
) -> LatencyTable:
    """`table` with the record of how it predicts networks; as it is where none were measured.

    Args:
        measured: each network twice.
        beside: milliseconds of what they were timed beside, at each length.
    """
    from scipy.stats import kendalltau

    if not measured:
        return table
    target, shape = Target.parse(table.target), table.model.shape
    predictor, line = table.predictor(), _flops_line(table, plan, shape)

    rows = tuple(
        ValidationRow(
            genome=first.subnetwork.genome,
            predicted_ms=predictor.predict(first.subnetwork),
            measured_ms=_stated(first, beside, target),
            remeasured_ms=_stated(second, beside, target),
            flops_ms=max(line(first.subnetwork), 1e-6),
        )
        for first, second in measured
    )
    found = np.array([[r.predicted_ms, r.measured_ms, r.remeasured_ms, r.flops_ms] for r in rows])
    predicted, once, again, by_flops = found.T
    tau = float(kendalltau(predicted, once).statistic) if len(rows) > 1 else 1.0
    inside = np.abs(once / predicted - 1) <= (table.interval_90 or 0.0)
    validation = Validation(
        n=len(rows),
        mape=_percent(predicted, once),
        bias=float(100 * np.mean(predicted / once - 1)),
        kendall_tau=tau if np.isfinite(tau) else 0.0,
        noise=_percent(again, once),
        flops_mape=_percent(by_flops, once),
        coverage_90=None if table.interval_90 is None else float(inside.mean()),
        rows=rows,
    )
    return table.model_copy(update={"validation": validation})


def operations(subnetwork: Subnetwork, shape: Shape, target: Target) -> float:
    """Multiply-accumulates of one request, on the mean of the target's lengths."""
    return sum(
        share * macs(subnetwork, shape, point.seq, point.cache) * target.batch
        for point, share in target.points
    )


def _stated(measurement: Measurement, beside: Sequence[float], target: Target) -> float:
    """A network's latency as the target states it, where the reference takes `beside`."""

    def settled(paired: Paired, reference_ms: float) -> Paired:
        scale = reference_ms / paired.reference_ms
        times = tuple(scale * time for time in paired.times)
        return Paired(**(vars(paired) | {"reference_ms": reference_ms, "times": times}))

    points = [settled(p, ms) for p, ms in zip(measurement.points, beside, strict=True)]
    stated = as_stated(points, target)
    return stated.ratio * stated.reference_ms


def _flops_line(table: LatencyTable, plan: Plan, shape: Shape) -> Callable[[Subnetwork], float]:
    """The rival: milliseconds as a straight line over multiply-accumulates.

    Fitted, by the same relative least squares, to the networks that are profiled, at the latency
    that the table's costs give them (which is their measured one, the noise averaged out).
    """
    target = Target.parse(table.target)
    networks = [plan.full, *plan.mixed, *plan.stacks()]
    predictor = table.predictor()
    ms = np.array([predictor.predict(subnetwork) for subnetwork in networks])
    work = [operations(s, shape, target) for s in networks]
    slope, intercept = np.polyfit(work, ms, 1, w=1 / ms)
    return lambda subnetwork: float(intercept + slope * operations(subnetwork, shape, target))


def _percent(guess: Floats, truth: Floats) -> float:
    return float(100 * np.mean(np.abs(guess / truth - 1)))
