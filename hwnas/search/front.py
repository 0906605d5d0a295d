"""The front of quality against latency over a whole range of budgets: the problem and the loop.

A searcher proposes structures in batches (`ask`); they are evaluated, wherever and in whatever
order; it is told what was found (`tell`). So an archive depends on the seed alone, not on how
many workers evaluate. `guided` is ours, `rivals` are the others.

Assumption: the quality signal is deterministic, lower is better; latency is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hwnas.errors import BudgetError
from hwnas.latency.predictor import LatencyPredictor
from hwnas.search.evolution import Evaluated
from hwnas.search.exact import BlockLoss
from hwnas.search.problem import Tables
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

# the quality signals of structures, in their order; lower is better
EvaluateAll = Callable[[Sequence[Subnetwork]], Sequence[float]]


@dataclass(frozen=True, eq=False)
class FrontProblem:
    """What is searched, between which latencies, and how bad a structure may be to count."""

    space: SearchSpace
    loss: BlockLoss  # the additive guess
    predictor: LatencyPredictor
    least_ms: float
    most_ms: float
    worst: float  # the signal beyond which a structure is worth nothing: the reference point's
    aims: tuple[float, ...] = ()  # latencies in the range that matter most: the budgets

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        loss: BlockLoss,
        predictor: LatencyPredictor,
        worst: float,
        least_ms: float = 0.0,
        most_ms: float | None = None,
        aims: Sequence[float] = (),
    ) -> FrontProblem:
        """The problem between the fastest and the slowest structure, or as narrow as is said.

        Raises:
            UserError: `loss` is of another model.
            BudgetError: no structure is between the two latencies.
        """
        tables = Tables.of(space, loss, predictor.near(least_ms or predictor.fixed_ms))
        fastest = predictor.predict(tables.subnetwork(tables.fastest()))
        slowest = predictor.predict(space.largest)
        most = min(slowest, most_ms) if most_ms is not None else slowest
        if fastest > most or (least_ms and least_ms > most):
            raise BudgetError(
                f"search: no structure between {least_ms:.3g} and {most:.3g} ms; the fastest is "
                f"predicted at {fastest:.3g} ms, the slowest at {slowest:.3g} ms"
            )
        return cls(space, loss, predictor, max(fastest, least_ms), most, worst, tuple(aims))

    @cached_property
    def options(self) -> list[list[Integers]]:
        """Of every block, its head counts and its FFN widths, ascending."""
        return [[np.array(b.heads), np.array(b.ffn)] for b in self.space.blocks]

    def additive_loss(self, genomes: Integers) -> Floats:
        """The guess `(n,)` for genomes `(n, blocks, 2)`."""
        total = np.zeros(len(genomes))
        for i, (heads, ffn) in enumerate(zip(self.loss.heads, self.loss.ffn, strict=True)):
            total += np.asarray(heads).take(genomes[:, i, 0])
            total += np.asarray(ffn).take(genomes[:, i, 1])
        return total

    def latencies(self, number: int) -> Floats:
        """So many latencies that divide the range evenly, the slowest end included."""
        return np.linspace(self.least_ms, self.most_ms, number + 1)[1:]


class Searcher(Protocol):
    """Proposes structures by what it was told of others."""

    def ask(self) -> list[Subnetwork]:
        """The next batch, all different from one another; empty when there is nothing left."""

    def tell(self, found: Sequence[Evaluated]) -> None:
        """What the last batch's structures are like, in their order."""


def search_front(
    problem: FrontProblem,
    searcher: Searcher,
    evaluate_all: EvaluateAll,
    evaluations: int,
    kind: str = "searched",
    on_batch: Callable[[Sequence[Evaluated]], None] = lambda batch: None,
) -> list[Evaluated]:
    """Ask, evaluate and tell until so many structures were evaluated; all of them, in order.

    A structure that is proposed again is not evaluated again, and does not count.

    Args:
        kind: of what is found, as in `candidates.jsonl`.
        on_batch: told of every batch as soon as it is evaluated.
    """
    known: dict[Subnetwork, Evaluated] = {}
    stale = 0
    while len(known) < evaluations and stale < _STALE:
        asked = searcher.ask()
        if not asked:
            break
        fresh = list(dict.fromkeys(s for s in asked if s not in known))
        fresh = fresh[: evaluations - len(known)]
        stale = 0 if fresh else stale + 1
        batch = [
            Evaluated(kind, s, float(signal), problem.predictor.predict(s))
            for s, signal in zip(fresh, evaluate_all(fresh) if fresh else (), strict=True)
        ]
        known |= {c.subnetwork: c for c in batch}
        if fresh:
            on_batch(batch)
        searcher.tell([known[s] for s in asked if s in known])
    return list(known.values())


_STALE = 100  # batches of nothing new, after which the space counts as used up


def front(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """Those that no other beats in signal and latency, the fastest first."""
    best: list[Evaluated] = []
    for candidate in sorted(evaluated, key=lambda c: (c.predicted_ms, c.signal)):
        if not best or candidate.signal < best[-1].signal:
            best.append(candidate)
    return best


def hypervolume(problem: FrontProblem, evaluated: Sequence[Evaluated]) -> float:
    """The share of the box between the range's corners that the front dominates.

    The box reaches from the fastest to the slowest latency, and from signal 0 to the worst.
    """
    from pymoo.indicators.hv import HV

    points = np.array([[c.predicted_ms, c.signal] for c in evaluated])
    if not len(points):
        return 0.0
    low = np.array([problem.least_ms, 0.0])
    high = np.array([problem.most_ms, problem.worst])
    scaled = np.maximum((points - low) / (high - low), 0.0)
    inside = scaled[(scaled <= 1).all(axis=1)]
    return float(HV(ref_point=np.ones(2))(inside)) if len(inside) else 0.0
