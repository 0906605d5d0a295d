"""Choosing a budget's structures: what a search or a rival's rule proposes, timed on the target.

The best widths compete with the best structure of fewer blocks. A rival strategy (`uniform`,
`layers`) enters one structure by its rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hwnas.errors import BudgetError
from hwnas.files import read_model, write_json
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.target import Budget
from hwnas.progress import bar
from hwnas.search.evolution import Evaluated, evolve_at, finalists
from hwnas.search.seeds import seeds
from hwnas.selection import Proposer, Selection, best_of, select
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Candidate

if TYPE_CHECKING:
    from hwnas.contest import Contest


def choose_structures(contest: Contest, budget: str) -> Selection:
    """`selection/<budget>.json`: structures that were measured within the budget.

    Of several deployments, the best structure of each kind, however it is served.

    Raises:
        BudgetError: nothing fits.
    """
    folder = Budget.parse(budget).folder
    path = contest.inputs.path / "selection" / f"{folder}.json"
    if not path.exists():
        found: dict[str, Selection] = {}
        refused: list[BudgetError] = []
        for one in (contest, *contest.elsewhere):
            try:
                target = str(one.deployment.target) if one.deployment else ""
                found[target] = _selected(one, budget)
            except BudgetError as error:
                refused.append(error)
        if not found:
            raise refused[0]
        write_json(path, best_of(found) if contest.deployments else found[""])
    return read_model(path, Selection)


def _selected(contest: Contest, budget: str) -> Selection:
    """Structures of one deployment that were measured within the budget."""
    measure = contest.inputs.recipe.measure
    return select(
        _proposer(contest, budget),
        contest.time or contest.clock.time,
        contest.table.predictor(measure.confidence).scaled(contest.scale),
        contest.allowance(budget),
        measure.rounds,
        contest.deployment.anchor.signal if contest.deployment else 0.0,
    )


def _proposer(contest: Contest, budget: str) -> Proposer:
    """Proposals by the recipe's rival rule or search."""
    if contest.network is None:
        return _shrink(contest)
    evolution = contest.inputs.recipe.search.algorithm == "evolution"
    search = _search(contest, budget) if evolution else contest.front.proposer(budget)
    most = contest.inputs.plan.entrants + bool(contest.space.hidden)
    return lambda *sought: list(search(*sought))[:most]


def _search(contest: Contest, budget: str) -> Proposer:
    """Proposals by search: seeds, then evolution, on the recipe's quality signal."""
    inputs = contest.inputs
    # an interrupted search is made again, with the signals that it had found; its lines stay
    recorded = [Candidate(**line) for line in inputs.directory.lines("candidates.jsonl")]
    known = {Subnetwork.of(line.genome): line.signal for line in recorded}

    def propose(predictor: LatencyPredictor, budget_ms: float, number: int) -> Iterable[Evaluated]:
        with bar(f"search {budget}, round {number}", inputs.plan.evaluations) as advance:

            def evaluate(subnetwork: Subnetwork) -> float:
                if subnetwork not in known:
                    known[subnetwork] = contest.signal(subnetwork)
                signal: float = known[subnetwork]
                return signal

            def record(candidate: Evaluated) -> None:
                advance(1)
                line = Candidate(
                    budget=budget,
                    round=number,
                    kind=candidate.kind,
                    genome=candidate.subnetwork.genome,
                    signal=candidate.signal,
                    predicted_ms=_in_ms(contest, predictor, candidate).predicted_ms,
                    deployment=contest.deployment_name,
                )
                if line not in recorded:
                    inputs.directory.append("candidates.jsonl", line.model_dump())

            evaluated = []
            additive = predictor.near(budget_ms)
            refused: list[BudgetError] = []
            for hidden, share in _residual_widths(contest, predictor, budget_ms):
                try:
                    allowed = contest.within_limits(additive, budget_ms, hidden)
                except BudgetError as error:
                    refused.append(error)
                    continue
                evaluated += evolve_at(
                    hidden,
                    contest.space,
                    contest.loss,
                    allowed,
                    budget_ms,
                    evaluate,
                    evaluations=max(1, round(share * inputs.plan.evaluations)),
                    seed=inputs.recipe.seed * 1000 + number,
                    on_candidate=record,
                )
            if refused and not evaluated:
                raise refused[0]
        return _within_limits(contest, predictor, evaluated, budget_ms)

    return propose


def _in_ms(contest: Contest, predictor: LatencyPredictor, candidate: Evaluated) -> Evaluated:
    """The candidate with its latency, also where the search went by a mixture with others."""
    if contest.limits is None:
        return candidate
    return replace(candidate, predicted_ms=predictor.predict(candidate.subnetwork))


def _within_limits(
    contest: Contest,
    predictor: LatencyPredictor,
    evaluated: Sequence[Evaluated],
    budget_ms: float,
) -> list[Evaluated]:
    """The finalists among those within the limits.

    Raises:
        BudgetError: there are none.
    """
    found = [_in_ms(contest, predictor, c) for c in evaluated if contest.allows(c.subnetwork)]
    best = finalists(found, budget_ms)
    if not best and contest.limits is not None:
        raise BudgetError(
            f"none of {len(evaluated)} structures is within {budget_ms:.3g} ms, {contest.limits}"
        )
    return best


def _residual_widths(
    contest: Contest, predictor: LatencyPredictor, budget_ms: float
) -> list[tuple[int, float]]:
    """The residual widths to search at, each with its share of the evaluations.

    Those at which nothing fits the budget are passed over, but the model's own never is.
    """
    narrower = [
        hidden
        for hidden in contest.space.hidden
        if predictor.predict(contest.space.smallest_width.narrowed(hidden)) <= budget_ms
    ]
    return [(hidden, 1 / (1 + len(narrower))) for hidden in (0, *narrower)]


def _shrink(contest: Contest) -> Proposer:
    """Proposals of a rival's one rule: all layers alike, or the first layers whole.

    Either rule may use the budget up, for the rivals are compared at the same latency: by another
    ratio of heads and FFN in all layers, or by one layer more, as wide as then fits. Where
    several are proposed, the one that is measured nearest to the budget is trained.
    """
    strategy = contest.inputs.recipe.strategy
    kinds = ("uniform", "uniform-heads", "uniform-ffn")

    def propose(predictor: LatencyPredictor, budget_ms: float, number: int) -> Iterable[Evaluated]:
        allowed = contest.within_limits(predictor.near(budget_ms), budget_ms)
        found = seeds(contest.space, contest.loss, allowed, budget_ms)
        found = [seed for seed in found if contest.allows(seed.subnetwork)]
        if strategy == "layers":
            chosen = [s for s in found if s.kind == "layers-filled"]
            chosen = chosen or [s for s in found if s.kind == "layers"]
        else:
            chosen = [s for s in found if s.kind in kinds]
        if not chosen:
            raise BudgetError(f"budget {budget_ms:.3g} ms: no structure of kind {strategy} fits")
        return [
            Evaluated(strategy, s.subnetwork, float("nan"), predictor.predict(s.subnetwork))
            for s in chosen
        ]

    return propose
