"""From timed networks to the cost of each operator at each measured width.

A network costs a fixed part and, for each block, something for being there, and more for each step
of its heads and of its FFN width; no part is negative, so that a wider operator is never cheaper.
One least-squares fit of all networks' relative errors divides their times, so every measurement
serves every cost; networks that lie far off count less (Huber's weights). Curves may bend at every
measured width, at a price: as dear as whole networks, each left out of the fit in turn, are no
worse predicted for it. Where curves bent freely at chosen widths, two tables of one machine put an
operator's cost up to 14 % apart (median over the operators, nine pairs of tables), for they divided
what a block costs otherwise between its parts; with bends that have a price it is up to 5 %.

How far to trust the costs is told by two errors: of whole networks that the fit knows nothing of,
and of all networks around the fit, for what it was free to choose. On eleven sessions the former
alone was up to twice what networks measured afterwards were off by (they are few, and a fit without
them is a worse one), and the latter is too small where costs are not what the fit takes them for.
So the interval goes by their mean.

Beyond its parts a network costs what its weights take out of the caches (`caches`): the more there
are, the more of each are gone when they are needed again. With the square of their size alone
unseen MiniLMs were missed by 1.5 %, BERT-base in int8 by 5.0 % and SmolLM2's decoding by 5.8 %;
with the caches' capacity found it was 1.1, 4.4 and 3.9 % (and, without such a term, 4 % for the
first), all before bends had a price.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hwnas.latency.caches import AMPLE, CAPACITIES, PERCENTS, crowding
from hwnas.latency.plan import Plan
from hwnas.latency.session import Measurement
from hwnas.subnetwork import Block, Subnetwork, Weights

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_HUBER = 1.5  # standard deviations beyond which a network counts less
_ROUNDS = 4  # of weighing again
_WORTH = 0.03  # of the error on networks left out, that a choice less plain must save
# prices of a bend: by how many measurements that are off by their whole time it counts, where over
# the whole width the change of slope is worth the reference's latency
_BENDS = (3.0, 1.0, 0.3, 0.1)
_BEND = 1.0  # while the capacity is chosen
_WORST = 0.1  # of these networks are not asked
_BEFORE = 2  # parts that come before those of the curves: what is fixed, and a block
_FOLDS = 8  # of whole networks, that fits know nothing of in turn


@dataclass(frozen=True)
class Costs:
    """What the fit found at one length, as shares of the reference's latency."""

    fixed: float
    attention: dict[int, float]  # by heads
    ffn: dict[int, float]  # by width
    pressure: float  # of the full model's weights on the caches
    capacity: float  # of the caches, as a share of the full model's weights
    weights: Weights

    def of(self, subnetwork: Subnetwork) -> float:
        """The predicted share of the reference's latency."""
        heads, ffn = (np.array(list(curve.items())).T for curve in (self.attention, self.ffn))
        parts = sum(
            float(np.interp(block.heads, *heads) + np.interp(block.ffn, *ffn))
            for _, block in subnetwork.kept
        )
        return self.fixed + parts + self._crowded(self.weights.share(subnetwork))

    def crowded(self) -> dict[int, float]:
        """Per cent of the full model's weights -> what their pressure on the caches costs."""
        return {percent: self._crowded(percent / 100) for percent in PERCENTS}

    def _crowded(self, share: float) -> float:
        return self.pressure * float(crowding(share, self.capacity))


@dataclass(frozen=True)
class Fit:
    """The costs at each of the target's lengths, and how whole networks agree with such costs."""

    costs: tuple[Costs, ...]
    # each mixed network's predicted time, by a fit that knows nothing of it, over its measured one
    left_out: dict[Subnetwork, tuple[float, ...]]
    # `(measurements, points)`: the same of every network, by the fit itself
    off: Floats
    parts: float  # that the costs were free to take; fewer where bends are dear


def fit(plan: Plan, measured: Sequence[Measurement]) -> Fit:
    """The costs that explain the networks' times best."""
    problem = _Problem.of(plan, measured)
    mixed = [s for s in problem.whole if s != plan.full]
    left_out = {}
    for fold in (set(mixed[i::_FOLDS]) for i in range(_FOLDS)):
        without = problem.choose([s not in fold for s in problem.subnetworks])
        costs, _ = _costs(without) if fold else ((), 0)
        for subnetwork in fold:
            ratios = problem.times_of(subnetwork)
            left_out[subnetwork] = tuple(
                c.of(subnetwork) / ratio for c, ratio in zip(costs, ratios, strict=True)
            )
    costs, parts = _costs(problem)
    predicted = np.array([[c.of(s) for c in costs] for s in problem.subnetworks])
    return Fit(costs, left_out, predicted / problem.ratios, parts)


def interval_90(left_out: npt.ArrayLike, off: npt.ArrayLike, parts: float) -> float:
    """The share of a prediction within which nine of ten measurements are expected.

    Args:
        left_out: predicted over measured, of networks that the fit had not seen.
        off: the same of those that it was fitted to.
        parts: that it was free to take.
    """
    from scipy.stats import t

    unseen, seen = (np.abs(np.asarray(ratios, dtype=np.float64) - 1) for ratios in (left_out, off))
    free = max(1, len(seen) - parts)
    around = math.sqrt(len(seen) / free) * float(seen.mean())
    # of a normal distribution, whose mean absolute deviation one wild error moves less
    deviation = math.sqrt(math.pi / 2) * (float(unseen.mean()) + around) / 2
    return float(t.ppf(0.95, len(unseen)) * deviation)


@dataclass(frozen=True)
class _Design:
    """The widths at which costs may bend, and the columns of the least-squares problem."""

    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    weights: Weights
    capacity: float = AMPLE  # of the caches, as a share of the full model's weights
    bend: float = _BEND  # its price

    @property
    def bends(self) -> Floats:
        """`(bends, parts)`: the change of slope at each width between the ends, times its price."""
        columns = _BEFORE + len(self.heads) + len(self.ffn) - 1
        rows = []
        first = _BEFORE
        for widths in (self.heads, self.ffn):
            shares = np.diff(widths) / max(1, widths[-1] - widths[0])
            for i in range(len(shares) - 1):
                row = np.zeros(columns)
                row[first + i], row[first + i + 1] = 1 / shares[i], -1 / shares[i + 1]
                rows.append(self.bend * row)
            first += len(shares)
        return np.array(rows).reshape(len(rows), columns)

    def columns(self, subnetworks: Sequence[Subnetwork]) -> Floats:
        """`(n, parts)`: how often each part of the costs occurs in each network."""
        return np.array([self._row(s) for s in subnetworks], dtype=np.float64)

    def _row(self, subnetwork: Subnetwork) -> list[float]:
        kept = [block for _, block in subnetwork.kept]
        row = [1.0, float(len(kept))]
        for name, knots in (("heads", self.heads), ("ffn", self.ffn)):
            widths = np.array([getattr(block, name) for block in kept], dtype=np.float64)
            for low, high in pairwise(knots):
                row.append(float(np.clip((widths - low) / (high - low), 0, 1).sum()))
        return [*row, float(crowding(self.weights.share(subnetwork), self.capacity))]

    def costs(self, parts: Floats) -> Costs:
        """The parts as curves.

        What a block costs at its narrowest is divided so that the FFN's line runs through zero:
        norms, and whatever else a block costs at any width, are with the attention.
        """
        fixed, block = float(parts[0]), float(parts[1])
        head_steps, ffn_steps = np.split(parts[2:-1], [len(self.heads) - 1])
        span = self.ffn[-1] - self.ffn[0]
        slope = float(ffn_steps.sum()) / span if span else math.inf
        narrowest = min(block / 2, slope * self.ffn[0])
        return Costs(
            fixed=fixed,
            attention=_climb(self.heads, block - narrowest, head_steps),
            ffn=_climb(self.ffn, narrowest, ffn_steps),
            pressure=float(parts[-1]),
            capacity=self.capacity,
            weights=self.weights,
        )


def _climb(widths: tuple[int, ...], first: float, steps: Floats) -> dict[int, float]:
    """Width -> cost: the first's, then a step more for each."""
    costs = np.cumsum([first, *steps])
    return {width: float(cost) for width, cost in zip(widths, costs, strict=True)}


@dataclass(frozen=True)
class _Problem:
    """What is fitted to: the measured networks, and which of them are whole."""

    subnetworks: tuple[Subnetwork, ...]
    ratios: Floats  # (measurements, points)
    sure: Floats  # (measurements,): how much each counts
    plan: Plan

    @classmethod
    def of(cls, plan: Plan, measured: Sequence[Measurement]) -> _Problem:
        return cls(
            subnetworks=tuple(m.subnetwork for m in measured),
            ratios=np.array([[p.ratio for p in m.points] for m in measured]),
            # a network that was compiled several times is that much surer
            sure=np.sqrt([m.compilations for m in measured]),
            plan=plan,
        )

    @property
    def whole(self) -> list[Subnetwork]:
        """The whole networks that were measured, the full one first."""
        found = set(self.subnetworks)
        return [s for s in self.plan.whole if s in found]

    def choose(self, which: Sequence[bool]) -> _Problem:
        """Only some of the measurements."""
        chosen = np.array(which)
        return _Problem(
            subnetworks=tuple(s for s, kept in zip(self.subnetworks, which, strict=True) if kept),
            ratios=self.ratios[chosen],
            sure=self.sure[chosen],
            plan=self.plan,
        )

    def stacked(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The heads and the FFN widths that stacks were measured with, and both ends of each."""
        others = set(self.plan.whole) - set(self.plan.stacks())
        blocks = [block for s in self.subnetworks if s not in others for _, block in s.kept]
        ends = [Block(self.plan.heads[i], self.plan.ffn[i]) for i in (0, -1)]
        heads, ffn = (tuple(sorted(set(w))) for w in zip(*ends, *blocks, strict=True))
        return heads, ffn

    def times_of(self, subnetwork: Subnetwork) -> Floats:
        """`(points,)`: a network's measured shares of the reference's time."""
        own = [s == subnetwork for s in self.subnetworks]
        return np.asarray(np.median(self.ratios[own], axis=0))

    def solve(self, design: _Design, point: int) -> _Solution:
        """Each part's cost, by robust relative least squares without negative parts."""
        relative = design.columns(self.subnetworks) / self.ratios[:, point, None]
        solution = _Solution(relative, design.bends, self.sure)
        for _ in range(_ROUNDS):
            off = (relative @ solution.parts - 1) * self.sure
            # of a normal distribution, its standard deviation
            scale = float(np.median(np.abs(off))) / 0.6745
            if scale == 0:
                break
            far = np.maximum(np.abs(off), 1e-12)
            solution = replace(solution, counts=self.sure * np.minimum(1, _HUBER * scale / far))
        return solution

    def error(self, design: _Design) -> float:
        """How far whole networks lie off when left out: the mean of all but the worst tenth."""
        off: list[float] = []
        for point in range(self.ratios.shape[1]):
            solution = self.solve(design, point)
            for subnetwork in self.whole:
                own = np.array([s == subnetwork for s in self.subnetworks])
                parts = solution.without(own).parts
                off.append(float(np.median(np.abs(solution.relative[own] @ parts - 1))))
        kept = max(1, math.ceil((1 - _WORST) * len(off)))
        return float(np.mean(np.sort(off)[:kept]))


@dataclass(frozen=True)
class _Solution:
    """The costs that solve a weighted problem.

    Attributes:
        relative: `(measurements, parts)`, each row divided by what was measured.
        bends: `(bends, parts)`, see `_Design`.
        counts: `(measurements,)`, how much each counts.
    """

    relative: Floats
    bends: Floats
    counts: Floats

    @cached_property
    def parts(self) -> Floats:
        """`(parts,)`, none negative."""
        from scipy.optimize import nnls

        wanted = np.concatenate([self.counts, np.zeros(len(self.bends))])
        parts, _ = nnls(np.vstack([self._weighted, self.bends]), wanted)
        return np.asarray(parts)

    @property
    def freedom(self) -> float:
        """How many of the parts were free: the trace of what takes measured to fitted times."""
        taken = self.parts > 0
        seen, bends = (rows[:, taken].T @ rows[:, taken] for rows in (self._weighted, self.bends))
        return float(np.trace(np.linalg.pinv(seen + bends) @ seen))

    def without(self, which: npt.NDArray[np.bool_]) -> _Solution:
        """The solution of all measurements but these."""
        return _Solution(self.relative[~which], self.bends, self.counts[~which])

    @property
    def _weighted(self) -> Floats:
        return self.relative * self.counts[:, None]


def _costs(problem: _Problem) -> tuple[tuple[Costs, ...], float]:
    """At each length, by the curves that serve best; and how many parts these were free to take."""
    design = _chosen(problem)
    solutions = [problem.solve(design, point) for point in range(problem.ratios.shape[1])]
    freedom = float(np.mean([solution.freedom for solution in solutions]))
    return tuple(design.costs(solution.parts) for solution in solutions), freedom


def _chosen(problem: _Problem) -> _Design:
    """The design by which whole networks that are left out are best predicted.

    Where others save little, all weights fit the caches and bends are dear.
    """
    design = _Design(*problem.stacked(), problem.plan.weights)
    sizes = [replace(design, capacity=size) for size in CAPACITIES]
    errors = [problem.error(one) for one in sizes]
    best = int(np.argmin(errors))
    if errors[best] < (1 - _WORTH) * errors[CAPACITIES.index(AMPLE)]:
        design = sizes[best]
    prices = [replace(design, bend=price) for price in _BENDS]
    errors = [problem.error(one) for one in prices]
    return next(
        one
        for one, error in zip(prices, errors, strict=True)
        if error <= (1 + _WORTH) * min(errors)
    )
