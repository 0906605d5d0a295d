"""Measuring a latency table: choose the networks, time them, fit the costs, check the result.

A block timed alone is misstated (caches, fusion, the call itself), so whole networks are timed
(`plan`, `session`): real exports in small (`graphs`), random in weights, each compiled anew. A fit
(`fit`) divides their times into a fixed part and the cost of each operator at each width.

Assumption: in a sequence of blocks, attention and FFN cost the same whatever stands beside them,
but for the caches, which all weights share. `validation` tests that on unseen networks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.anatomy import Shape, find_shape
from hwnas.anatomy.dense import check_hidden
from hwnas.errors import UserError
from hwnas.latency.fit import Costs, Fit, fit, interval_90
from hwnas.latency.graphs import builder
from hwnas.latency.measure import clock_of, quantile
from hwnas.latency.parts import (
    AtLength,
    Entry,
    Machine,
    Milliseconds,
    ModelSizes,
    Narrower,
    Operator,
    Protocol,
)
from hwnas.latency.plan import Plan
from hwnas.latency.session import PAIRS_EACH, Measurement, Session, run
from hwnas.latency.table import LatencyTable, stated_reference
from hwnas.latency.target import Target
from hwnas.latency.validation import validated
from hwnas.progress import bar

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PretrainedConfig

    Floats = npt.NDArray[np.float64]

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)  # of single inferences, that are noted


def profile(
    model: PretrainedConfig | str,
    target: Target | str,
    *,
    validate: int = 0,
    seed: int = 0,
    minutes: float | None = None,
    hidden: Sequence[int] = (),
) -> LatencyTable:
    """Measure the operators of a model of such sizes on the target.

    Args:
        model: its config, or its name as `hwnas.load_model` takes it; weights play no part.
        target: or its text, such as ``openvino:cpu:threads=1,seq=64``.
        validate: check the table on this many subnetworks that it has not seen.
        seed: chooses these.
        minutes: of measuring at most, if the least that is needed takes no longer; exports and
            the check are not counted. By default as long as there is something to be gained.
        hidden: narrower residual widths to measure as well, each for as long.

    Raises:
        UserError: the model is unknown, its family has no such phase or residual width, or the
            target is too long for it or not to be had on this machine.
    """
    target = Target.parse(target) if isinstance(target, str) else target
    config = config_of(model)
    shape = find_shape(config)
    check_phase(shape, target)
    machine = Machine.here(target)
    for width in hidden:
        check_hidden(width, config, "profile")
    plan = Plan.of(shape, validate, seed, target.phase)
    build = builder(config, target)
    session = run(plan, build, target, bar, minutes)
    narrower = []
    for width in sorted(set(hidden)):
        narrow = Plan.of(shape, validate, seed, target.phase, width)
        narrower.append((narrow, run(narrow, build, target, bar, minutes, plan.reference)))
    return table_of(session, plan, shape, target, machine, narrower)


def table_of(
    session: Session,
    plan: Plan,
    shape: Shape,
    target: Target,
    machine: Machine,
    narrower: Sequence[tuple[Plan, Session]] = (),
) -> LatencyTable:
    """The table of a session's measurements, made here or brought back by a kit.

    Args:
        narrower: the same of narrower residual widths, beside the same reference.
    """
    fitted = session.fitted
    found = fit(plan, fitted)
    others = [(narrow, part, fit(narrow, part.fitted)) for narrow, part in narrower]
    points = range(len(target.points))
    reference, middle = plan.reference.depth, plan.middle
    full = next(m for m in fitted if m.subnetwork == plan.full)
    beside = _reference_times(fitted, len(points))
    # where two lengths are as good as equal, noise may put the longer one first
    full_ms = np.maximum.accumulate(
        [p.ratio * ms for p, ms in zip(full.points, beside, strict=True)]
    )
    lengths = tuple(
        AtLength(
            tokens=length.tokens,
            share=length.share,
            reference_ms=float(full_ms[i]),
            quantiles=quantiles_of(fitted, i, target),
        )
        for i, length in enumerate(target.lengths)
    )
    fits = [(plan, found), *((narrow, fitted_to) for narrow, _, fitted_to in others)]
    each = [_interval(of, fitted_to, beside, target) for of, fitted_to in fits]
    intervals = [interval for interval in each if interval is not None]
    spreads = [p.ratio_spread / p.ratio for m in fitted for p in m.points]
    table = LatencyTable(
        model=ModelSizes.of(shape),
        target=str(target),
        device=machine.device,
        versions=machine.versions,
        protocol=Protocol(
            pairs=PAIRS_EACH,
            networks=len(fitted) + sum(len(part.fitted) for _, part in narrower),
            clock="process" if clock_of(target) is time.process_time else "wall",
            reference=(
                f"{reference} blocks of {middle.heads} heads and FFN {middle.ffn} with random "
                "weights, several compilations in turns"
            ),
            spread=float(np.median(spreads)),
            seconds=round(session.seconds + sum(part.seconds for _, part in narrower), 1),
            warnings=machine.warnings,
        ),
        reference_ms=stated_reference(lengths, target),
        lengths=lengths,
        entries=_all_entries(found, fitted, lengths, beside, target),
        narrower=tuple(
            Narrower(
                hidden=narrow.hidden,
                entries=_all_entries(fitted_to, part.fitted, lengths, beside, target),
            )
            for narrow, part, fitted_to in others
        ),
        interval_90=max(intervals, default=None),
    )
    unseen = [*session.unseen, *(pair for _, part in narrower for pair in part.unseen)]
    return validated(table, plan, unseen, beside)


def check_phase(shape: Shape, target: Target) -> None:
    """Raise `UserError` unless a model of this shape has the target's phase."""
    if shape.family == "bloom" and target.runtime == "onnxruntime":
        raise UserError(
            f"target {target}: family bloom cannot be profiled through onnxruntime, whose "
            "graphs hold ALiBi's slopes of all heads; choose openvino"
        )
    static = target.precision == "int8-static"
    if shape.decoder and static:
        raise UserError(f"target {target}: int8-static is for encoders; choose int8-weights")
    if shape.decoder == (target.phase == "encode"):
        phases = "prefill or decode" if shape.decoder else "encode"
        raise UserError(
            f"target {target}: phase={target.phase}, a model of family {shape.family} has "
            f"phase={phases}"
        )


def config_of(model: PretrainedConfig | str) -> PretrainedConfig:
    """The config itself, or that of the model of this name."""
    if not isinstance(model, str):
        return model
    from hwnas.models import load_config

    return load_config(model)


def _reference_times(fitted: Sequence[Measurement], points: int) -> list[float]:
    """Milliseconds of the reference at each length: the median of all its medians."""
    return [float(np.median([m.points[i].reference_ms for m in fitted])) for i in range(points)]


def _interval(plan: Plan, found: Fit, beside: Sequence[float], target: Target) -> float | None:
    """How far networks lie from what fits with and without them say, over all the lengths."""
    if len(plan.mixed) < 2:
        return None
    weights = np.array([share for _, share in target.points]) * beside
    weights /= weights.sum()
    left_out = np.array(list(found.left_out.values()))
    return interval_90(left_out @ weights, found.off @ weights, found.parts)


def quantiles_of(
    fitted: Sequence[Measurement], point: int, target: Target
) -> dict[str, float] | None:
    """Of the time of single inferences, as shares of their network's median, of all networks.

    None where the target's statistic is the median.
    """
    if target.statistic == "median":
        return None
    times = [np.array(m.points[point].times) for m in fitted]
    relative = [list(t / np.median(t)) for t in times]
    return {str(q): quantile(relative, [1.0] * len(relative), q) for q in _QUANTILES}


def _all_entries(
    found: Fit,
    fitted: Sequence[Measurement],
    lengths: Sequence[AtLength],
    beside: Sequence[float],
    target: Target,
) -> tuple[Entry, ...]:
    """The costs at every length."""
    return tuple(
        entry
        for i, length in enumerate(lengths)
        for entry in _entries(found.costs[i], fitted, i, length, beside[i], target)
    )


def _entries(
    costs: Costs,
    fitted: Sequence[Measurement],
    point: int,
    length: AtLength,
    beside: float,
    target: Target,
) -> Iterator[Entry]:
    """The costs in milliseconds, with the spread of the inferences behind them."""
    points = [m.points[point] for m in fitted]
    low = float(np.median([p.p10_ms / p.ms for p in points]))
    high = float(np.median([p.p90_ms / p.ms for p in points]))

    def entry(op: Operator, width: dict[str, int], ratio: float) -> Entry:
        ms = ratio * beside
        has = [
            m.points[point].samples
            for m in fitted
            if op in ("fixed", "pressure")
            or any(_has(block, width) for _, block in m.subnetwork.kept)
        ]
        return Entry(
            op=op,
            dims=width | {target.axis: length.tokens},
            ms=Milliseconds(median=ms, p10=ms * low, p90=ms * high),
            ratio_to_reference=ms / length.reference_ms,
            samples=sum(has),
        )

    yield entry("fixed", {}, costs.fixed)
    for heads, ratio in costs.attention.items():
        yield entry("attention", {"heads": heads}, ratio)
    for width, ratio in costs.ffn.items():
        yield entry("ffn", {"width": width}, ratio)
    if costs.pressure > 0:
        for percent, ratio in costs.crowded().items():
            yield entry("pressure", {"weights": percent}, ratio)


def _has(block: Sequence[int], width: dict[str, int]) -> bool:
    heads, ffn = block
    return width in ({"heads": heads}, {"width": ffn})
