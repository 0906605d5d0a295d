"""Timing one inference, in pairs with a reference, through the runtime that will serve the model.

Idea: the clock of a machine drifts (frequency, neighbours, caches), and it drifts alike for two
networks that take turns. So a candidate runs between two runs of a reference, the *ratio* is
kept, and the median over many such pairs is the result.

The clock: with one thread, an inference never waits for anything but a processor, so the CPU time
that the process used is what it takes when it has its processor to itself. Where others compete,
that is steadier than wall time by a factor of ten; on a quiet machine the two are equal. With more
threads, or a GPU, the waiting of one for another is part of the latency, and wall time is taken.
Where other programs come and go, that is worth little while they are there (with two threads on two
processors ratios were off by up to a third), so a pair is put off until they are gone (`Patience`).

A server runs one network again and again, with its weights in the caches; a network that takes
turns with another finds them gone. On a processor with a large shared cache the first run after
another network took 1.4 times as long as the sixth. So every sample begins with runs that are not
timed: eight, or as many as take 60 ms; slow networks are bound by computing, and need fewer.

A percentile is of single inferences, slow ones and all, so for it inferences are timed one by one
by wall time, and each is set beside the references around it like the ratios.

Assumptions: the runtime's computing threads are the process's own, and nothing else in this
process computes meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwnas.latency.target import Target

Inference = Callable[[], object]
Clock = Callable[[], float]  # seconds

PAIRS = 15
_BURST_MS = 2.0  # shorter inferences are repeated until a sample takes as long, far above the timer
_WARM_RUNS = (3, 20)  # at least, at most; the reference, which ran before, once at least
_STEADY = 0.1  # warm when a run differs from the fastest so far by less
_SETTLE_RUNS = 8  # before a sample, at most
_SETTLE_MS = 60.0  # likewise; one run at least
_FEWEST = 3  # pairs that are timed however long they take
_P95_PAIRS = 4  # times as many pairs for a percentile as for a median
_ALONE = 0.85  # of the most processor time a second, that threads get where nothing else runs
_MOMENT = 0.1  # seconds that are waited before looking again
_LEAST, _MOST = 2, 6  # times that what counts is measured
_SURE = 0.01  # standard error of the mean of these, as a share, that is good enough


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
    times: tuple[float, ...] = ()  # the candidate's, ms, the drift between pairs taken out
    reference_times: tuple[float, ...] = ()  # likewise the reference's


@dataclass
class Patience:
    """Waits for other programs to leave the processors, in all no longer than was computed.

    Runtimes' threads wait for one another busily, or sleep as long each time: how much processor
    time a second a network gets changes only where other programs get their share of it.
    """

    most: float = 0.0  # processor seconds a second
    computed: float = 0.0  # seconds
    waited: float = 0.0

    def interrupted(self, run: Callable[[], float]) -> tuple[float, bool]:
        """What `run` returns, and whether others took processors from it."""
        wall, processor = time.perf_counter(), time.process_time()
        found = run()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.computed += wall
        self.most = max(self.most, processor / wall)
        return found, processor / wall < _ALONE * self.most

    def wait(self) -> bool:
        """Wait a moment, if there is patience left; whether there was."""
        if self.waited > self.computed:
            return False
        time.sleep(_MOMENT)
        self.waited += _MOMENT
        return True


def patience_for(target: Target) -> list[Patience | None]:
    """For each of the target's lengths, where other programs would spoil what is measured.

    Not of percentiles, which are of requests as they come.
    """
    helps = target.device == "cpu" and target.threads > 1 and target.statistic == "median"
    return [Patience() if helps else None for _ in target.points]


def clock_of(target: Target) -> Clock:
    """The clock that is right for the target, see the module's docstring."""
    alone = target.device == "cpu" and target.threads == 1 and target.statistic == "median"
    return time.process_time if alone else time.perf_counter


def time_pairs(
    candidate: Inference,
    reference: Inference,
    *,
    pairs: int = PAIRS,
    clock: Clock = time.perf_counter,
    bursts: bool = True,
    seconds: float = math.inf,
    patience: Patience | None = None,
) -> Paired:
    """Time `candidate` between runs of `reference`, `pairs` times.

    Args:
        pairs: at most; fewer, but three at least, where `seconds` are over before.
        clock: `clock_of(target)`; by default wall time.
        bursts: whether a sample may be the mean of several short inferences.
        patience: with other programs, of which the reference tells.

    Raises:
        ValueError: fewer than one pair.
    """
    if pairs < 1:
        raise ValueError(f"pairs={pairs}: at least one is needed")
    how, how_reference = (
        _Sampling.of(took, bursts)
        for took in (_warm_up(candidate, clock), _warm_up(reference, clock, at_least=1))
    )
    end = time.perf_counter() + seconds
    mine: list[float] = []
    others = [_sample(reference, how_reference, clock)]
    while len(mine) < pairs and (len(mine) < _FEWEST or time.perf_counter() < end):
        one = _sample(candidate, how, clock)
        if patience is None:
            other = _sample(reference, how_reference, clock)
        else:
            other, interrupted = patience.interrupted(
                lambda: _sample(reference, how_reference, clock)
            )
            if interrupted and patience.wait():
                end += _MOMENT
                others[-1] = _sample(reference, how_reference, clock)
                continue
        mine.append(one)
        others.append(other)
    times, references = np.array(mine), np.array(others)
    ratios = 2 * times / (references[:-1] + references[1:])
    low, ratio, high = np.percentile(ratios, (25, 50, 75))
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    reference_ms = float(np.median(references))
    # a reference beside its neighbours, as the candidate is
    neighbours = (references[:-2] + references[2:]) / 2
    alone = references[1:-1] / neighbours if len(mine) > 1 else np.ones(1)
    return Paired(
        ratio=float(ratio),
        ratio_spread=float(high - low) / 2,
        ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        reference_ms=reference_ms,
        samples=len(mine),
        times=tuple(float(x) for x in ratios * reference_ms),
        reference_times=tuple(float(x) for x in alone * reference_ms),
    )


def time_at_lengths(
    candidate: Sequence[Inference],
    reference: Sequence[Inference],
    target: Target,
    pairs: int,
    seconds: float = math.inf,
    patience: Sequence[Patience | None] | None = None,
) -> tuple[Paired, ...]:
    """`time_pairs` at each of the target's lengths, with the clock that is right for it.

    Args:
        candidate: an inference for each of `target.points`.
        reference: likewise.
        pairs: at each length; where the statistic is a percentile, four times as many.
        seconds: at each length, see `time_pairs`; of a median only.
        patience: likewise; by default there is none.
    """
    single = target.statistic != "median"
    return tuple(
        time_pairs(
            mine,
            other,
            pairs=pairs * _P95_PAIRS if single else pairs,
            clock=clock_of(target),
            bursts=not single,
            seconds=math.inf if single else seconds,
            patience=calm,
        )
        for mine, other, calm in zip(
            candidate, reference, patience or [None] * len(candidate), strict=True
        )
    )


def as_stated(points: Sequence[Paired], target: Target) -> Paired:
    """What was measured at each length, as one pair of the target's statistic over its mix.

    The median of a mix is the mean of the lengths' medians, by their shares; its 95th percentile is
    that of single requests, of whatever length.
    """
    if target.statistic == "median" and len(points) == 1:
        return points[0]
    each = [share for _, share in target.points]
    shares = np.array(each)
    first = points[0]
    if target.statistic == "median":
        reference_ms = float(shares @ [p.reference_ms for p in points])
        ms = float(shares @ [p.ratio * p.reference_ms for p in points])
    else:
        ms = quantile([p.times for p in points], each, 0.95)
        reference_ms = quantile([p.reference_times for p in points], each, 0.95)
    scale = ms / first.ms
    return replace(
        first,
        ratio=ms / reference_ms,
        ratio_spread=float(shares @ [p.ratio_spread for p in points]),
        ms=ms,
        p10_ms=first.p10_ms * scale,
        p90_ms=first.p90_ms * scale,
        reference_ms=reference_ms,
    )


def quantile(samples: Sequence[Sequence[float]], shares: Sequence[float], at: float) -> float:
    """The quantile `at` of a mix of samples, group `i` weighing `shares[i]` as a whole."""
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in samples])
    weights = np.concatenate(
        [
            np.full(len(group), share / len(group))
            for group, share in zip(samples, shares, strict=True)
        ]
    )
    order = np.argsort(values)
    weights = weights[order]
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(at, middles, values[order]))


class Turns:
    """One inference that is each of several in turn; all are run once when it is made.

    Where in memory a compiled network happens to lie makes it faster or slower by a few per cent,
    for as long as it lives. A network that matters is compiled several times, and they take turns:
    each time the inference is prepared, for a sample of several runs, it is the next one's turn.
    """

    def __init__(self, inferences: Sequence[Inference]) -> None:
        self._inferences = list(inferences)
        self._turn = 0
        for infer in self._inferences:
            prepare(infer)
            infer()

    def __call__(self) -> object:
        return self._inferences[self._turn]()

    def prepare(self) -> None:
        """Go on to the next one, and prepare it, see `prepare`."""
        self._turn = (self._turn + 1) % len(self._inferences)
        prepare(self._inferences[self._turn])


def prepare(inference: Inference) -> None:
    """What an inference needs before it is timed, if anything: a cache of the right length."""
    ready = getattr(inference, "prepare", None)
    if ready is not None:
        ready()


def settled(measure: Callable[[], Paired], at_most: int = _MOST) -> Paired:
    """Measure again until the mean ratio is sure to a hundredth, so many times at most.

    On a shared machine large networks' times wander within seconds, by 4 % where a neighbour was
    busy. A budget is not to be met or missed by that.
    """
    found = [measure()]
    while len(found) < at_most and (
        len(found) < _LEAST or _standard_error([p.ratio for p in found]) > _SURE
    ):
        found.append(measure())
    middle = sorted(found, key=lambda paired: paired.ratio)[len(found) // 2]
    return replace(middle, ratio=float(np.mean([paired.ratio for paired in found])))


def _standard_error(ratios: Sequence[float]) -> float:
    """Of their mean, as a share of it."""
    return float(np.std(ratios, ddof=1) / math.sqrt(len(ratios)) / np.mean(ratios))


def _warm_up(inference: Inference, clock: Clock, at_least: int = _WARM_RUNS[0]) -> float:
    """Run until the time settles; the fastest run in milliseconds."""
    at_most = _WARM_RUNS[1]
    fastest = math.inf
    for run in range(1, at_most + 1):
        took = _sample(inference, _Sampling(), clock)
        steady = abs(took - fastest) <= _STEADY * fastest
        fastest = min(fastest, took)
        if run >= at_least and steady:
            break
    return fastest


def _burst(ms: float) -> int:
    """How often to repeat an inference of `ms` in one sample."""
    return max(1, math.ceil(_BURST_MS / max(ms, 1e-3)))


@dataclass(frozen=True)
class _Sampling:
    """How an inference is sampled: so many runs untimed, then the mean of so many."""

    settling: int = 0
    repeats: int = 1

    @classmethod
    def of(cls, ms: float, bursts: bool) -> _Sampling:
        """For an inference that takes so long."""
        settling = round(_SETTLE_MS / max(ms, 1e-3))
        return cls(min(max(1, settling), _SETTLE_RUNS), _burst(ms) if bursts else 1)


def _sample(inference: Inference, how: _Sampling, clock: Clock) -> float:
    """Milliseconds of one inference."""
    prepare(inference)
    for _ in range(how.settling):
        inference()
    return _timed(inference, how.repeats, clock)


def _timed(inference: Inference, repeats: int, clock: Clock) -> float:
    """Milliseconds of one of so many runs."""
    start = clock()
    for _ in range(repeats):
        inference()
    return (clock() - start) / repeats * 1e3
