"""From the super-network to the finalists of one budget: search, time the structures, search again.

Latency depends on shapes, not on weights, so the finalists' structures are timed on the target
before any of them is trained, in pairs with the baseline. A kind of structure whose best one
misses the budget, or is so much faster than predicted that it leaves budget unused, is searched
again with the table corrected by what was measured, a few times at most. The correction is the
kind's own: what makes one odd structure slow says little of the others. If nothing fits, the
error names the fastest structure that was possible.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from hwnas.errors import BudgetError
from hwnas.latency.predictor import LatencyPredictor
from hwnas.search.evolution import GROUPS, Evaluated, group_of
from hwnas.subnetwork import Subnetwork


@dataclass(frozen=True)
class Allowance:
    """A budget as the search sees it."""

    text: str  # as the user wrote it
    ms: float
    margin: float  # share of the budget that the search stays below it
    tolerance: float  # share of the budget by which a measurement may exceed it, for noise

    @property
    def aim(self) -> float:
        """Predicted ms that the search stays within."""
        return self.ms * (1 - self.margin)


class TimedStructure(BaseModel):
    """A structure that was timed on the target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    genome: list[list[int]]
    signal: float | None  # of quality, with inherited weights; None if not looked at
    predicted_ms: float
    measured_ms: float
    round: int
    deployment: str = ""  # the target that it is served at, if that is not the run's

    @property
    def subnetwork(self) -> Subnetwork:
        return Subnetwork.of(self.genome)

    @property
    def group(self) -> str:
        """The group that it competes in."""
        return group_of(self.subnetwork)


class Selection(BaseModel):
    """The structures that go on to training, all within the budget, and how they were found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    structures: list[TimedStructure]
    timed: list[TimedStructure]  # all that were, those that missed included
    rounds: int
    scales: dict[str, float]  # last corrections of the table, by kind of structure; 1 if right


_UNUSED = 0.04  # of the predicted latency, by which a structure may be faster without a new search

# (predictor, budget in ms, round) -> candidates for training, best first
Proposer = Callable[[LatencyPredictor, float, int], Iterable[Evaluated]]


def select(
    propose: Proposer,
    time_structure: Callable[[Subnetwork], float],
    predictor: LatencyPredictor,
    allowance: Allowance,
    rounds: int,
    loss: float = 0.0,
) -> Selection:
    """Propose structures, time them, correct the predictor, until the proposed ones fit.

    Args:
        time_structure: measured latency in ms, paired with the baseline.
        loss: by which all signals are higher once the structures are served.

    Raises:
        BudgetError: no structure was measured within the budget.
    """
    scales = dict.fromkeys(GROUPS, 1.0)
    wanted = set(GROUPS)
    timed: list[TimedStructure] = []
    fitting: dict[str, TimedStructure] = {}
    number = 0
    while wanted and number < rounds:
        number += 1
        fresh: list[TimedStructure] = []
        for scale in sorted({scales[group] for group in wanted}):
            try:
                proposals = list(propose(predictor.scaled(scale), allowance.aim, number))
            except BudgetError:
                if not timed:
                    raise
                continue
            sought = {group for group in wanted if scales[group] == scale}
            fresh += _timed(proposals, sought, timed + fresh, time_structure, number, loss)
        timed += fresh
        wanted = set()
        for group in GROUPS:
            found = [t for t in fresh if t.group == group]
            fit = [t for t in found if t.measured_ms <= allowance.ms]
            best = min(fit, key=_rank, default=None)
            if best is not None:
                fitting[group] = min(best, fitting.get(group, best), key=_rank)
            if found and (best is None or _error(best) < 1 - _UNUSED):
                scales[group] *= statistics.median(map(_error, found))
                wanted.add(group)
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
    return Selection(structures=structures, timed=timed, rounds=number, scales=scales)


def best_of(selections: Mapping[str, Selection]) -> Selection:
    """One selection out of several deployments': of each kind of structure the best.

    Args:
        selections: by the deployment's target; "" for the run's own.
    """
    every = [
        (t.model_copy(update={"deployment": name}), t in selection.structures)
        for name, selection in selections.items()
        for t in selection.timed
    ]
    structures = [
        min((t for t, fits in every if fits and t.group == group), key=_rank, default=None)
        for group in GROUPS
    ]
    return Selection(
        structures=[structure for structure in structures if structure is not None],
        timed=[t for t, _ in every],
        rounds=max(selection.rounds for selection in selections.values()),
        scales={
            f"{group} {name}".strip(): scale
            for name, selection in selections.items()
            for group, scale in selection.scales.items()
        },
    )


def _timed(
    proposals: Iterable[Evaluated],
    sought: Collection[str],
    earlier: Iterable[TimedStructure],
    time_structure: Callable[[Subnetwork], float],
    number: int,
    loss: float,
) -> list[TimedStructure]:
    """The proposals of the sought kinds that were not timed before."""
    known = {t.subnetwork for t in earlier}
    return [
        TimedStructure(
            kind=p.kind,
            genome=p.subnetwork.genome,
            signal=None if math.isnan(p.signal) else p.signal + loss,
            predicted_ms=p.predicted_ms,
            measured_ms=time_structure(p.subnetwork),
            round=number,
        )
        for p in proposals
        if group_of(p.subnetwork) in sought and p.subnetwork not in known
    ]


def _error(structure: TimedStructure) -> float:
    return structure.measured_ms / structure.predicted_ms


def _rank(structure: TimedStructure) -> tuple[float, float]:
    """The lower the signal the better, or, where it was not looked at, the more of the budget."""
    apart = math.inf if structure.signal is None else structure.signal
    return apart, -structure.measured_ms
