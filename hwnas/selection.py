"""From the super-network to the finalists of one budget: search, time the structures, search again.

Latency depends on shapes, not on weights, so the finalists' structures are timed on the target
before any of them is trained, in pairs with the baseline. A structure that misses the budget is
dropped, the table's scale is corrected by what was measured, and the search is made again, a few
times at most. If nothing fits, the error names the fastest structure that was possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from hwnas.errors import BudgetError
from hwnas.latency.predictor import LatencyPredictor
from hwnas.search.evolution import GROUPS, Evaluated, group_of
from hwnas.space import Subnetwork


@dataclass(frozen=True)
class Allowance:
    """A budget as the search sees it."""

    text: str  # as the user wrote it
    ms: float
    margin: float  # share of the budget that the search stays below it
    tolerance: float  # share of the budget by which a measurement may exceed it, for noise


class TimedStructure(BaseModel):
    """A structure that was timed on the target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    genome: list[list[int]]
    divergence: float | None  # from the teacher, with inherited weights; None if not looked at
    predicted_ms: float
    measured_ms: float
    round: int

    @property
    def subnetwork(self) -> Subnetwork:
        return Subnetwork.of(self.genome)

    @property
    def group(self) -> str:
        """The kind of structure that it competes in."""
        return group_of(self.kind, self.subnetwork)


class Selection(BaseModel):
    """The structures that go on to training, all within the budget, and how they were found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    structures: list[TimedStructure]
    timed: list[TimedStructure]  # all that were, those that missed included
    rounds: int
    scale: float  # correction of the table that the last round used


# (predictor, budget in ms, round) -> candidates for training, best first
Proposer = Callable[[LatencyPredictor, float, int], Iterable[Evaluated]]


def select(
    propose: Proposer,
    time_structure: Callable[[Subnetwork], float],
    predictor: LatencyPredictor,
    allowance: Allowance,
    rounds: int,
) -> Selection:
    """Propose structures, time them, correct the predictor's scale, until the proposed ones fit.

    Args:
        time_structure: measured latency in ms, paired with the baseline.

    Raises:
        BudgetError: no structure was measured within the budget.
    """
    scale = 1.0
    timed: list[TimedStructure] = []
    fitting: dict[str, TimedStructure] = {}
    aim = allowance.ms * (1 - allowance.margin)
    number = 0
    for number in range(1, rounds + 1):
        try:
            proposals = list(propose(predictor.scaled(scale), aim, number))
        except BudgetError:
            if not timed:
                raise
            break
        fresh = [
            TimedStructure(
                kind=p.kind,
                genome=p.subnetwork.genome,
                divergence=None if math.isnan(p.divergence) else p.divergence,
                predicted_ms=p.predicted_ms,
                measured_ms=time_structure(p.subnetwork),
                round=number,
            )
            for p in proposals
            if group_of(p.kind, p.subnetwork) not in fitting
        ]
        timed += fresh
        fitting |= {t.group: t for t in fresh if t.measured_ms <= allowance.ms}
        misses = [t.measured_ms / t.predicted_ms for t in fresh if t.group not in fitting]
        if not misses:
            break
        scale *= max(misses)
    if not fitting:
        # within the noise of the measurement: the verification has the last word
        near = allowance.ms * (1 + allowance.tolerance / 2)
        ranked = sorted((t for t in timed if t.measured_ms <= near), key=lambda t: -t.measured_ms)
        fitting = {t.group: t for t in ranked}
    if not fitting:
        fastest = min(timed, key=lambda t: t.measured_ms)
        raise BudgetError(
            f"budget {allowance.text} ({allowance.ms:.2f} ms): nothing met it in {rounds} rounds; "
            f"the fastest was {fastest.measured_ms:.2f} ms ({fastest.subnetwork})"
        )
    structures = [fitting[group] for group in GROUPS if group in fitting]
    return Selection(structures=structures, timed=timed, rounds=number, scale=scale)
