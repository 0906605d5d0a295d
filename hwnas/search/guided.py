"""Our search of the front: a few starts over the whole range, then what is worth looking at.

The first structures have all layers alike, or are the exact answers under the additive loss, at
latencies over the whole range: how good either is depends on the network, and few are enough to
learn from. After each batch a surrogate is fitted to all that was evaluated, and the structures
with the greatest expected gain of hypervolume (Emmerich et al. 2006) are evaluated next: bred from
the front by the moves of `evolution`, as many generations as cost nothing beside an evaluation.

A hypervolume gains nothing by what is better at its slow end only, and that is where a budget is.
So where there are budgets, what is better at one of them counts as much as if it were better over
several times the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hwnas.errors import BudgetError
from hwnas.search.evolution import Evaluated
from hwnas.search.exact import solve_tables
from hwnas.search.fitting import fill
from hwnas.search.front import FrontProblem, front
from hwnas.search.problem import Tables
from hwnas.search.seeds import uniform
from hwnas.search.surrogate import Surrogate
from hwnas.subnetwork import Subnetwork, genomes

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

_STARTS = 0.15  # of the evaluations, that the proven starts may take
_OFFERED = 32  # such structures beside those, that are offered to the surrogate
_BATCH = 5  # structures between two fits of the surrogate
_POOL = 256  # structures that are bred at a time
_GENERATIONS = 12
_AIMED = 4.0  # ranges of latency, that being better at all of the aims is worth
_QUANTILES = 8  # of a signal's distribution, that its expected gain is taken over
_DROP = 0.05  # probability that a bred block is left out, or comes back
_REACH = 0.15  # of the options, by which a width moves at most


class Guided:
    """See the module."""

    def __init__(
        self,
        problem: FrontProblem,
        evaluations: int,
        seed: int,
        known: Sequence[Evaluated] = (),
    ) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.evaluated = list(known)  # elsewhere, before
        first = starts(problem, max(2, round(_STARTS * evaluations)))
        looked_at = {c.subnetwork for c in known}
        self.first = [s for s in first if s not in looked_at]
        # more of their kinds, which the surrogate may find worth looking at
        self.offered = genomes(starts(problem, _OFFERED))

    def ask(self) -> list[Subnetwork]:
        if self.first:
            batch, self.first = self.first[:_BATCH], self.first[_BATCH:]
            return batch
        self.problem = _with_all_that_counts(self.problem, self.evaluated)
        surrogate = Surrogate(self.problem, self.evaluated, self.seed)
        known = {c.subnetwork for c in self.evaluated}
        believed = list(self.evaluated)
        batch = []
        pool = self._bred(surrogate)
        mean, deviation = surrogate.predict(pool)
        ms = self.problem.predictor.predict_many(pool)
        while len(batch) < _BATCH:
            gains = expected_gains(self.problem, believed, ms, mean, deviation)
            for at in np.argsort(-gains):
                subnetwork = Subnetwork.of(pool[at])
                if subnetwork not in known:
                    break
            else:
                break
            known.add(subnetwork)
            batch.append(subnetwork)
            # until it is evaluated, it is believed to be as expected
            believed.append(Evaluated("", subnetwork, float(np.exp(mean[at])), float(ms[at])))
        return batch

    def tell(self, found: Sequence[Evaluated]) -> None:
        self.evaluated += found

    def _bred(self, surrogate: Surrogate) -> Integers:
        """Genomes `(n, blocks, 2)` bred from the front by what the surrogate expects of them."""
        parents = genomes([c.subnetwork for c in front(self.evaluated)])
        others = genomes([c.subnetwork for c in self.evaluated])
        pool = np.concatenate([parents, others, self.offered])
        for _ in range(_GENERATIONS):
            children = self._children(pool, _POOL)
            pool = np.unique(np.concatenate([pool, children]), axis=0)
            mean, deviation = surrogate.predict(pool)
            ms = self.problem.predictor.predict_many(pool)
            gains = expected_gains(self.problem, self.evaluated, ms, mean, deviation)
            # the best of every stretch of latencies, so that the pool keeps the whole range
            order = np.argsort(-gains, kind="stable")
            ends = self.problem.latencies(16)
            stretch = np.searchsorted(ends, ms[order])
            rank = np.array([np.sum(stretch[:i] == s) for i, s in enumerate(stretch)])
            pool = pool[order[np.argsort(rank, kind="stable")][:_POOL]]
        return pool

    def _children(self, parents: Integers, number: int) -> Integers:
        """Blocks from either of two parents, and about two of a child's widths moved."""
        rng = self.rng
        one, other = (parents[rng.integers(len(parents), size=number)] for _ in range(2))
        blocks = one.shape[1]
        children = np.where(rng.random((number, blocks, 1)) < 0.5, one, other)
        children = np.where(rng.random((number, 1, 1)) < 0.5, one, children)
        for i, options in enumerate(self.problem.options):
            present = children[:, i, 0] > 0
            for axis, widths in enumerate(options):
                reach = max(1, round(_REACH * len(widths)))
                at = np.searchsorted(widths, np.maximum(children[:, i, axis], widths[0]))
                at += rng.integers(-reach, reach + 1, number)
                moved = widths[np.clip(at, 0, len(widths) - 1)]
                moves = present & (rng.random(number) < 2 / (2 * blocks))
                children[moves, i, axis] = moved[moves]
            if self.problem.space.blocks[i].droppable:
                toggles = rng.random(number) < _DROP
                middle = [int(np.median(widths)) for widths in options]
                nearest = [
                    w[np.argmin(np.abs(w - m))] for w, m in zip(options, middle, strict=True)
                ]
                children[toggles & ~present, i] = nearest
                children[toggles & present, i] = 0
        return children[(children[..., 0] > 0).any(axis=1)]


def _with_all_that_counts(problem: FrontProblem, evaluated: Sequence[Evaluated]) -> FrontProblem:
    """The problem as it is, unless half of the structures are too bad to count: then all count."""
    signals = [c.signal for c in evaluated]
    if np.median(signals) < problem.worst:
        return problem
    return replace(problem, worst=float(max(signals)))


def starts(problem: FrontProblem, number: int, alike: float = 0.5) -> list[Subnetwork]:
    """So many structures over the whole range: some with all layers alike, then proven best.

    Those of the aims come first; then the range is gone through in even steps.

    Args:
        alike: share of those with all layers alike.
    """
    found: dict[Subnetwork, None] = {}
    for ms in problem.aims:
        found |= dict.fromkeys([*(_alike(problem, ms) if alike else ()), *_proven(problem, ms)])
    for kind, most in ((_alike, int(alike * number)), (_proven, number)):
        step = max(1, (most - len(found)) // (1 if kind is _alike else 2))
        while len(found) < most and step <= _FINEST:
            for ms in problem.latencies(step)[::-1]:
                found |= dict.fromkeys(kind(problem, float(ms)))
            step *= 2
    return list(found)[:number]


_FINEST = 256  # latencies that starts are sought at


def _alike(problem: FrontProblem, ms: float) -> list[Subnetwork]:
    """The widest that has all layers alike within a latency."""
    tables = Tables.of(problem.space, problem.loss, problem.predictor.near(ms))
    widest = uniform(problem.space, tables, ms)
    return [] if widest is None else [tables.subnetwork(widest)]


def _proven(problem: FrontProblem, ms: float) -> list[Subnetwork]:
    """The best of all blocks and of any, under the additive loss, within a latency."""
    tables = Tables.of(problem.space, problem.loss, problem.predictor.near(ms))
    found = []
    for these in (tables, tables.without_drops()):
        try:
            best = solve_tables(these, ms)
        except BudgetError:
            continue
        choice = fill(these, these.choice(best.subnetwork), ms)
        found.append(these.subnetwork(choice))
    return found


def expected_gains(
    problem: FrontProblem,
    evaluated: Sequence[Evaluated],
    ms: Floats,
    mean: Floats,
    deviation: Floats,
) -> Floats:
    """By how much each unseen structure is expected to add to the front's hypervolume, `(n,)`.

    Latencies are known, so a structure gains, at every latency from its own on, what its signal
    is below the best one there; at each of the problem's aims once more, by its weight.

    Args:
        ms: `(n,)`, latencies.
        mean, deviation: `(n,)`, of the logarithm of the signal.
    """
    from scipy.stats import norm

    best = [c for c in front(evaluated) if c.predicted_ms < problem.most_ms]
    edges = np.array([problem.least_ms, *(c.predicted_ms for c in best), problem.most_ms])
    edges = np.maximum.accumulate(np.maximum(edges, problem.least_ms))
    levels = np.array([problem.worst, *(min(c.signal, problem.worst) for c in best)])
    # how much of each stretch between two of the front's structures is to the right of each one
    widths = np.clip(edges[1:] - np.maximum(edges[:-1], ms[:, None]), 0, None)
    if problem.aims:
        aims = np.array(problem.aims)
        weight = _AIMED * (problem.most_ms - problem.least_ms) / len(aims)
        widths = np.hstack([widths, weight * (ms[:, None] <= aims)])
        levels = np.append(levels, [_level(problem, evaluated, aim) for aim in aims])
    total = np.zeros(len(ms))
    for z in norm.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES):
        signals = np.exp(mean + z * deviation)
        total += (widths * np.clip(levels - signals[:, None], 0, None)).sum(axis=1)
    return total / _QUANTILES


def _level(problem: FrontProblem, evaluated: Sequence[Evaluated], ms: float) -> float:
    """The best signal within a latency; at most the worst that counts."""
    return min([problem.worst, *(c.signal for c in evaluated if c.predicted_ms <= ms)])
