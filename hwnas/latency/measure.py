"""Timing one inference, in pairs with a reference, through the runtime that will serve the model.

Idea: the clock of a machine drifts (frequency, neighbours, caches), and it drifts alike for two
networks that take turns. So a candidate runs between two runs of a reference, the *ratio* is
kept, and the median over many such pairs is the result.

The clock: with one thread, an inference never waits for anything but a processor, so the CPU time
that the process used is what it takes when it has its processor to itself. Where others compete,
that is steadier than wall time by a factor of ten; on a quiet machine the two are equal. With more
threads, or a GPU, the waiting of one for another is part of the latency, and wall time is taken.

Assumptions: the runtime's computing threads are the process's own, and nothing else in this
process computes meanwhile.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.latency.target import Target

Inference = Callable[[], object]
Clock = Callable[[], float]  # seconds

PAIRS = 15
_BURST_MS = 2.0  # shorter inferences are repeated until a sample takes as long, far above the timer
_WARM_RUNS = (3, 20)  # at least, at most
_STEADY = 0.1  # warm when a run differs from the fastest so far by less


@dataclass(frozen=True)
class Paired:
    """A candidate's time beside the reference's."""

    ratio: float  # median over pairs of candidate / mean of the references before and after
    ratio_spread: float  # half the distance between the quartiles of these ratios
    ms: float  # the candidate's median; p10 and p90 are its own percentiles
    p10_ms: float
    p90_ms: float
    reference_ms: float  # the reference's median in the same minutes
    samples: int  # pairs


def clock_of(target: Target) -> Clock:
    """The clock that is right for the target, see the module's docstring."""
    alone = target.device == "cpu" and target.threads == 1
    return time.process_time if alone else time.perf_counter


def time_pairs(
    candidate: Inference,
    reference: Inference,
    *,
    pairs: int = PAIRS,
    clock: Clock = time.perf_counter,
) -> Paired:
    """Time `candidate` between runs of `reference`, `pairs` times.

    Args:
        clock: `clock_of(target)`; by default wall time.

    Raises:
        ValueError: fewer than one pair.
    """
    if pairs < 1:
        raise ValueError(f"pairs={pairs}: at least one is needed")
    repeats = _burst(_warm_up(candidate, clock))
    reference_repeats = _burst(_warm_up(reference, clock))
    before = _sample(reference, reference_repeats, clock)
    times, references, ratios = [], [before], []
    for _ in range(pairs):
        mine = _sample(candidate, repeats, clock)
        after = _sample(reference, reference_repeats, clock)
        ratios.append(2 * mine / (before + after))
        times.append(mine)
        references.append(after)
        before = after
    low, ratio, high = np.percentile(ratios, (25, 50, 75))
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    return Paired(
        ratio=float(ratio),
        ratio_spread=float(high - low) / 2,
        ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        reference_ms=float(np.median(references)),
        samples=pairs,
    )


def in_turns(inferences: Sequence[Inference]) -> Inference:
    """One inference that is each of these in turn, all of them run once.

    Where in memory a compiled network happens to lie makes it faster or slower by a few per cent,
    for as long as it lives. A network that matters is compiled several times, and they take turns.
    """
    for infer in inferences:
        infer()
    turns = itertools.cycle(inferences)
    return lambda: next(turns)()


def confirmed(measure: Callable[[], Paired], limit: float) -> Paired:
    """A measurement; if its ratio exceeds `limit`, the one of median ratio among it and two more.

    Noise alone should not fail a verdict that a whole run led up to.
    """
    first = measure()
    if first.ratio <= limit:
        return first
    return sorted((first, measure(), measure()), key=lambda paired: paired.ratio)[1]


def _warm_up(inference: Inference, clock: Clock) -> float:
    """Run until the time settles; the fastest run in milliseconds."""
    at_least, at_most = _WARM_RUNS
    fastest = math.inf
    for run in range(1, at_most + 1):
        took = _sample(inference, 1, clock)
        steady = abs(took - fastest) <= _STEADY * fastest
        fastest = min(fastest, took)
        if run >= at_least and steady:
            break
    return fastest


def _burst(ms: float) -> int:
    """How often to repeat an inference of `ms` in one sample."""
    return max(1, math.ceil(_BURST_MS / max(ms, 1e-3)))


def _sample(inference: Inference, repeats: int, clock: Clock) -> float:
    """Milliseconds of one inference, mean over a burst of `repeats`."""
    start = clock()
    for _ in range(repeats):
        inference()
    return (clock() - start) / repeats * 1e3
