"""Rows of `quality_encoders.py` trained on a GPU, where it is hours less; timed here all the same.

Same recipes, same stages, same compute. What a GPU changes: structures are chosen by the latency
table of the machine that they are for, measured there before, and timed there afterwards; they are
not searched again where they miss. The metric is the dense model's, in torch. `share` is a rival's
training in shares of what ours spent on the same budgets: 1, as rivals wait for ours to know it (in
the rows of November 2026 they did not, and had what was planned).

    results=benchmarks/results/quality_on_gpu.json
    python benchmarks/quality_on_gpu.py tables                           # here, for each task
    python benchmarks/quality_on_gpu.py train OUT.jsonl cola:0 sst2:1    # where the GPU is
    python benchmarks/quality_on_gpu.py time OUT.jsonl --json $results   # here again
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from quality_encoders import (
    BUDGETS,
    PROBLEMS,
    PROTOCOL,
    REPEATED,
    RUNS,
    budgets_for,
    headline,
    recipe_of,
)
from quality_rivals import Kind, choose, fresh, one_shot
from record import ROOT, Results

from hwnas import stages
from hwnas.clock import StructureClock
from hwnas.files import read_json, write_json
from hwnas.inputs import Inputs, load_for
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget, Target
from hwnas.models import load, on_gpu
from hwnas.pipeline import Given, find_winners, parts_of, spent, take, until_network
from hwnas.recipe import Recipe
from hwnas.rundir import RunDirectory
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.loading import load_task
from hwnas.tasks.predict import predict
from hwnas.timing import latency_table
from hwnas.training.autocast import on_processor
from hwnas.training.baseline import read_history
from hwnas.training.compute import FORWARD

TABLES = RUNS / "tables"
ON_GPU = RUNS / "gpu"
TRAINED = ("ours", "uniform", "layers", "one-shot", "fresh")
WORKERS = 14
HERE = (
    "demo:minilm, official dev split as test; trained on a GPU by the protocol of "
    "quality_encoders, scored in torch; structures chosen by a table of the CPU that is named "
    "here, paired latency of each measured on it afterwards, in batches of eight"
)


@dataclass(frozen=True)
class Job:
    """One way to shrink, one task, one seed, and some of the budgets."""

    name: str
    seed: int
    way: str  # or "baseline", which the others go on from
    budgets: tuple[str, ...]
    minutes: float | None = None  # of training, for a trial

    @property
    def ours(self) -> Path:
        return ON_GPU / f"{self.name}-{self.seed}-ours"

    @property
    def path(self) -> Path:
        """Where its run is kept."""
        if self.way in ("baseline", "ours"):
            return self.ours
        budgets = "-".join(Budget.parse(budget).folder for budget in self.budgets)
        return ON_GPU / f"{self.name}-{self.seed}-{self.way}-{budgets}"

    @cached_property
    def table(self) -> LatencyTable:
        return LatencyTable.load(TABLES / f"{self.name}.json")

    @property
    def recipe(self) -> Recipe:
        recipe = recipe_of(PROBLEMS[self.name], self.seed, quick=False)
        update: dict[str, Any] = {"budgets": self.budgets}
        if self.way not in ("baseline", "ours"):
            update["strategy"] = "layers" if self.way == "layers" else "uniform"
        if self.minutes is not None:
            update["compute"] = recipe.compute.scaled(self.minutes / 30)
        return recipe.model_copy(update=update)

    def inputs(self) -> Inputs:
        """As `hwnas.pipeline.prepare`, without asking for the target's runtime."""
        recipe = self.recipe
        task = load_task(recipe.task_at_target)
        model, tokenizer = load_for(recipe.model, task, seed=recipe.seed)
        directory = RunDirectory.open(self.path, recipe, resume=True)
        self.table.save(directory.path / "table.json")
        return Inputs(recipe, directory, recipe.compute, task, tokenizer, model.config)

    def clock(self, inputs: Inputs) -> Callable[[Subnetwork], float]:
        """Milliseconds by the table, where nothing can be timed."""
        return latency_table(inputs, None).predictor().predict

    def wrote(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is this job's."""
        same = (row["task"], row["seed"], row["way"]) == (self.name, self.seed, self.way)
        return same and set(self.budgets) <= set(row.get("budgets", self.budgets))

    def train(self) -> dict[str, Any]:
        """Train and score it."""
        return _baseline(self) if self.way == "baseline" else _budgets(self)

    def rival(self, inputs: Inputs) -> Kind | None:
        """The structures of a way that `hwnas run` has no strategy for."""
        if self.way in ("one-shot", "fresh"):
            return (one_shot if self.way == "one-shot" else fresh)(inputs)
        return None

    def scores(self, inputs: Inputs, weights: Path) -> dict[str, Any]:
        """Of a trained dense model, on the test rows; `metric` is the one of the headline."""
        answers = predict(on_gpu(load(weights)), inputs.test)
        return {"metric": inputs.task.kind.score(inputs.task.metric, answers, inputs.test)}


def run_job(job: Job, threads: int = 1) -> dict[str, Any]:
    """Train what the job says; its row, without any latency that was measured."""
    import torch

    torch.set_num_threads(threads)
    begin = time.perf_counter()
    found = job.train()
    key = {"task": job.name, "seed": job.seed, "way": job.way}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    half = device != "cpu" or on_processor(job.recipe.training.precision)
    precision = job.recipe.training.precision if half else "fp32"
    trained_on = f"{device}, torch {torch.__version__}, {precision}"
    seconds = round(time.perf_counter() - begin, 1)
    return key | found | {"seconds": seconds, "trained_on": trained_on}


def _baseline(job: Job) -> dict[str, Any]:
    """The baseline alone; what an interrupted job had of it is not scored again."""
    if (job.ours / "baseline.json").exists():
        found: dict[str, Any] = read_json(job.ours / "baseline.json")
        return found
    inputs = job.inputs()
    history = stages.baseline(inputs)
    scores = job.scores(inputs, inputs.path / "baseline" / "model")
    found = scores | {"steps": history.steps, "converged": history.converged}
    write_json(job.ours / "baseline.json", found)
    inputs.directory.close()
    return found


def _budgets(job: Job) -> dict[str, Any]:
    baseline = read_json(job.ours / "baseline.json")["metric"]
    inputs = job.inputs()
    given = Given()
    compute: dict[str, float] = {}
    if job.way != "ours":
        take(job.ours, job.path)
        measured = job.path / "importance.safetensors"
        if not measured.exists():  # of the same baseline and rows
            shutil.copy(job.ours / measured.name, measured)
        given = Given(reuse=job.ours)
        ours = read_json(job.ours / "spent.json")
        compute = parts_of(inputs, ours["steps"], ours["budgets"])
    if (kind := job.rival(inputs)) is not None:
        choose(inputs, kind, job.clock(inputs))
    contest = until_network(inputs, given)
    contest.time = job.clock(inputs)
    winners = find_winners(contest, compute)
    history = read_history(inputs.path / "baseline")
    budgets = {}
    for budget, winner in winners.items():
        scores = job.scores(inputs, winner.weights)
        budgets[budget] = scores | {
            "tokens": inputs.tokens_written,
            "kept": scores["metric"] / baseline if baseline else float("nan"),
            "kind": winner.structure.kind,
            "genome": winner.structure.genome,
            "steps": winner.steps,
        }
    compute_spent = spent(contest, winners)
    if job.way == "ours":
        steps = after_baseline(compute_spent.model_dump())
        found = {"steps": steps, "budgets": list(winners)}
        write_json(job.ours / "spent.json", found)
    inputs.directory.close()
    return {
        "baseline": baseline,
        "baseline_steps": history.steps,
        "converged": history.converged,
        "budgets": budgets,
        "compute": compute_spent.model_dump(),
    }


def after_baseline(compute: dict[str, float]) -> float:
    """Full-model steps of all stages after the baseline."""
    return sum(steps for stage, steps in compute.items() if stage != "baseline")


class Group(NamedTuple):
    """All jobs of a task and seed: the baseline, ours, then each rival at each budget."""

    baseline: Job
    ours: Job
    rivals: list[Job]

    @classmethod
    def of(
        cls,
        name: str,
        seed: int,
        budgets_of: Callable[[str], tuple[str, ...]],
        minutes: float | None,
    ) -> Group:
        """Those of this task and seed, with the budgets that a rival is asked for."""
        baseline, ours = (Job(name, seed, way, BUDGETS, minutes) for way in ("baseline", "ours"))
        ways = TRAINED[1:] if seed == 0 else [way for way in REPEATED if way != "ours"]
        rivals = [Job(name, seed, w, (b,), minutes) for w in ways for b in budgets_of(w)]
        return cls(baseline, ours, rivals)

    @property
    def after(self) -> dict[Job, list[Job]]:
        """What each of them is waited for by."""
        return {self.baseline: [self.ours], self.ours: self.rivals}


def train(out: Path, groups: Iterable[Mapping[Job, list[Job]]], workers: int) -> None:
    """Run all jobs, each after what it goes on from; a line of `out` for each that ends.

    A job that has its line is not run again.

    Args:
        groups: what waits for each job.
    """
    context = multiprocessing.get_context("spawn")
    rest: dict[Job, list[Job]] = {}
    for group in groups:
        rest |= group
    later = {job for jobs in rest.values() for job in jobs}
    first = [job for job in rest if job not in later]
    threads = max(1, (os.cpu_count() or 1) // workers)
    rows = rows_of(out) if out.exists() else []
    running: dict[Future[dict[str, Any]], Job] = {}

    def start(jobs: Iterable[Job]) -> None:
        for job in jobs:
            if any(map(job.wrote, rows)):
                start(rest.get(job, []))
            else:
                running[pool.submit(run_job, job, threads)] = job

    with ProcessPoolExecutor(workers, context) as pool, open(out, "a", encoding="utf-8") as file:
        begin = time.perf_counter()
        start(first)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job = running.pop(future)
                if (error := future.exception()) is not None:
                    print(f"{job} failed:", *traceback.format_exception(error), flush=True)
                    continue
                row = future.result()
                file.write(json.dumps(row) + "\n")
                file.flush()
                at = time.perf_counter() - begin
                print(f"{at:.0f} s: {job.path.name} {job.way} in {row['seconds']} s", flush=True)
                start(rest.get(job, []))


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that `train` writes."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tables(names: Iterable[str]) -> None:
    """Measure the latency tables, here."""
    from hwnas.latency.profiling import profile

    for name in names:
        recipe = recipe_of(PROBLEMS[name], 0, quick=False)
        task = load_task(recipe.task_at_target)
        config = load_for(recipe.model, task, seed=0)[0].config
        table = profile(config, recipe.target, validate=recipe.measure.validate_table, seed=0)
        table.save(TABLES / f"{name}.json")


def time_rows(trained: Path, results: Results, kind: type[Job] = Job) -> None:
    """Time every structure here, in pairs with the full model; add the rows that are missing."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in rows_of(trained):
        if row["way"] == "baseline":
            continue
        before = found.setdefault((row["task"], row["seed"], row["way"]), row)
        if before is not row and "budgets" in row:
            before["budgets"] |= row["budgets"]
            before["seconds"] += row["seconds"]
            for part, steps in row["compute"].items():
                if part != "baseline":
                    before["compute"][part] += steps
    for (name, seed, way), row in found.items():
        if "budgets" in row:
            row["share"] = _share(row, found[name, seed, "ours"])
        key = {"task": name, "seed": seed, "way": way}
        timed = results.find(key) or row
        if timed.get("budgets", {}).keys() != row.get("budgets", {}).keys():
            results.forget(key)  # another budget has been trained since
        results.row(key, partial(_timed, row, kind))


def _share(row: dict[str, Any], ours: dict[str, Any]) -> float:
    """A row's training in shares of what ours spent on the same budgets."""

    def weight(budgets: Iterable[str]) -> float:
        return sum((Budget.parse(budget).fraction or 1.0) + FORWARD for budget in budgets)

    of_ours = after_baseline(ours["compute"]) * weight(row["budgets"]) / weight(ours["budgets"])
    return round(after_baseline(row["compute"]) / of_ours, 3)


def _timed(row: dict[str, Any], kind: type[Job]) -> dict[str, Any]:
    figures = {key: row[key] for key in row if key not in ("task", "seed", "way")}
    if "budgets" not in row:
        return figures
    recipe = kind(row["task"], row["seed"], "ours", tuple(row["budgets"])).recipe
    task = load_task(recipe.task_at_target)
    config = load_for(recipe.model, task, seed=0)[0].config
    # of the vocabulary that all models of a row have
    tokens = next(found.get("tokens") for found in row["budgets"].values())
    clock = StructureClock(
        config=config,
        target=Target.parse(recipe.target),
        reference_ms=1.0,
        pairs=recipe.measure.pairs,
        repeats=recipe.measure.repeats,
        directory=RunDirectory(_made(RUNS / "timed" / row["task"])),
        kept_as="structure" if tokens is None else f"structure of {tokens} tokens",
        vocab=tokens,
    )
    for text, found in row["budgets"].items():
        found["ratio"] = clock.time(Subnetwork.of(found["genome"]))
        most = (Budget.parse(text).fraction or 1.0) * (1 + recipe.measure.tolerance)
        found["met"] = found["ratio"] <= most
    clock.directory.close()
    return figures


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    """One of the three steps; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    of_tables = steps.add_parser("tables")
    of_tables.add_argument("names", nargs="*", default=list(PROBLEMS))
    of_training = steps.add_parser("train")
    of_training.add_argument("out", type=Path)
    of_training.add_argument("groups", nargs="+", help="TASK:SEED")
    of_training.add_argument("--results", type=Path, help="rows of the first seeds, if any")
    of_training.add_argument("--minutes", type=float, help="for a trial")
    of_training.add_argument("--workers", type=int, default=WORKERS)
    of_timing = steps.add_parser("time")
    of_timing.add_argument("trained", type=Path)
    of_timing.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.step == "tables":
        tables(args.names)
    elif args.step == "time":
        results = Results("quality_on_gpu", quick=False, protocol=HERE, path=args.json)
        time_rows(args.trained, results)
        results.finish(headline(results.rows))
    else:
        default = ROOT / "benchmarks" / "results" / "quality_encoders.json"
        rows = Results("quality_encoders", False, PROTOCOL, args.results or default).rows
        groups = []
        for text in args.groups:
            name, seed = text.split(":")
            wanted = partial(budgets_for, seed=int(seed), rows=rows, quick=False)
            groups.append(Group.of(name, int(seed), wanted, args.minutes).after)
        train(args.out, groups, args.workers)


if __name__ == "__main__":
    main()
