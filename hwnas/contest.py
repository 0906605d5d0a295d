"""The contest for each budget: structures found and timed, finalists trained, one winner.

The best widths compete with the best structure of fewer blocks. The largest budget is contested
first, and a smaller budget's finalists may go on from its winner's weights: nested widths let one
training serve many budgets. A rival strategy (`uniform`, `layers`) enters one structure by its
rule, trained directly for the same total compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas import stages
from hwnas.clock import StructureClock
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import BudgetError
from hwnas.files import read_model, write_json
from hwnas.front_search import FrontSearch, Remembered, one_by_one
from hwnas.importance.scores import Importance
from hwnas.judge import Judge
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget
from hwnas.limits import Limits, limits_at
from hwnas.models import load
from hwnas.progress import bar
from hwnas.search.evolution import Evaluated, evolve_at, finalists
from hwnas.search.front import EvaluateAll
from hwnas.search.seeds import seeds
from hwnas.second_search import read_corrections
from hwnas.selection import Allowance, Proposer, Selection, TimedStructure, best_of, select
from hwnas.space import SearchSpace
from hwnas.stages import Inputs
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Candidate, Finalist
from hwnas.tasks.predict import predict
from hwnas.training.baseline import read_history
from hwnas.training.compute import FORWARD, step_cost
from hwnas.training.halving import START, Entrant, Rung, halve, rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwnas.deployments import Deployment
    from hwnas.search.exact import BlockLoss
    from hwnas.training.memory import Memory


@dataclass
class Contest:
    """What the search and the finalists of every budget share."""

    inputs: Inputs
    table: LatencyTable
    space: SearchSpace
    scores: Importance
    teacher: PreTrainedModel  # the baseline
    judge: Judge
    start: SuperNetwork  # the students' start, reordered
    network: SuperNetwork | None  # the trained super-network; None where a rival shrinks directly
    time: Callable[[Subnetwork], float] | None = None  # ms of a structure; None: by the clock
    evaluate_all: EvaluateAll | None = None  # by workers; None: here, one after the other
    first: Sequence[Subnetwork] = ()  # structures that a search of the front looks at first
    trains: bool = True  # whether finalists are trained; else they keep the network's weights
    stoppable: bool = False  # whether Ctrl-C ends such a search, and not the run
    deployments: Sequence[Deployment] = ()  # that compete with the target's own
    deployment: Deployment | None = None  # the one that is looked at; None: the target's own

    def at(self, deployment: Deployment) -> Contest:
        """The same contest at one of its other deployments, in milliseconds of the same clock."""
        return replace(self, table=deployment.table, deployments=(), deployment=deployment)

    @property
    def deployment_name(self) -> str:
        """Of the one that is looked at; empty for the target's own."""
        return self.deployment.name if self.deployment else ""

    @property
    def reference_ms(self) -> float:
        """The full model's latency at the run's target, of which budgets are shares."""
        return self.deployment.reference_ms if self.deployment else self.table.reference_ms

    @property
    def scale(self) -> float:
        """Milliseconds on the run's clock for one of the table's."""
        return self.deployment.scale if self.deployment else 1.0

    @cached_property
    def clock(self) -> StructureClock:
        """Times structures of every budget."""
        inputs = self.inputs
        return StructureClock(
            config=inputs.config,
            target=self.deployment.target if self.deployment else inputs.target,
            reference_ms=self.table.reference_ms * self.scale,
            pairs=inputs.recipe.measure.pairs,
            repeats=inputs.recipe.measure.repeats,
            directory=inputs.directory,
            kept_as=f"{self.deployment_name} structure".strip(),
        )

    @cached_property
    def baseline(self) -> SuperNetwork:
        """The teacher's weights, of which structures that leave out little are best cut."""
        history = read_history(self.inputs.path / "baseline")
        if history.start_steps == history.steps:
            return self.start
        return stages.baseline_network(self.inputs, self.scores)

    def signal(self, subnetwork: Subnetwork) -> float:
        """The quality signal of a subnetwork, with whichever weights it has the better one.

        A super-network that also serves narrow structures is worse than the baseline for those that
        are almost whole; finalists start from whatever serves them best.
        """
        assert self.network is not None
        origins = (self.network, self.baseline) if self.trains else (self.network,)
        return min(self.judge.of(network, subnetwork) for network in origins)

    @cached_property
    def front(self) -> FrontSearch:
        """The search that all budgets share, unless the recipe wants evolution for each."""
        inputs = self.inputs
        assert inputs.recipe.search.algorithm != "evolution"
        each = self.evaluate_all or one_by_one(self.signal)
        return FrontSearch(
            space=self.space,
            loss=self.loss,
            judge=self.judge,
            evaluate_all=Remembered(inputs.directory, each),
            directory=inputs.directory,
            algorithm=inputs.recipe.search.algorithm,
            evaluations=inputs.plan.evaluations * len(inputs.recipe.budgets),
            seed=inputs.recipe.seed,
            aims=[self.allowance(budget).aim for budget in inputs.recipe.budgets],
            start=self.first,
            stoppable=self.stoppable,
            deployment=self.deployment_name,
            allows=self.allows,
            within_size=self.within_limits if self.limits else None,
        )

    def allows(self, subnetwork: Subnetwork) -> bool:
        """Whether a subnetwork keeps every limit beside its latency's."""
        return self.limits is None or self.limits.allows(subnetwork)

    def within_limits(
        self, predictor: LatencyPredictor, budget_ms: float, hidden: int = 0
    ) -> LatencyPredictor:
        """The additive predictor, or one of latency and what else is limited together.

        Raises:
            BudgetError: nothing is within budget and limits at that residual width.
        """
        if self.limits is None:
            return predictor
        here = predictor.at_hidden(hidden)
        mixed = self.limits.mixed(here, self.space, self.loss, budget_ms, hidden)
        return replace(predictor, narrower={hidden: mixed}) if hidden else mixed

    def allowance(self, budget: str) -> Allowance:
        """What a budget allows, by the table's latency of the full model.

        Less, where the final file of an earlier search took longer than that.
        """
        measure = self.inputs.recipe.measure
        corrected = read_corrections(self.inputs.path).budgets.get(budget)
        return Allowance(
            text=budget,
            ms=Budget.parse(budget).in_ms(self.reference_ms)
            / (corrected.factor if corrected else 1),
            margin=measure.margin,
            tolerance=measure.tolerance,
        )

    @cached_property
    def limits(self) -> Limits | None:
        """What else is limited, where the recipe says so."""
        target = self.deployment.target if self.deployment else self.inputs.target
        found = limits_at(self.inputs, target)
        for limit in found:
            limit.check(self.space)
        return Limits(found) if found else None

    @cached_property
    def loss(self) -> BlockLoss:
        """Additive loss of widths, for the exact answers that seed the search."""
        return self.scores.loss()

    @cached_property
    def memory(self) -> Memory | None:
        """Of what the teacher says to the finalists, where they see rows again and again."""
        from hwnas.training.memory import Memory

        inputs = self.inputs
        steps = inputs.plan.winner_steps + inputs.plan.heir_steps * (len(inputs.recipe.budgets) - 1)
        return Memory.if_worth_it(
            self.teacher,
            inputs.tokenizer,
            inputs.train,
            seen=steps * inputs.plan.batch,
            states=inputs.recipe.training.states_weight > 0,
            relations=inputs.recipe.training.relations_weight > 0,
        )


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
        for one in (contest, *map(contest.at, contest.deployments)):
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
    lines = inputs.directory.lines("candidates.jsonl")
    # an interrupted search is made again, with the signals that it had found
    known = {Subnetwork.of(line["genome"]): line["signal"] for line in lines}
    searched = (budget, contest.deployment_name)
    others = [line for line in lines if (line["budget"], line.get("deployment", "")) != searched]
    inputs.directory.rewrite("candidates.jsonl", others)

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


def train_finalists(
    contest: Contest,
    budget: str,
    selection: Selection,
    *,
    steps: int | None = None,
    forerunner: Winner | None = None,
) -> Winner:
    """`finalists/<budget>/`: the structures trained on in successive halving; the best of them.

    Args:
        steps: training steps that the winner takes here; by default, as the plan says.
        forerunner: the winner of a larger budget, whose weights may be cut down for this one.
    """
    inputs = contest.inputs
    folder = inputs.path / "finalists" / Budget.parse(budget).folder
    origins = _origins(contest, forerunner)
    entrants = [_entrant(contest, s, origins, steps) for s in selection.structures]
    served = {str(d.target): d.name for d in contest.deployments}
    examples = inputs.train if contest.memory is None else contest.memory.examples
    seen = inputs.plan.supernet_steps if contest.network else 0
    if forerunner is not None:
        seen += inputs.plan.winner_steps
    rungs = [Rung(None, 1)]
    if len(entrants) > 1:
        first = min(inputs.plan.first_rung_steps, *(entrant.steps - 1 for entrant in entrants))
        rungs = [Rung(first, 1), Rung(None, 1)]
    halving = halve(
        entrants,
        lambda entrant: origins[entrant.start].extract(entrant.subnetwork),
        inputs.tokenizer,
        rows(examples, seen * inputs.plan.batch, len(examples)),
        inputs.choice_validation,
        inputs.task.kind,
        inputs.task.metric,
        rungs,
        inputs.optimization(0, inputs.recipe.training.finalist_rate, 10),
        folder,
        contest.teacher,
        contest.memory,
    )
    won = {(r.entrant, r.rung) for r in halving.results if r.rung > 0} | {
        (halving.winner, r) for r in range(START, len(rungs))
    }
    standing = [
        Finalist(
            budget=budget,
            round=selection.rounds,
            kind=entrants[r.entrant].kind,
            genome=entrants[r.entrant].subnetwork.genome,
            start=entrants[r.entrant].start,
            rung=r.rung,
            steps=r.steps,
            loss=r.loss,
            metric=r.metric,
            survived=(r.entrant, r.rung) in won,
            deployment=served.get(selection.structures[r.entrant].deployment, ""),
        )
        for r in halving.results
    ]
    winner = entrants[halving.winner]
    return Winner(
        budget=budget,
        structure=selection.structures[halving.winner],
        start=winner.start,
        weights=halving.weights,
        steps=origins[winner.start].steps + halving.steps,
        rounds=selection.rounds,
        standing=standing,
    )


@dataclass(frozen=True)
class Winner:
    """The trained winner of a budget's contest."""

    budget: str
    structure: TimedStructure
    start: str
    weights: Path
    steps: int  # that its weights have seen, all stages
    rounds: int  # of search that the budget took
    standing: list[Finalist]


@dataclass(frozen=True)
class Origin:
    """Weights that finalists may be cut from."""

    network: SuperNetwork
    within: Subnetwork  # what of the full model the network holds
    steps: int  # that its weights have seen, all stages
    heir: bool = False  # whether what is cut from it needs the fewer steps of an heir

    def holds(self, subnetwork: Subnetwork) -> bool:
        """Whether the subnetwork is a prefix of it in every block."""
        pairs = zip(subnetwork.blocks, self.within.blocks, strict=True)
        if self.within.hidden and not 0 < subnetwork.hidden <= self.within.hidden:
            return False
        return all(a.heads <= b.heads and a.ffn <= b.ffn for a, b in pairs)

    def nested(self, subnetwork: Subnetwork) -> Subnetwork:
        """The subnetwork in terms of the blocks that the network has."""
        blocks = tuple(subnetwork.blocks[i] for i, _ in self.within.kept)
        hidden = subnetwork.hidden
        return Subnetwork(blocks, 0 if hidden == self.within.hidden else hidden)

    def extract(self, subnetwork: Subnetwork) -> PreTrainedModel:
        """The subnetwork as a dense model."""
        return self.network.extract(self.nested(subnetwork))

    def divergence(self, subnetwork: Subnetwork, contest: Contest) -> float:
        """From the teacher, on the search's validation rows."""
        with self.network.as_subnetwork(self.nested(subnetwork)) as model:
            answers = predict(model, contest.inputs.search_validation)
        return contest.judge.divergence(answers)


_BASELINE = "baseline"
_WHOLE = ("teacher", _BASELINE)


def _origins(contest: Contest, forerunner: Winner | None) -> dict[str, Origin]:
    """Every origin by its name in `finalists.jsonl`."""
    inputs = contest.inputs
    full = Subnetwork.full(inputs.shape)
    history = read_history(inputs.path / "baseline")
    start_steps = history.start_steps
    origins = {
        "teacher": Origin(contest.start, full, start_steps),
        # trained already, so what is cut of it needs the fewer steps of an heir
        _BASELINE: Origin(contest.baseline, full, history.steps, heir=True),
    }
    if contest.network is not None:
        steps = start_steps + inputs.plan.supernet_steps
        origins["supernet"] = Origin(contest.network, full, steps)
    if forerunner is not None:
        network = SuperNetwork(load(forerunner.weights))
        within = forerunner.structure.subnetwork
        origins[f"{forerunner.budget} winner"] = Origin(
            network, within, forerunner.steps, heir=True
        )
    return origins


def _entrant(
    contest: Contest, structure: TimedStructure, origins: dict[str, Origin], steps: int | None
) -> Entrant:
    """Start from whichever weights serve the structure best: those that diverge least.

    But leaving out blocks is judged by training only: there the super-network's weights were the
    worse start (METHODS), so a structure starts from weights of the whole model, the students' or
    the baseline's, or from such as were trained with just its blocks.
    """
    subnetwork = structure.subnetwork
    fitting = {
        name: origin
        for name, origin in origins.items()
        if origin.holds(subnetwork) and (name in _WHOLE or origin.within.depth == subnetwork.depth)
    }
    start = "teacher"
    if len(fitting) > 1:
        start = min(fitting, key=lambda name: fitting[name].divergence(subnetwork, contest))
    if steps is None:
        plan = contest.inputs.plan
        steps = plan.heir_steps if origins[start].heir else plan.winner_steps
    losses = {str(d.target): d.anchor.loss for d in contest.deployments}
    whole = start == _BASELINE
    return Entrant(
        structure.kind,
        subnetwork,
        start,
        steps,
        losses.get(structure.deployment, 0.0),
        trained=whole,
        rate=contest.inputs.recipe.training.baseline_rate if whole else None,
    )


def rival_steps(contest: Contest, selection: Selection, compute: float) -> int:
    """Steps that `compute` full-model steps allow the one structure of a rival."""
    structure = selection.structures[0].subnetwork
    cost = step_cost(structure, contest.inputs.shape, contest.inputs.mean_length)
    return max(1, round(compute / (cost + FORWARD)))
