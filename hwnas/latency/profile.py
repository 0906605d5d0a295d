"""Measuring a table: stacks of equal blocks, timed in pairs with the full model, and a fit.

A block timed alone is misstated (caches, fusion, the call itself), so whole networks are timed, all
blocks alike: heads vary at one FFN width, FFN widths at one number of heads, both at the corners,
depth at three sizes. One least-squares fit divides their times into a fixed part and the cost of
each operator at each width, so that every measurement serves every cost. Networks are real exports
in small (`graphs`), random in weights, and each is compiled and timed twice, far apart in time.

Assumption: in a sequence of blocks, attention and FFN cost the same whatever stands beside them.
`validate_table` tests that on whole networks of mixed widths and depths.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.anatomy import Shape, find_shape
from hwnas.latency.graphs import Builder, builder
from hwnas.latency.measure import PAIRS, Inference, Paired, clock_of, in_turns, time_pairs
from hwnas.latency.table import (
    Entry,
    LatencyTable,
    Milliseconds,
    ModelSizes,
    Operator,
    Protocol,
    Validation,
    ValidationRow,
    describe_device,
    versions_of,
)
from hwnas.latency.target import Target
from hwnas.progress import bar
from hwnas.space import SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork, macs

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PretrainedConfig

    Floats = npt.NDArray[np.float64]

_PAIRS = 6  # of each measurement of a stack
_AGREE = 0.06  # two measurements of a stack that differ by more call for a third
_REFERENCES = 4  # compilations of the full model
_HEADS = 16  # head counts measured at most
# FFN widths that are measured, in 48ths: closer at the lower end
_FFN_PARTS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48)
_VALIDATION_SHARES = (0.2, 1.0)  # of the full width, of each kept block, on average
_VALIDATION_LEAST = 0.2  # of the full model's operations
_VALIDATION_COMPILATIONS = 3  # of each unseen network: the judge must be right itself


class Stopwatch:
    """Times subnetworks of one model in pairs with the full one.

    A reference that is one compilation would pass its luck on to every ratio (`in_turns`). So the
    full model is compiled several times, and its compilations take turns.
    """

    def __init__(self, config: PretrainedConfig, target: Target) -> None:
        self.target = target
        self.build: Builder = builder(config, target)
        full = Subnetwork.full(find_shape(config))
        self.reference: Inference = in_turns([self.build(full) for _ in range(_REFERENCES)])

    def time(self, subnetwork: Subnetwork, pairs: int, compilations: int = 1) -> Paired:
        """Compile the subnetwork anew, so many times, and time it beside the full model."""
        candidate = in_turns([self.build(subnetwork) for _ in range(compilations)])
        return time_pairs(candidate, self.reference, pairs=pairs, clock=clock_of(self.target))


@dataclass(frozen=True)
class _Stack:
    """So many equal blocks."""

    block: Block
    depth: int

    def subnetwork(self, blocks: int) -> Subnetwork:
        return Subnetwork((self.block,) * self.depth + (DROPPED,) * (blocks - self.depth))


@dataclass(frozen=True)
class _Grid:
    """The widths that are measured, of a model of `depth` blocks."""

    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    depth: int

    @classmethod
    def of(cls, shape: Shape) -> _Grid:
        heads, ffn = max(shape.heads), max(shape.ffn)
        options = SearchSpace.whole(shape).blocks[shape.ffn.index(ffn)].ffn
        count = min(heads, _HEADS)
        return cls(
            heads=tuple(sorted({round(heads * (i + 1) / count) for i in range(count)})),
            ffn=tuple(
                sorted({min(options, key=lambda o: abs(o - ffn * p / 48)) for p in _FFN_PARTS})
            ),
            depth=shape.depth,
        )

    @property
    def middle(self) -> Block:
        """Where one width stays while the other varies: half of each, a usual neighbourhood."""
        return self._share(1 / 2)

    def _share(self, share: float) -> Block:
        return Block(
            min(self.heads, key=lambda h: abs(h - share * self.heads[-1])),
            min(self.ffn, key=lambda w: abs(w - share * self.ffn[-1])),
        )

    def stacks(self) -> list[_Stack]:
        """Every network to measure.

        Depths vary at blocks that are not small: the shallowest networks keep their weights in
        caches that those of a usual size do not fit, and would put the fixed part too low.
        """
        (least, most), (narrow, wide) = ((x[0], x[-1]) for x in (self.heads, self.ffn))
        middle = self.middle
        blocks = [Block(heads, middle.ffn) for heads in self.heads]
        blocks += [Block(middle.heads, width) for width in self.ffn]
        blocks += [Block(heads, width) for heads in (least, most) for width in (narrow, wide)]
        blocks += [self._share(1 / 6), self._share(1 / 4)]
        stacks = [_Stack(block, self.depth) for block in blocks]
        for depth in (max(1, self.depth // 3), max(1, 2 * self.depth // 3)):
            stacks += [_Stack(block, depth) for block in (middle, Block(most, wide))]
        return list(dict.fromkeys(stacks))


@dataclass(frozen=True)
class _Costs:
    """What the fit found, as shares of the full model's latency."""

    fixed: float
    attention: dict[int, float]  # by heads
    ffn: dict[int, float]  # by width
    interval_90: float  # see the table's


def profile(
    config: PretrainedConfig, target: Target, *, validate: int = 0, seed: int = 0
) -> LatencyTable:
    """Measure the operators of a model of `config`'s sizes on the target.

    Args:
        validate: check the table on this many subnetworks that it has not seen.
        seed: chooses these.

    Raises:
        UserError: the family is unknown, or the target's sequence too long for the model.
    """
    begin = time.perf_counter()
    shape = find_shape(config)
    grid = _Grid.of(shape)
    stopwatch = Stopwatch(config, target)
    times = _measure(grid, stopwatch)
    every = [paired for measured in times.values() for paired in measured]
    reference_ms = float(np.median([paired.reference_ms for paired in every]))
    costs = _fit(grid, {stack: [p.ratio for p in found] for stack, found in times.items()})
    table = LatencyTable(
        model=ModelSizes.of(shape),
        target=str(target),
        device=describe_device(),
        versions=versions_of(target),
        protocol=Protocol(
            pairs=_PAIRS,
            clock="process" if target.threads == 1 else "wall",
            reference=f"the full model with random weights, {_REFERENCES} compilations in turns",
            seconds=round(time.perf_counter() - begin, 1),
        ),
        reference_ms=reference_ms,
        entries=tuple(_entries(grid, costs, times, reference_ms)),
        interval_90=costs.interval_90,
    )
    if validate:
        table = _validated(table, shape, stopwatch, validate, seed)
    return table


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
    return _validated(table, shape, Stopwatch(config, target), n, seed)


def _measure(grid: _Grid, stopwatch: Stopwatch) -> dict[_Stack, list[Paired]]:
    """Every stack twice, there and back, and a third time where the two disagree."""
    stacks = grid.stacks()
    times: dict[_Stack, list[Paired]] = {stack: [] for stack in stacks}
    with bar("profile the device", 2 * len(stacks)) as advance:
        for stack in (*stacks, *reversed(stacks)):
            times[stack].append(stopwatch.time(stack.subnetwork(grid.depth), _PAIRS))
            advance(1)
        for stack, measured in times.items():
            first, second = (paired.ratio for paired in measured)
            if abs(first / second - 1) > _AGREE:
                measured.append(stopwatch.time(stack.subnetwork(grid.depth), _PAIRS))
    return times


def _fit(grid: _Grid, ratios: Mapping[_Stack, list[float]]) -> _Costs:
    """The costs that explain each stack's median ratio best, by relative least squares.

    A stack costs `fixed + depth * (block + steps up to its heads + steps up to its FFN width)`,
    and no part is negative, so that a wider operator is never cheaper. What a block costs at its
    narrowest is divided so that the FFN's line runs through zero: norms, and whatever else a block
    costs at any width, are with the attention.
    """
    from scipy.optimize import nnls

    stacks = list(ratios)
    medians = np.array([np.median(ratios[stack]) for stack in stacks])
    depth = np.array([stack.depth for stack in stacks])
    heads, width = np.array([stack.block for stack in stacks]).T
    wider = [*(heads >= h for h in grid.heads[1:]), *(width >= w for w in grid.ffn[1:])]
    columns = np.stack([np.ones_like(depth), depth, *(depth * step for step in wider)], axis=1)
    parts, _ = nnls(columns / medians[:, None], np.ones(len(stacks)))

    fixed, block = float(parts[0]), float(parts[1])
    head_steps, ffn_steps = np.split(parts[2:], [len(grid.heads) - 1])
    span = grid.ffn[-1] - grid.ffn[0]
    slope = float(ffn_steps.sum()) / span if span else math.inf
    narrowest = min(block / 2, slope * grid.ffn[0])
    fitted = dict(zip(stacks, columns @ parts, strict=True))
    off = [ratio / fitted[stack] - 1 for stack in stacks for ratio in ratios[stack]]
    # a fit comes closer to what it was fitted to than to anything else
    free = max(1, len(off) - int(np.count_nonzero(parts)))
    return _Costs(
        fixed=fixed,
        attention=_climb(grid.heads, block - narrowest, head_steps),
        ffn=_climb(grid.ffn, narrowest, ffn_steps),
        interval_90=float(np.quantile(np.abs(off), 0.9) * np.sqrt(len(off) / free)),
    )


def _climb(widths: tuple[int, ...], first: float, steps: Floats) -> dict[int, float]:
    """Width -> cost: the first's, then a step more for each."""
    costs = np.cumsum([first, *steps])
    return {width: float(cost) for width, cost in zip(widths, costs, strict=True)}


def _entries(
    grid: _Grid, costs: _Costs, times: Mapping[_Stack, list[Paired]], reference_ms: float
) -> Iterator[Entry]:
    """The costs in milliseconds, each with the spread of the inferences behind it."""

    def entry(op: Operator, dims: dict[str, int], ratio: float, stack: _Stack) -> Entry:
        measured = times[stack]
        low = float(np.median([paired.p10_ms / paired.ms for paired in measured]))
        high = float(np.median([paired.p90_ms / paired.ms for paired in measured]))
        ms = ratio * reference_ms
        return Entry(
            op=op,
            dims=dims,
            ms=Milliseconds(median=ms, p10=ms * low, p90=ms * high),
            ratio_to_reference=ratio,
            samples=sum(paired.samples for paired in measured),
        )

    middle, depth = grid.middle, grid.depth
    yield entry("fixed", {}, costs.fixed, _Stack(middle, depth))
    for heads, ratio in costs.attention.items():
        yield entry("attention", {"heads": heads}, ratio, _Stack(Block(heads, middle.ffn), depth))
    for width, ratio in costs.ffn.items():
        yield entry("ffn", {"width": width}, ratio, _Stack(Block(middle.heads, width), depth))


def _flops_line(table: LatencyTable, shape: Shape) -> Callable[[Subnetwork], float]:
    """The rival: milliseconds as a straight line over multiply-accumulates.

    Fitted, by the same relative least squares, to the stacks that were profiled, at the latency
    that the table's costs give them (which is their measured one, the noise averaged out).
    """
    seq = Target.parse(table.target).seq
    stacks = [stack.subnetwork(shape.depth) for stack in _Grid.of(shape).stacks()]
    predictor = table.predictor()
    ms = np.array([predictor.predict(subnetwork) for subnetwork in stacks])
    slope, intercept = np.polyfit([macs(s, shape, seq) for s in stacks], ms, 1, w=1 / ms)
    return lambda subnetwork: float(intercept + slope * macs(subnetwork, shape, seq))


def unseen(shape: Shape, n: int, seed: int) -> list[Subnetwork]:
    """Up to `n` different subnetworks that no profile measures, of 20 to 100 % of the operations.

    Four of ten lose blocks; one of five keeps its blocks at one width; the others mix widths.
    """
    rng = random.Random(seed)
    space = SearchSpace.whole(shape)
    measured = {stack.subnetwork(shape.depth) for stack in _Grid.of(shape).stacks()}
    least = _VALIDATION_LEAST * macs(Subnetwork.full(shape), shape, 1)
    found: dict[Subnetwork, None] = {}
    for _ in range(100 * n):  # a small space may hold fewer
        depth = shape.depth if rng.random() < 0.6 else rng.randint(1, shape.depth)
        kept = set(rng.sample(range(shape.depth), depth))
        share = rng.uniform(*_VALIDATION_SHARES)
        mixed = rng.random() < 0.8
        subnetwork = space.snap(
            [share * width * (rng.uniform(0.5, 1.5) if mixed else 1.0) for width in widths]
            if i in kept
            else [0, 0]
            for i, widths in enumerate(zip(shape.heads, shape.ffn, strict=True))
        )
        if subnetwork not in measured and macs(subnetwork, shape, 1) >= least:
            found.setdefault(subnetwork)
        if len(found) == n:
            break
    return list(found)


def _validated(
    table: LatencyTable, shape: Shape, stopwatch: Stopwatch, n: int, seed: int
) -> LatencyTable:
    from scipy.stats import kendalltau

    predictor, line = table.predictor(), _flops_line(table, shape)
    subnetworks = unseen(shape, n, seed)
    if not subnetworks:
        return table
    measured: list[list[float]] = [[], []]
    with bar("check the table", 2 * len(subnetworks)) as advance:
        for turn in measured:
            for subnetwork in subnetworks:
                paired = stopwatch.time(subnetwork, PAIRS, compilations=_VALIDATION_COMPILATIONS)
                turn.append(paired.ratio * table.reference_ms)
                advance(1)
    rows = tuple(
        ValidationRow(
            genome=s.genome,
            predicted_ms=predictor.predict(s),
            measured_ms=first,
            remeasured_ms=second,
            flops_ms=max(line(s), 1e-6),
        )
        for s, first, second in zip(subnetworks, *measured, strict=True)
    )
    found = np.array([[r.predicted_ms, r.measured_ms, r.remeasured_ms, r.flops_ms] for r in rows])
    predicted, first, second, by_flops = found.T
    tau = float(kendalltau(predicted, first).statistic) if len(rows) > 1 else 1.0
    inside = np.abs(first / predicted - 1) <= (table.interval_90 or 0.0)
    validation = Validation(
        n=len(rows),
        mape=_percent(predicted, first),
        bias=float(100 * np.mean(predicted / first - 1)),
        kendall_tau=tau if np.isfinite(tau) else 0.0,
        noise=_percent(second, first),
        flops_mape=_percent(by_flops, first),
        coverage_90=None if table.interval_90 is None else float(inside.mean()),
        rows=rows,
    )
    return table.model_copy(update={"validation": validation})


def _percent(guess: Floats, truth: Floats) -> float:
    return float(100 * np.mean(np.abs(guess / truth - 1)))
