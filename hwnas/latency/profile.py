"""Measuring a table: stacks of equal blocks, two depths for every width, in pairs with the full model.

A block timed alone is misstated (caches, fusion, the call itself), so its cost is the slope
between two stacks of it. Heads vary at one FFN width, FFN widths at one number of heads; the cost
of a block is the sum of both. Networks are real exports in small (`graphs`), random in weights.

Assumption: in a sequence of blocks, attention and FFN cost the same whatever stands beside them.
`validate_table` tests that on whole networks of mixed widths and depths.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwnas.anatomy import Shape, find_shape
from hwnas.latency.graphs import Builder, builder
from hwnas.latency.measure import Paired, clock_of, time_pairs
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
from hwnas.space import DROPPED, Block, SearchSpace, Subnetwork, macs

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PAIRS = 9  # of each stack
_HEADS = 16  # head counts measured at most
_FFN_SHARES = (1 / 48, 1 / 24, 1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 5 / 12, 1 / 2, 7 / 12)
_FFN_SHARES += (2 / 3, 3 / 4, 5 / 6, 11 / 12, 1.0)
_VALIDATION_SHARES = (0.15, 1.0)  # of the full width, of each kept block, on average


class Stopwatch:
    """Times subnetworks of one model in pairs with the full one."""

    def __init__(self, config: PretrainedConfig, target: Target) -> None:
        self.target = target
        self.build: Builder = builder(config, target)
        self.full = self.build(Subnetwork.full(find_shape(config)))

    def time(self, subnetwork: Subnetwork, pairs: int = _PAIRS) -> Paired:
        """Compile the subnetwork anew and time it beside the full model."""
        return time_pairs(
            self.build(subnetwork), self.full, pairs=pairs, clock=clock_of(self.target)
        )


@dataclass(frozen=True)
class _Stack:
    """So many equal blocks."""

    block: Block
    depth: int

    def subnetwork(self, blocks: int) -> Subnetwork:
        return Subnetwork((self.block,) * self.depth + (DROPPED,) * (blocks - self.depth))


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
    stopwatch = Stopwatch(config, target)
    stacks = list(dict.fromkeys(_stacks(shape)))
    times: dict[_Stack, Paired] = {}
    with bar("profile the device", len(stacks)) as advance:
        for stack in stacks:
            times[stack] = stopwatch.time(stack.subnetwork(shape.depth))
            advance(1)
    reference_ms = float(np.median([paired.reference_ms for paired in times.values()]))
    table = LatencyTable(
        model=ModelSizes.of(shape),
        target=str(target),
        device=describe_device(),
        versions=versions_of(target),
        protocol=Protocol(
            pairs=_PAIRS,
            clock="process" if target.threads == 1 else "wall",
            reference="the full model with random weights, timed before and after each sample",
            seconds=round(time.perf_counter() - begin, 1),
        ),
        reference_ms=reference_ms,
        entries=tuple(_entries(shape, times, reference_ms)),
    )
    if validate:
        line = _flops_line(shape, target, times, reference_ms)
        table = _validated(table, shape, stopwatch, line, validate, seed)
    return table


def validate_table(
    table: LatencyTable, config: PretrainedConfig, target: Target, n: int, seed: int = 0
) -> LatencyTable:
    """`table` with a new validation record on `n` subnetworks, each measured twice.

    The FLOPs line beside it runs through two measured points: the full model's and that of the
    full-width stack of one block.
    """
    shape = find_shape(config)
    table.check_model(shape)
    table.check_target(target)
    stopwatch = Stopwatch(config, target)
    one, full = (_Stack(_widest(shape), depth) for depth in (1, shape.depth))
    times = {stack: stopwatch.time(stack.subnetwork(shape.depth)) for stack in (one, full)}
    line = _flops_line(shape, target, times, table.reference_ms)
    return _validated(table, shape, stopwatch, line, n, seed)


def _widest(shape: Shape) -> Block:
    return Block(max(shape.heads), max(shape.ffn))


def _middle(shape: Shape) -> Block:
    """Where one width stays while the other varies: half of each, a user's usual neighbourhood."""
    widest = _widest(shape)
    return Block(max(1, widest.heads // 2), max(1, widest.ffn // 2))


def _head_counts(shape: Shape) -> list[int]:
    most = _widest(shape).heads
    count = min(most, _HEADS)
    return sorted({max(1, round(most * (i + 1) / count)) for i in range(count)})


def _ffn_widths(shape: Shape) -> list[int]:
    most = _widest(shape).ffn
    return sorted({max(1, round(most * share)) for share in _FFN_SHARES})


def _depths(shape: Shape) -> tuple[int, int]:
    """The two depths of a slope; equal for a model of one block, whose whole cost is the block's."""
    return max(1, shape.depth // 3), shape.depth


def _stacks(shape: Shape) -> Iterator[_Stack]:
    middle = _middle(shape)
    for depth in _depths(shape):
        for heads in _head_counts(shape):
            yield _Stack(Block(heads, middle.ffn), depth)
        for width in _ffn_widths(shape):
            yield _Stack(Block(middle.heads, width), depth)
        yield _Stack(middle, depth)
        yield _Stack(_widest(shape), depth)


def _entries(shape: Shape, times: dict[_Stack, Paired], reference_ms: float) -> Iterator[Entry]:
    """Costs out of the stacks' ratios to the full model.

    A block at the middle widths is divided between its two operators so that the FFN's line goes
    through zero; norms and what every block costs are with the attention.
    """
    shallow, deep = _depths(shape)
    middle = _middle(shape)

    def slope(block: Block) -> float:
        ratios = [times[_Stack(block, depth)].ratio for depth in (shallow, deep)]
        if shallow == deep:
            return ratios[1]
        return (ratios[1] - ratios[0]) / (deep - shallow)

    widths = _ffn_widths(shape)
    ffn_slopes = np.array([slope(Block(middle.heads, width)) for width in widths])
    _, intercept = np.polyfit(widths, ffn_slopes, 1)
    ffn = np.maximum(ffn_slopes - intercept, 0)
    middle_ffn = float(np.interp(middle.ffn, widths, ffn))
    attention = {h: slope(Block(h, middle.ffn)) - middle_ffn for h in _head_counts(shape)}
    # what is left of each stack when its blocks are taken away
    rests = [
        paired.ratio - stack.depth * slope(stack.block)
        for stack, paired in times.items()
        if stack.depth == shallow and shallow != deep
    ]
    fixed = max(float(np.median(rests)), 0.0) if rests else 0.0
    spread = {block: times[_Stack(block, deep)] for block in {s.block for s in times}}

    def entry(op: Operator, dims: dict[str, int], ratio: float, paired: Paired) -> Entry:
        ratio = max(ratio, 0.0)
        return Entry(
            op=op,
            dims=dims,
            ms=Milliseconds(
                median=ratio * reference_ms,
                p10=ratio * reference_ms * paired.p10_ms / paired.ms,
                p90=ratio * reference_ms * paired.p90_ms / paired.ms,
            ),
            ratio_to_reference=ratio,
            samples=2 * paired.samples,
        )

    yield entry("fixed", {}, fixed, spread[_widest(shape)])
    for heads, ratio in attention.items():
        yield entry("attention", {"heads": heads}, ratio, spread[Block(heads, middle.ffn)])
    for width, ratio in zip(widths, ffn, strict=True):
        yield entry("ffn", {"width": width}, float(ratio), spread[Block(middle.heads, width)])


def _flops_line(
    shape: Shape, target: Target, times: dict[_Stack, Paired], reference_ms: float
) -> Callable[[Subnetwork], float]:
    """The rival: a straight line, least squares, from operations to ms, through the same stacks."""
    subnetworks = [stack.subnetwork(shape.depth) for stack in times]
    operations = [macs(s, shape, target.seq) for s in subnetworks]
    slope, intercept = np.polyfit(operations, [t.ratio for t in times.values()], 1)
    return lambda s: float((intercept + slope * macs(s, shape, target.seq)) * reference_ms)


def unseen(shape: Shape, n: int, seed: int) -> list[Subnetwork]:
    """`n` different subnetworks of mixed widths and depths, about 15 to 100 % of the full size."""
    rng = random.Random(seed)
    space = SearchSpace.whole(shape)
    found: dict[Subnetwork, None] = {}
    while len(found) < n:
        depth = shape.depth if rng.random() < 0.6 else rng.randint(1, shape.depth)
        kept = set(rng.sample(range(shape.depth), depth))
        share = rng.uniform(*_VALIDATION_SHARES)
        genome = [
            [h * share * rng.uniform(0.5, 1.5), f * share * rng.uniform(0.5, 1.5)]
            if i in kept
            else [0, 0]
            for i, (h, f) in enumerate(zip(shape.heads, shape.ffn, strict=True))
        ]
        found.setdefault(space.snap(genome))
    return list(found)


def _validated(
    table: LatencyTable,
    shape: Shape,
    stopwatch: Stopwatch,
    line: Callable[[Subnetwork], float],
    n: int,
    seed: int,
) -> LatencyTable:
    from scipy.stats import kendalltau

    predictor = table.predictor()
    subnetworks = unseen(shape, n, seed)
    measured: list[list[float]] = [[], []]
    with bar("check the table", 2 * n) as advance:
        for turn in measured:
            for subnetwork in subnetworks:
                turn.append(stopwatch.time(subnetwork).ratio * table.reference_ms)
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
    tau = float(kendalltau(predicted, first).statistic) if n > 1 else 1.0
    validation = Validation(
        n=n,
        mape=_percent(predicted, first),
        bias=float(100 * np.mean(predicted / first - 1)),
        kendall_tau=tau if np.isfinite(tau) else 0.0,
        noise=_percent(second, first),
        flops_mape=_percent(by_flops, first),
        rows=rows,
    )
    return table.model_copy(update={"validation": validation})


def _percent(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(100 * np.mean(np.abs(guess / truth - 1)))
