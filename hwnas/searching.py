"""`hwnas search`: a trained super-network searched alone, for other budgets or another device.

    the front over all budgets -> per budget: timed, corrected, searched again -> cut out
        -> export -> verify -> summary and report

The result is a run directory like any other. Nothing is trained: the chosen models have the
super-network's weights. The trained run's own folder is only read.

Assumption: the latency table is of the same model; its target need not be the run's.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from hwnas.budgets import check_budgets
from hwnas.choosing import choose_structures
from hwnas.contest import Contest
from hwnas.delivery import deliver
from hwnas.deployments import Deployment, deployments_of, tables_of, targets_of
from hwnas.errors import UserError
from hwnas.files import replacing
from hwnas.finalists import Winner
from hwnas.latency.runtimes import require
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import PHASES, Budget, Target
from hwnas.networks import Networks
from hwnas.pipeline import spent
from hwnas.progress import warn
from hwnas.recipe import Recipe, load_recipe, override
from hwnas.rundir import RunDirectory
from hwnas.search.rivals import require_algorithm
from hwnas.search.workers import Cluster, Evaluate, Processes, Workers
from hwnas.second_search import or_set_aside, set_aside
from hwnas.selection import Selection, TimedStructure
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Candidate, Summary
from hwnas.timing import latency_table
from hwnas.trained import TrainedRun
from hwnas.training.baseline import read_history

_TAKEN = ("importance.safetensors", "space.json", "teacher.safetensors")  # as they are
_OF_BASELINE = ("model", "history.json")


@dataclass(frozen=True)
class Wanted:
    """What a search is asked for; None: as the trained run's recipe has it."""

    table: Path | None = None  # a latency table of the model, of whatever target
    budgets: tuple[str, ...] = ()
    evaluations: int | None = None  # for all budgets together
    algorithm: str = "guided"  # see `search.spec`
    signal: str | None = None  # likewise
    seed: int | None = None
    confidence: float | None = None
    max_size_mb: float | None = None  # of what is served
    deployments: tuple[str, ...] = ()  # that compete with the table's own; see `deployments`
    warm_start: Path | None = None  # candidates of another search of the same model


@dataclass(frozen=True)
class Hands:
    """Who evaluates; the result does not depend on it."""

    workers: int | None = None  # processes; by default as many as this machine has cores
    cluster: str | None = None  # address of a Ray cluster that has the workers


@dataclass(frozen=True)
class JudgeOfRun:
    """Makes what evaluates structures of a trained run, in a worker."""

    run: Path
    recipe: Recipe

    def __call__(self) -> Evaluate:
        trained = TrainedRun.open(self.run, self.recipe)
        return lambda subnetwork: trained.judge.of(trained.network, subnetwork)


def search_trained(
    run: Path, out: Path, wanted: Wanted, hands: Hands | None = None, *, resume: bool = False
) -> Summary:
    """Search the super-network of `run`, deliver what was chosen into `out`, return the summary.

    Stopped by Ctrl-C while candidates are evaluated, it delivers the best so far.

    Raises:
        UserError: bad input, said before anything is written.
        BudgetError: a budget cannot be met.
    """
    hands = hands or Hands()
    recipe, table = _recipe(run, wanted)
    require_algorithm(recipe.search.algorithm)
    trained = TrainedRun.open(run, recipe)
    table.check_model(trained.inputs.shape)
    for width in trained.space.hidden:
        table.at_hidden(width)
    target = Target.parse(table.target)
    target.check_exportable(PHASES)
    require(target)
    longest = trained.inputs.tokenizer.model_max_length
    if target.seq > longest:
        raise UserError(f"target {target}: the model reads at most {longest} tokens")
    warn("latency table", table.doubts())
    first = warm_start(wanted.warm_start, trained.space)
    inputs = trained.inputs
    targets_of(recipe)
    # what other deployments, and fewer tokens, save is measured in the run's own folder
    measured = bool(recipe.deployments) or inputs.tokens_written is not None
    if not measured:
        check_budgets(inputs, table, trained.space)
    inputs.directory = RunDirectory.open(out, recipe, resume)
    _take(run, out, table)
    deployments: Sequence[Deployment] = ()
    if measured:
        with inputs.directory.stage("deployments"):
            table = latency_table(inputs, None)
            check_budgets(inputs, table, trained.space, tables_of(inputs).values())
            deployments = deployments_of(inputs, trained.judge)
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(_backend(run, recipe, hands)))
        contest = Contest(
            inputs=inputs,
            table=table,
            space=trained.space,
            scores=trained.scores,
            networks=Networks(inputs, trained.scores),
            judge=trained.judge,
            network=trained.network,
            evaluate_all=workers,
            first=first,
            trains=False,
            stoppable=True,
            deployments=deployments,
        )
        while True:
            winners = _winners(contest)
            if not set_aside(inputs, winners, lambda _: 0.0):
                break
            contest = replace(contest)  # its search of the front was for other latencies
    return deliver(inputs, table, winners, spent(contest, winners))


def _winners(contest: Contest) -> dict[str, Winner]:
    """The structure of every budget, with the super-network's weights."""
    inputs = contest.inputs

    def chosen() -> dict[str, Selection]:
        with inputs.directory.stage("search"):
            return {b: choose_structures(contest, b) for b in inputs.recipe.budgets}

    selections = or_set_aside(inputs, inputs.recipe.budgets, chosen)
    return {budget: _cut_out(contest, budget, s) for budget, s in selections.items()}


def _recipe(run: Path, wanted: Wanted) -> tuple[Recipe, LatencyTable]:
    """What the search obeys: the run's recipe, with another target, other budgets and search."""
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: no run here (it has no recipe.yaml)")
    theirs = load_recipe(run / "recipe.yaml")
    if theirs.strategy != "search":
        raise UserError(f"{run}: a run of strategy {theirs.strategy}, which has no super-network")
    own = run / "table.json"
    if wanted.table is None and not own.exists():
        raise UserError(f"{run}: has no table.json; give one with --table")
    table = LatencyTable.find(wanted.table if wanted.table is not None else own)
    settings = theirs.model_dump(mode="json")
    budgets = wanted.budgets or theirs.budgets
    # texts are cut where they were cut in training, whatever the new target's sequence is
    task = settings["task"] | {"max_length": theirs.task_at_target.max_length}
    search = settings["search"] | {"algorithm": wanted.algorithm}
    if wanted.signal is not None:
        search["signal"] = wanted.signal
    changes = {
        "task": task,
        "search": search,
        "target": table.target,
        "budgets": list(budgets),
        "deployments": list(wanted.deployments or theirs.deployments),
    }
    if wanted.evaluations is not None:
        each = max(1, math.ceil(wanted.evaluations / len(budgets)))
        changes["compute"] = settings["compute"] | {"evaluations": each}
    if wanted.seed is not None:
        changes["seed"] = wanted.seed
    if wanted.max_size_mb is not None:
        changes["max_size_mb"] = wanted.max_size_mb
    if wanted.confidence is not None:
        changes["measure"] = settings["measure"] | {"confidence": wanted.confidence}
    return override(theirs, "options", changes), table


def warm_start(file: Path | None, space: SearchSpace) -> tuple[Subnetwork, ...]:
    """The front of another search's candidates, as far as they are of this space.

    Raises:
        UserError: there is no such file, or nothing of the space in it.
    """
    if file is None:
        return ()
    from hwnas.report.records import read_lines
    from hwnas.search.evolution import Evaluated
    from hwnas.search.front import front

    if file.is_dir():
        file = file / "candidates.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the candidates.jsonl of another search")
    candidates = [
        Evaluated(c.kind, Subnetwork.of(c.genome), c.signal, c.predicted_ms)
        for c in read_lines(file, Candidate)
    ]
    found = [c.subnetwork for c in front(candidates) if c.subnetwork in space]
    if not found:
        raise UserError(
            f"{file}: none of its {len(candidates)} candidates is in this run's search space"
        )
    return tuple(found)


def _take(run: Path, out: Path, table: LatencyTable) -> None:
    """Copy what the run's later stages read."""
    for name in _TAKEN:
        if not (out / name).exists():
            with replacing(out / name) as partial:
                shutil.copy(run / name, partial)
    if not (out / "baseline").exists():
        with replacing(out / "baseline") as partial:
            partial.mkdir()
            for name in _OF_BASELINE:
                source = run / "baseline" / name
                copy = shutil.copytree if source.is_dir() else shutil.copy
                copy(source, partial / name)
    if not (out / "table.json").exists():
        table.save(out / "table.json")


def _backend(run: Path, recipe: Recipe, hands: Hands) -> Processes | Cluster:
    make = JudgeOfRun(run.resolve(), recipe)
    workers = hands.workers or os.cpu_count() or 1
    if hands.cluster is not None:
        return Cluster(make, workers, hands.cluster)
    return Processes(make, workers)


def _cut_out(contest: Contest, budget: str, selection: Selection) -> Winner:
    """The best of the structures that were measured within a budget, with its weights."""
    inputs, network = contest.inputs, contest.network
    assert network is not None

    def rank(structure: TimedStructure) -> float:
        return math.inf if structure.signal is None else structure.signal

    best = min(selection.structures, key=rank)
    folder = inputs.path / "cut" / Budget.parse(budget).folder
    if not folder.exists():
        with replacing(folder) as partial:
            network.extract(best.subnetwork).save_pretrained(partial)
    return Winner(
        budget=budget,
        structure=best,
        start="supernet",
        weights=folder,
        steps=read_history(inputs.path / "baseline").start_steps + inputs.plan.supernet_steps,
        rounds=selection.rounds,
        standing=[],
    )
