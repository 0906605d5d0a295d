"""Measuring a device: every network of the plan, compiled anew, timed beside one reference.

The stacks at both ends and in the middle come first, then a few whole networks, then further stacks
where a curve bends: between two measured widths the middle one is measured, and where it is not on
the straight line, the two halves likewise. The other whole networks take what time is left: timing
stacks twice instead was tried and gains less. Needs only numpy and the runtime, for it
travels in profiling kits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hwnas.latency.measure import (
    PAIRS,
    Inference,
    Paired,
    Turns,
    as_stated,
    patience_for,
    time_at_lengths,
)
from hwnas.latency.pinning import pinned
from hwnas.latency.plan import Plan, between
from hwnas.latency.target import Target
from hwnas.subnetwork import Block, Subnetwork

# compiles a subnetwork so many times: of each compilation, an inference for each length
Builder = Callable[[Subnetwork, int], Sequence[Sequence[Inference]]]
# says that so many networks more are done
Advance = Callable[[float], object]
# shows how far something of so many networks is, until it is left
Bar = Callable[[str, float], AbstractContextManager[Advance]]

PAIRS_EACH = 4  # of each measurement, if they take no longer than so many seconds
SECONDS_EACH = 1.0
CHECK_SECONDS = 2.0  # likewise of each network that the table is checked on
COMPILATIONS = 2  # of each network; as many of the reference, for they share the caches
_BEND = 0.03  # of a stack's time, by which a width lies off the straight line where it bends
_NEEDED = 5  # whole networks that are measured however little time there is
_BENDS_UNTIL = 0.6  # of the time, that further stacks may take
_WHOLE_UNTIL = 0.9  # likewise the other whole networks; the rest is for doubts
_FAR = 0.04  # from a plain line, that a network may lie at least
_DOUBTFUL = 4  # networks that are timed again, at most
_AGREE = 0.04  # two measurements of a network that differ by more call for a third
_WIDTHS = 9  # measured on a curve at most


@dataclass(frozen=True)
class Measurement:
    """One network, compiled so many times, at every length of the target."""

    subnetwork: Subnetwork
    compilations: int
    points: tuple[Paired, ...]

    def to_json(self) -> dict[str, Any]:
        """For a kit's result."""
        return asdict(self) | {"subnetwork": self.subnetwork.genome}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Measurement:
        """What `to_json` wrote; raises KeyError, TypeError or ValueError if it is anything else."""
        points = [
            Paired(**(p | {k: tuple(p[k]) for k in ("times", "reference_times")}))
            for p in stored["points"]
        ]
        return cls(Subnetwork.of(stored["subnetwork"]), stored["compilations"], tuple(points))


@dataclass(frozen=True)
class Session:
    """All that was measured on a device."""

    fitted: tuple[Measurement, ...]  # to fit costs to
    unseen: tuple[tuple[Measurement, Measurement], ...]  # to check them on, each measured twice
    seconds: float  # of measuring what is fitted


class Stopwatch:
    """Times subnetworks of one model in pairs with a reference.

    A reference that is one compilation would pass its luck on to every ratio (`measure.Turns`). So
    it is compiled several times, and its compilations take turns.

    Args:
        build_reference: compiles the reference, where that is of another model than `build`.
    """

    def __init__(
        self,
        build: Builder,
        target: Target,
        reference: Subnetwork,
        build_reference: Builder | None = None,
    ) -> None:
        self.build = build
        self.target = target
        self.reference = _turns(build_reference or build, reference, COMPILATIONS)
        self.patience = patience_for(target)

    def time(
        self,
        subnetwork: Subnetwork,
        pairs: int,
        compilations: int = 1,
        seconds: float = math.inf,
    ) -> Measurement:
        """Compile the subnetwork anew, so many times, and time it beside the reference.

        Args:
            seconds: at each length at most, if three pairs take no longer.
        """
        candidate = _turns(self.build, subnetwork, compilations)
        points = time_at_lengths(
            candidate, self.reference, self.target, pairs, seconds, self.patience
        )
        return Measurement(subnetwork, compilations, points)

    def once(self, subnetwork: Subnetwork, pairs: int) -> Paired:
        """One measurement as the target states latency, compiled as often as the reference is."""
        measured = self.time(subnetwork, pairs, COMPILATIONS)
        return as_stated(measured.points, self.target)


def _turns(build: Builder, subnetwork: Subnetwork, compilations: int) -> list[Turns]:
    built = build(subnetwork, compilations)
    return [Turns(at_one_length) for at_one_length in zip(*built, strict=True)]


def run(
    plan: Plan,
    build: Builder,
    target: Target,
    bar: Bar,
    minutes: float | None = None,
    reference: Subnetwork | None = None,
) -> Session:
    """All of a device's measuring: the plan's networks, then those to check the costs on.

    Args:
        bar: shows the progress of each of the two.
        minutes: of measuring at most, see `measure`; the check is not counted.
        reference: what is timed beside; by default the plan's own.
    """
    with pinned(target):
        stopwatch = Stopwatch(build, target, reference or plan.reference)
        begin = time.perf_counter()
        with bar("profile the device", most_networks(plan)) as advance:
            limit = math.inf if minutes is None else 60 * minutes
            fitted = measure(plan, stopwatch, limit, advance)
        seconds = time.perf_counter() - begin
        with bar("check the table", 2 * len(plan.unseen)) as advance:
            unseen = check(plan, stopwatch, advance)
    return Session(tuple(fitted), tuple(unseen), seconds)


def most_networks(plan: Plan) -> int:
    """How many networks `measure` compiles at most."""
    bends = sum(max(0, min(_WIDTHS, len(widths)) - 3) for widths in (plan.heads, plan.ffn))
    return COMPILATIONS * (len(plan.stacks()) + bends + len(plan.whole))


def measure(
    plan: Plan, stopwatch: Stopwatch, seconds: float = math.inf, advance: Advance = lambda _: None
) -> list[Measurement]:
    """Time the plan's networks, no longer than `seconds` if the least that is needed takes less.

    Args:
        advance: told of every network, `most_networks(plan)` in all.
    """
    begin = time.perf_counter()
    left = most_networks(plan)
    longest = 0.0  # that a network took
    found: list[Measurement] = []

    def spent() -> float:
        return time.perf_counter() - begin

    def take(subnetwork: Subnetwork) -> None:
        nonlocal left, longest
        start = spent()
        found.append(stopwatch.time(subnetwork, PAIRS_EACH, COMPILATIONS, SECONDS_EACH))
        longest = max(longest, spent() - start)
        left -= COMPILATIONS
        advance(COMPILATIONS)

    for stack in plan.stacks():
        take(stack)
    for subnetwork in plan.whole[:_NEEDED]:
        take(subnetwork)
    enough = spent() <= seconds  # else what is needed is all there is, doubts included
    for stack in _where_it_bends(plan, found):
        if spent() > _BENDS_UNTIL * seconds:
            break
        take(stack)
    for subnetwork in plan.whole[_NEEDED:]:
        if spent() + longest > _WHOLE_UNTIL * seconds:
            break
        take(subnetwork)
    advance(left)
    for doubtful in _far_off(found):
        if enough and spent() + 2 * longest > seconds:
            break
        found += _again(stopwatch, doubtful)
    return found


def check(
    plan: Plan, stopwatch: Stopwatch, advance: Advance = lambda _: None
) -> list[tuple[Measurement, Measurement]]:
    """Time every unseen network of the plan twice, there and back."""
    turns: list[dict[Subnetwork, Measurement]] = [{}, {}]
    for turn, order in zip(turns, (plan.unseen, plan.unseen[::-1]), strict=True):
        for subnetwork in order:
            turn[subnetwork] = stopwatch.time(subnetwork, PAIRS, COMPILATIONS, CHECK_SECONDS)
            advance(1)
    return [(turns[0][s], turns[1][s]) for s in plan.unseen]


def _far_off(found: Sequence[Measurement]) -> list[Measurement]:
    """The few measurements that lie farthest from a plain line through depth and widths.

    Something else may have run meanwhile. What the line itself misses is seldom as much.
    """
    rows = np.array(
        [[1, m.subnetwork.depth, *np.sum(m.subnetwork.blocks, axis=0)] for m in found], dtype=float
    )
    worst = np.zeros(len(found))
    for ratios in np.array([[p.ratio for p in m.points] for m in found]).T:
        line, *_ = np.linalg.lstsq(rows / ratios[:, None], np.ones(len(found)), rcond=None)
        off = np.abs(rows @ line / ratios - 1)
        worst = np.maximum(worst, off / max(_FAR, 3 * 1.4826 * float(np.median(off))))
    order = np.argsort(-worst)[:_DOUBTFUL]
    return [found[i] for i in order if worst[i] > 1]


def _again(stopwatch: Stopwatch, doubtful: Measurement) -> list[Measurement]:
    """The network timed again, and a third time if the two disagree: two of three then agree."""
    more: list[Measurement] = []
    for _ in range(2):
        again = (doubtful.subnetwork, PAIRS_EACH, doubtful.compilations, SECONDS_EACH)
        more.append(stopwatch.time(*again))
        pairs = zip(doubtful.points, more[0].points, strict=True)
        if all(abs(a.ratio / b.ratio - 1) < _AGREE for a, b in pairs):
            break
    return more


def _where_it_bends(plan: Plan, found: Sequence[Measurement]) -> Iterator[Subnetwork]:
    """Stacks to measure next; `found` must hold each before the next one is asked for."""
    heads, width = plan.middle
    curves = [
        (plan.heads, [Block(h, width) for h in plan.heads]),
        (plan.ffn, [Block(heads, w) for w in plan.ffn]),
    ]
    for options, blocks in curves:
        stacks = {w: plan.stack(block) for w, block in zip(options, blocks, strict=True)}

        def time_of(w: int, stacks: dict[int, Subnetwork] = stacks) -> np.ndarray | None:
            mine = [m for m in found if m.subnetwork == stacks[w]]
            return np.array([p.ratio for p in mine[-1].points]) if mine else None

        done = [w for w in options if time_of(w) is not None]
        spans = list(pairwise(done))
        while spans and len(done) < _WIDTHS:
            # the widest span first: it is where most may be hidden
            low, high = spans.pop(max(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0]))
            middle = between(options, low, high)
            if middle is None:
                continue
            yield stacks[middle]
            done.append(middle)
            before, here, after = time_of(low), time_of(middle), time_of(high)
            assert before is not None and here is not None and after is not None
            straight = before + (after - before) * (middle - low) / (high - low)
            if np.max(np.abs(here / straight - 1)) > _BEND:
                spans += [(low, middle), (middle, high)]
