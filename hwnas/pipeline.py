"""A whole run: the stages in order, each noted in the run directory, so that a stopped run goes on.

    table -> baseline -> importance -> teacher -> deployments -> super-network
             -> (search -> finalists) per budget -> export -> verify -> summary and report

A rival strategy leaves the super-network and the search out, and trains its one structure for the
same total compute.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hwnas import stages
from hwnas.anatomy import find_shape
from hwnas.anatomy.dense import check_hidden
from hwnas.beside import load_beside
from hwnas.budgets import budget_share, budget_shares, check_budgets, check_limits
from hwnas.choosing import choose_structures
from hwnas.contest import Contest
from hwnas.delivery import deliver
from hwnas.deployments import TABLES, Deployment, deployments_of, tables_of, targets_of
from hwnas.elastic.adapters import merge_adapter
from hwnas.enough import take_whole
from hwnas.errors import UserError
from hwnas.files import read_model, replacing
from hwnas.finalists import Winner, rival_steps, train_finalists
from hwnas.inputs import Inputs, load_for, mean_length
from hwnas.judge import Judge
from hwnas.latency.profiling import check_phase
from hwnas.latency.runtimes import check_length, require
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import PHASES, Target
from hwnas.networks import Networks
from hwnas.processes import leader_first
from hwnas.progress import warn
from hwnas.recipe import Recipe, load_recipe
from hwnas.rundir import RunDirectory
from hwnas.search.rivals import require_algorithm
from hwnas.second_search import or_set_aside, read_corrections, set_aside
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork, macs
from hwnas.summary import Compute, Summary
from hwnas.tasks.embedding import Embedding
from hwnas.tasks.generation import EXACT_MATCH
from hwnas.tasks.loading import load_task
from hwnas.tasks.prompts import asked
from hwnas.tasks.unlabelled import load_text
from hwnas.tasks.written import branches
from hwnas.timing import latency_table
from hwnas.training.baseline import MOVEMENT
from hwnas.training.compute import FORWARD, step_cost, supernet_cost
from hwnas.vocabulary import check_trimmable

# the settings that a baseline, or a table, is made by; how long it is trained is compared apart
_OF_BASELINE = (
    "model",
    "task.",
    "target",
    "seed",
    "space.hidden",
    "compute.minutes",
    "compute.batch",
    "compute.start_steps",
    "compute.plateau_rows",
    "training.baseline_rate",
    "training.weights",
    "training.adapters.rank",
    "training.adapters.alpha",
    "training.adapters.dropout",
    "training.adapters.rate",
    "training.adapters.start",
    "training.accumulate",
    "training.precision",
    "training.dropout",
    "training.freeze_embeddings",
)


@dataclass(frozen=True)
class Given:
    """What a run may take from elsewhere instead of making it."""

    table: Path | None = None  # a latency table of this model and target
    reuse: Path | None = None  # a run whose baseline and table are taken


def run(recipe: Recipe, out: Path, *, resume: bool = False, given: Given | None = None) -> Summary:
    """Run `recipe` in the folder `out`; write `summary.json` and `report.html`, return the summary.

    Args:
        resume: go on with the run in `out`, if there is one.

    Raises:
        UserError: bad input, said before anything is written.
        BudgetError: a budget cannot be met.
    """
    given = given or Given()
    with leader_first():
        inputs = prepare(recipe, out, resume=resume, given=given)
    while True:
        contest = until_network(inputs, given, shortcut=True)
        compute = _rival_compute(inputs, given) if recipe.strategy != "search" else {}
        winners = or_set_aside(inputs, _in_turn(inputs), partial(find_winners, contest, compute))
        inputs.directory.rewrite(
            "finalists.jsonl", [f.model_dump() for w in winners.values() for f in w.standing]
        )
        table, compute_spent = contest.table, spent(contest, winners)
        del contest  # several times the model in memory, which delivering needs as well
        if not set_aside(inputs, winners, partial(finalists_cost, inputs)):
            break
    with leader_first():
        return deliver(inputs, table, winners, compute_spent)


def train_supernet(
    recipe: Recipe, out: Path, *, resume: bool = False, given: Given | None = None
) -> Contest:
    """The first part of `run`, up to the trained super-network in `out/supernet`.

    `run` goes on from there in the same folder with `resume`.

    Raises:
        UserError, BudgetError: as `run`; or the recipe's strategy needs no super-network.
    """
    if recipe.strategy != "search":
        raise UserError(
            f"strategy: {recipe.strategy} trains no super-network; choose search, or hwnas run"
        )
    with leader_first():
        inputs = prepare(recipe, out, resume=resume, given=given or Given())
    return until_network(inputs, given or Given())


def until_network(inputs: Inputs, given: Given, *, shortcut: bool = False) -> Contest:
    """Table, baseline, importance, search space and, for a search, the super-network.

    Args:
        shortcut: train no super-network where nothing has to be left out.
    """
    recipe, directory = inputs.recipe, inputs.directory
    with directory.stage("table"), leader_first():
        table = latency_table(inputs, given.table)
        whole = SearchSpace.whole(inputs.shape)
        widths = {"hidden": recipe.space.hidden}
        others = tables_of(inputs).values()
        check_budgets(inputs, table, whole.model_copy(update=widths), others)
    with directory.stage("baseline"):
        stages.baseline(inputs)
    with directory.stage("importance"), leader_first():
        scores = stages.importance(inputs)
        space = stages.search_space(inputs, table, scores)
        check_limits(inputs, space)
    with directory.stage("teacher"), leader_first():
        judge = Judge(inputs, stages.teacher_answers(inputs, scores))
    deployments: Sequence[Deployment] = ()
    if recipe.deployments:
        with directory.stage("deployments"), leader_first():
            deployments = deployments_of(inputs, judge)
    contest = Contest(
        inputs=inputs,
        table=table,
        space=space,
        scores=scores,
        networks=Networks(inputs, scores),
        judge=judge,
        network=None,
        deployments=deployments,
    )
    if recipe.strategy != "search":
        return contest
    if shortcut and recipe.search.enough:
        with leader_first():
            if take_whole(contest):
                return contest
    if recipe.unlabelled is not None:
        with directory.stage("general"):
            stages.general_network(inputs, space, contest.networks)
    with directory.stage("supernet"):
        return replace(contest, network=stages.supernet(inputs, space, contest.networks))


def prepare(recipe: Recipe, out: Path, *, resume: bool, given: Given) -> Inputs:
    """Everything that can be wrong with the input is found here, before the folder is made.

    The folder is locked until its `RunDirectory` is closed.

    Raises:
        UserError: what is wrong.
    """
    target = Target.parse(recipe.target)
    target.check_exportable(PHASES)
    require(target)
    require_algorithm(recipe.search.algorithm)
    targets_of(recipe)
    if recipe.task.usual_metric == EXACT_MATCH:
        raise UserError(
            "task.metric: exact_match takes written answers, too many to compare models by; choose "
            "token_accuracy, and score exact_match under beside"
        )
    try:
        task = load_task(recipe.task_at_target)
    except UserError as error:
        raise UserError(f"task: {error}") from None
    model, tokenizer = load_for(recipe.model, task, seed=recipe.seed)
    shape = find_shape(model.config)
    check_phase(shape, target)
    adapters = recipe.adapters
    if adapters is not None and adapters.start is not None:
        try:
            merge_adapter(model, Path(adapters.start).expanduser())
        except UserError as error:
            raise UserError(f"training.adapters.start: {error}") from None
    for name, length in (("target: seq=", target.seq), ("task.max_length: ", task.max_length)):
        if length > tokenizer.model_max_length:
            most = tokenizer.model_max_length
            raise UserError(f"{name}{length}, the model reads at most {most} tokens")
    if recipe.task.is_written:
        check_length(model.config, target)
        asked(tokenizer, "", chat=recipe.task.chat)
        if recipe.task.learn == "choices" and not branches(model):
            raise UserError(
                f"task.learn: choices are read side by side, which {model.config.model_type}'s "
                "attention cannot; use answer"
            )
    if recipe.vocabulary.trim:
        try:
            check_trimmable(model, tokenizer)
        except UserError as error:
            raise UserError(f"vocabulary.trim: {error}") from None
    for width in recipe.space.hidden:
        check_hidden(width, model.config, "space.hidden")
    if recipe.space.hidden and isinstance(task.kind, Embedding):
        raise UserError(
            "space.hidden: the residual width is what tasks of kind embedding answer with; "
            "leave it out"
        )
    if recipe.space.boundaries == "given":
        SearchSpace.given(recipe.space, shape)
    if adapters is not None and recipe.space.hidden:
        raise UserError(
            "space.hidden: adapters stand beside layers of the model's own residual width; leave "
            "it out, or train all weights (training.weights: all)"
        )
    if adapters is not None and recipe.importance.kind == "movement":
        raise UserError(
            "importance.kind: movement is of weights that are trained, which stay as they are "
            "beside adapters; choose first_order"
        )
    if recipe.importance.kind == "movement" and isinstance(task.kind, Embedding):
        raise UserError(
            "importance.kind: movement is found while a baseline is trained, and tasks of kind "
            "embedding train none; choose first_order"
        )
    if given.table is not None:
        table = LatencyTable.find(given.table)
        table.check_model(shape)
        table.check_target(target)
        for width in recipe.space.hidden:
            table.at_hidden(width)
        warn(given.table.name, table.doubts())
    if given.reuse is not None:
        _check_reuse(recipe, given.reuse)
    if recipe.unlabelled is not None:
        try:
            load_text(recipe.unlabelled)
        except UserError as error:
            raise UserError(f"unlabelled: {error}") from None
    load_beside(recipe.beside, task.max_length)
    directory = RunDirectory.open(out, recipe, resume)
    if given.reuse is not None:
        take(given.reuse, out)
    inputs = Inputs(recipe, directory, recipe.compute, task, tokenizer, model.config)
    if recipe.compute.minutes is not None:
        inputs.plan = stages.fitted_to_minutes(inputs, recipe.compute.minutes)
    return inputs


def _check_reuse(recipe: Recipe, other: Path) -> None:
    theirs = load_recipe(other / "recipe.yaml")
    difference = recipe.difference(theirs, _OF_BASELINE)
    trained, needed = (r.compute.baseline_steps(len(r.budgets)) for r in (theirs, recipe))
    if not difference and trained < needed:
        difference = f"{trained} steps there, {needed} would be fair now"
    if difference:
        raise UserError(f"{other}: its baseline is of another recipe ({difference})")
    for name in ("baseline/history.json", "table.json"):
        if not (other / name).exists():
            raise UserError(f"{other}: has no {name} yet; finish that run first")


def take(other: Path, out: Path) -> None:
    """Copy the baseline and the tables of another run."""
    if not (out / "baseline").exists():
        with replacing(out / "baseline") as partial:
            for name in ("model", "start"):
                shutil.copytree(other / "baseline" / name, partial / name)
            for name in ("history.json", MOVEMENT):
                if (other / "baseline" / name).exists():
                    shutil.copy(other / "baseline" / name, partial)
    if not (out / "table.json").exists():
        with replacing(out / "table.json") as partial:
            shutil.copy(other / "table.json", partial)
    if (other / TABLES).exists() and not (out / TABLES).exists():
        with replacing(out / TABLES) as partial:
            shutil.copytree(other / TABLES, partial)


def _in_turn(inputs: Inputs) -> list[str]:
    """The budgets as they are contested, the largest first."""
    return sorted(inputs.recipe.budgets, key=lambda budget: -budget_share(inputs, budget))


def find_winners(contest: Contest, compute: Mapping[str, float]) -> dict[str, Winner]:
    """The winner of every budget, in the recipe's order; the largest is contested first.

    Args:
        compute: full-model steps for each budget, where a rival shrinks directly.
    """
    inputs, directory = contest.inputs, contest.inputs.directory
    found: dict[str, Winner] = {}
    first: Winner | None = None
    for budget in _in_turn(inputs):
        with directory.stage("search"), leader_first():
            selection = choose_structures(contest, budget)
        with directory.stage("finalists"):
            if compute:
                steps = rival_steps(contest, selection, compute[budget])
                found[budget] = train_finalists(contest, budget, selection, steps=steps)
            else:
                found[budget] = train_finalists(contest, budget, selection, forerunner=first)
                first = first or found[budget]
    return {budget: found[budget] for budget in inputs.recipe.budgets}


def _rival_compute(inputs: Inputs, given: Given) -> dict[str, float]:
    """Full-model steps that a rival may spend on each budget: a part of the searched run's.

    Of a searched run with more budgets, it has those budgets' part.
    """
    budgets = inputs.recipe.budgets
    if given.reuse is not None and (given.reuse / "summary.json").exists():
        summary = read_model(given.reuse / "summary.json", Summary)
        theirs = summary.compute
        total = theirs.supernet + theirs.search + theirs.finalists
        of = tuple(chosen.budget for chosen in summary.chosen)
    else:
        space = read_model(inputs.path / "space.json", SearchSpace)
        of_budgets = inputs.plan.for_budgets(budget_shares(inputs))
        total, of = _network_cost(inputs, space) + of_budgets, budgets
    return parts_of(inputs, total, of)


def parts_of(inputs: Inputs, total: float, of: Sequence[str]) -> dict[str, float]:
    """What each budget of a run has of the full-model steps that were spent on the budgets `of`."""
    budgets = inputs.recipe.budgets

    def weight(budget: str) -> float:
        # budgets take about equal steps, as they do in a searched run
        return budget_share(inputs, budget) + FORWARD

    return {
        b: total * weight(b) / sum(map(weight, dict.fromkeys((*of, *budgets)))) for b in budgets
    }


def _network_cost(inputs: Inputs, space: SearchSpace) -> float:
    """Full-model steps of the super-network's training, on unlabelled text too."""
    plan, shape = inputs.plan, inputs.shape
    sandwich = stages.sandwich(inputs, space)
    cost = supernet_cost(sandwich, plan.supernet_steps, shape, inputs.mean_length)
    if plan.general_steps:
        seq = mean_length(inputs.unlabelled)
        # a step is one of the task's texts, which may be shorter
        longer = macs(Subnetwork.full(shape), shape, seq) / macs(
            Subnetwork.full(shape), shape, inputs.mean_length
        )
        cost += longer * supernet_cost(sandwich, plan.general_steps, shape, seq)
    return cost


def spent(contest: Contest, winners: dict[str, Winner]) -> Compute:
    """What was spent, in full-model steps."""
    inputs = contest.inputs
    plan = inputs.plan
    forward = plan.evaluation_rows / plan.batch * FORWARD
    evaluated = {str(line["genome"]): line for line in inputs.directory.lines("candidates.jsonl")}
    supernet = _network_cost(inputs, contest.space) if contest.network is not None else 0.0
    return Compute(
        baseline=stages.baseline(inputs).steps,
        supernet=round(supernet, 1),
        search=round(
            sum(step_cost_of(line["genome"], inputs) * forward for line in evaluated.values()), 1
        ),
        finalists=round(
            sum(finalists_cost(inputs, winner) for winner in winners.values())
            + sum(c.finalists for c in read_corrections(inputs.path).budgets.values()),
            1,
        ),
    )


def finalists_cost(inputs: Inputs, winner: Winner) -> float:
    """Full-model steps of training a budget's finalists."""
    return sum(
        (step_cost_of(f.genome, inputs) + FORWARD) * (f.steps - _before(f.rung, winner, f.genome))
        for f in winner.standing
    )


def step_cost_of(genome: list[list[int]], inputs: Inputs) -> float:
    """One training step of a genome in full-model steps."""
    return step_cost(Subnetwork.of(genome), inputs.shape, inputs.mean_length)


def _before(rung: int, winner: Winner, genome: list[list[int]]) -> int:
    """Steps that the finalist had taken before this rung."""
    earlier = [f.steps for f in winner.standing if f.genome == genome and f.rung < rung]
    return max(earlier, default=0)
