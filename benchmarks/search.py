"""How many evaluations a search needs for a good front of quality and latency, beside its rivals.

Two spaces, those of real super-networks trained on SST-2 by the recipe below: MiniLM's, and that of
an encoder of twelve layers (`deeper`). The searches were developed on the first. A structure is as
bad as its share of wrong answers on validation sentences, with the super-network's weights, and as
slow as a measured latency table predicts. What counts is the hypervolume: the share of the box
between the fastest and the slowest structure, and between no error and that of a constant answer,
that the front dominates.

Every evaluation is real, and kept in `results/search_evaluations_*.json` with the space, the
importances and the table, so that a second run takes minutes. Without that file the super-network
is trained first (`runs/search`). Trained on another processor it answers otherwise, so where the
one that the record is of is not at hand, what is not on record is left out.

Then what a user asks for: with so many evaluations for each of three budgets, how wrong is the best
within each, by the searches that `hwnas run` offers; on the dev split too, which none has seen.

Last the exact solver alone: 32 blocks, 20 options each, 20 budgets.

    python benchmarks/search.py --json benchmarks/results/search.json
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from deeper import deeper_minilm
from record import ROOT, Results, options, spread

from hwnas.files import read_json, validate, write_json
from hwnas.front_search import BELOW
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.table import LatencyTable
from hwnas.pipeline import train_supernet
from hwnas.recipe import Recipe
from hwnas.search.evolution import Evaluated, evolve
from hwnas.search.exact import BlockLoss, solve_many
from hwnas.search.front import FrontProblem, hypervolume, search_front
from hwnas.search.rivals import SEARCHERS
from hwnas.search.workers import Evaluate, Processes, Workers
from hwnas.searching import JudgeOfRun
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.predict import predict
from hwnas.trained import TrainedRun

DATA = ROOT.parent / "shared" / "data" / "sst2"
RUNS = ROOT / "runs" / "search"
RESULTS = ROOT / "benchmarks" / "results"
SPACES = ("minilm-sst2", "deeper-sst2")
RECIPE: dict[str, Any] = {
    "task": {
        "data": str(DATA / "train.jsonl"),
        "test": str(DATA / "dev.jsonl"),
        "text": "sentence",
        "metric": "accuracy",
        "max_length": 64,
    },
    "target": "openvino:cpu:threads=1,batch=8,seq=32",
    "budgets": ["50%"],
    "search": {"signal": "metric"},
    "compute": {
        "start_steps": 400,
        "supernet_steps": 400,
        "winner_steps": 2,
        "heir_steps": 2,
        "first_rung_steps": 1,
        "evaluation_rows": 512,
    },
}
DEEPER_ROWS = 256  # that judge a structure of twelve layers
SEEDS, QUICK_SEEDS = 5, 1
MOST = {"guided": 100, "exact": 100}  # evaluations; of the rivals:
RIVALS_MOST = 500
AT = (10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500)  # evaluations that the front is looked at
OURS_AT = 50
BUDGETS = (0.5, 0.33, 0.2)  # of the slowest structure's latency
EACH = (12, 30)  # evaluations for each budget
UNDER_BUDGETS = ("evolution", "guided", "nsga2", "local")
CHECKED = 8  # evaluations on record that are made again before new ones are added
SAVE_EVERY = 200  # fresh evaluations
PROTOCOL = (
    "super-networks on SST-2 of MiniLM (error on 323 validation sentences) and of it with every "
    "layer twice (256 sentences), against predicted latency (OpenVINO, 1 thread, batches of 8, 32 "
    "tokens); hypervolume after so many evaluations, and error of the best within budgets"
)


@dataclass(frozen=True)
class DevErrorOfRun:
    """Makes what says, in a worker, how wrong a structure is on the dev split."""

    run: Path

    def __call__(self) -> Evaluate:
        trained = TrainedRun.open(self.run)
        task, test = trained.inputs.task, trained.inputs.test

        def error(subnetwork: Subnetwork) -> float:
            with trained.network.as_subnetwork(subnetwork) as model:
                return 100 - task.kind.score(task.metric, predict(model, test), test)

        return error


class OtherNetworkError(Exception):
    """The super-network that a record is of is not here."""


class Evaluations:
    """Real evaluations: those on record, and by workers whatever else is asked for."""

    def __init__(self, space: str) -> None:
        self.name = space
        self.path = path = RESULTS / f"search_evaluations_{space}.json"
        if not path.exists():
            _record_problem(space, path)
        stored = read_json(path)
        self.stored = stored
        self.signals: dict[str, float] = stored["signals"]
        self.errors: dict[str, float] = stored.get("tested", {})
        self.workers: Workers | None = None
        self.same = True  # the workers answer as those on record did
        self.anew = f"remove {self.path} to evaluate all anew"
        self.fresh = 0

    @property
    def problem(self) -> FrontProblem:
        """The space, the importances and the latencies on record."""
        loss = BlockLoss(*([np.array(block) for block in self.stored[k]] for k in ("heads", "ffn")))
        table = validate(LatencyTable, self.stored["table"], where=str(self.path))
        space = validate(SearchSpace, self.stored["space"], where=str(self.path))
        return FrontProblem.of(space, loss, table.predictor(), self.stored["worst"])

    def tested(self, subnetworks: Sequence[Subnetwork]) -> list[float]:
        """The errors (per cent) of structures on the dev split, by which nothing was chosen."""
        missing = [s for s in dict.fromkeys(subnetworks) if str(s) not in self.errors]
        if missing:
            self._workers()  # is the super-network that of the record?
            with Workers(
                Processes(DevErrorOfRun(RUNS / self.name), os.cpu_count() or 1)
            ) as workers:
                self.errors |= dict(zip(map(str, missing), workers(missing), strict=True))
            self.fresh += len(missing)
        return [self.errors[str(s)] for s in subnetworks]

    def __call__(self, subnetworks: Sequence[Subnetwork]) -> list[float]:
        missing = [s for s in subnetworks if str(s) not in self.signals]
        if missing:
            found = self._workers()(missing)
            self.signals |= dict(zip(map(str, missing), found, strict=True))
            self.fresh += len(missing)
            if self.fresh >= SAVE_EVERY:
                self.save()
        return [self.signals[str(s)] for s in subnetworks]

    def _workers(self) -> Workers:
        """Those that evaluate with the super-network that the record is of.

        Raises:
            OtherNetworkError: it is not here.
        """
        if self.workers is None:
            if self.signals and not (RUNS / self.name / "supernet").exists():
                raise OtherNetworkError(f"{RUNS / self.name} is not here; {self.anew}")
            make = JudgeOfRun(trained(self.name), recipe_of(self.name))
            self.workers = Workers(Processes(make, os.cpu_count() or 1))
            known = [_parsed(text) for text in list(self.signals)[:CHECKED]]
            self.same = [self.signals[str(s)] for s in known] == self.workers(known)
        if not self.same:
            raise OtherNetworkError(f"{RUNS / self.name} answers otherwise; {self.anew}")
        return self.workers

    def close(self) -> None:
        """End the workers, if there are any."""
        if self.workers is not None:
            self.workers.backend.close()

    def save(self) -> None:
        """Write what was evaluated, if anything was."""
        if self.fresh:
            write_json(self.path, self.stored | {"signals": self.signals, "tested": self.errors})
            self.fresh = 0


def _parsed(text: str) -> Subnetwork:
    """The subnetwork that is written so."""
    blocks = (block.split("x") if block != "-" else (0, 0) for block in text.split())
    return Subnetwork.of([[int(heads), int(ffn)] for heads, ffn in blocks])


def recipe_of(space: str) -> Recipe:
    """By which a space's super-network is trained, and its structures are judged."""
    if space == "minilm-sst2":
        value = {"model": "demo:minilm"} | RECIPE
    else:
        model = deeper_minilm(RUNS / "deeper-minilm")
        compute = RECIPE["compute"] | {"evaluation_rows": DEEPER_ROWS}
        value = {"model": str(model)} | RECIPE | {"compute": compute}
    return validate(Recipe, value, where="recipe")


def trained(space: str = SPACES[0]) -> Path:
    """The run whose super-network is searched, trained if it is not there."""
    run = RUNS / space
    if not (run / "supernet").exists():
        if not DATA.is_dir():
            raise SystemExit(f"{DATA} is not there, and some evaluations are not on record")
        train_supernet(recipe_of(space), run, resume=True).inputs.directory.close()
    return run


def _record_problem(space: str, path: Path) -> None:
    run = TrainedRun.open(trained(space))
    loss = run.scores.loss()

    def rounded(curves: Sequence[Any]) -> list[list[float]]:
        return [[float(f"{value:.5g}") for value in curve] for curve in curves]

    write_json(
        path,
        {
            "recipe": recipe_of(space).model_dump(mode="json"),
            "space": run.space.model_dump(mode="json"),
            "heads": rounded(loss.heads),
            "ffn": rounded(loss.ffn),
            "table": run.table.model_dump(mode="json"),
            "worst": run.judge.worst,
            "signals": {},
        },
    )


def front_row(evaluations: Evaluations, name: str, seed: int) -> dict[str, Any]:
    """One search: the hypervolume on its way, and the seconds it took beside evaluating."""
    problem = evaluations.problem
    most = MOST.get(name, RIVALS_MOST)
    spent = 0.0

    def evaluate(subnetworks: Sequence[Subnetwork]) -> list[float]:
        nonlocal spent
        begin = time.perf_counter()
        found = evaluations(subnetworks)
        spent += time.perf_counter() - begin
        return found

    begin = time.perf_counter()
    found = search_front(problem, SEARCHERS[name](problem, most, seed), evaluate, most)
    seconds = time.perf_counter() - begin - spent
    evaluations.save()
    return {
        "evaluations": len(found),
        "hypervolume": {n: hypervolume(problem, found[:n]) for n in AT if n <= len(found)},
        "seconds": round(seconds, 1),
    }


def budgets_row(evaluations: Evaluations, name: str, each: int, seed: int) -> dict[str, Any]:
    """The error of the best within each budget, after so many evaluations for each of them.

    Of the dev split, None where nothing was found within a budget.
    """
    problem = evaluations.problem
    aims = [share * problem.most_ms for share in BUDGETS]
    found: list[Evaluated] = []
    if name == "evolution":
        for at, aim in enumerate(aims):
            found += evolve(
                problem.space,
                problem.loss,
                problem.predictor.near(aim),
                aim,
                lambda subnetwork: evaluations([subnetwork])[0],
                evaluations=each,
                seed=seed * len(aims) + at,
            )
    else:
        if name == "guided":  # the only one that makes use of what is asked for
            problem = FrontProblem.of(
                problem.space,
                problem.loss,
                problem.predictor,
                problem.worst,
                least_ms=BELOW * min(aims),
                most_ms=max(aims),
                aims=aims,
            )
        most = each * len(aims)
        found = search_front(problem, SEARCHERS[name](problem, most, seed), evaluations, most)
    within = ([c for c in found if c.predicted_ms <= aim] for aim in aims)
    best = [min(those, key=lambda c: c.signal, default=None) for those in within]
    tested = iter(evaluations.tested([c.subnetwork for c in best if c]))
    evaluations.save()
    return {
        "evaluations": len(found),
        "best": dict(zip(BUDGETS, [c.signal if c else None for c in best], strict=True)),
        "dev": dict(zip(BUDGETS, [next(tested) if c else None for c in best], strict=True)),
    }


def exact_row(seed: int) -> dict[str, Any]:
    """20 budgets of 32 blocks with 20 options each, all in one call."""
    rng = np.random.default_rng(seed)
    heads, ffn = (4, 8, 16, 32), (1024, 2048, 4096, 8192, 11008)
    options_of_block = BlockOptions(heads=heads, ffn=ffn)
    assert len(options_of_block.options()) == 21
    space = SearchSpace(blocks=(options_of_block,) * 32)

    def losses(widths: Sequence[int]) -> list[Any]:
        scores = (np.sort(rng.pareto(2.0, widths[-1]))[::-1] for _ in range(32))
        return [np.append(s[::-1].cumsum()[::-1], 0.0) for s in scores]

    loss = BlockLoss(losses(heads), losses(ffn))
    predictor = LatencyPredictor(
        fixed_ms=1.0,
        attention=Curve.of({h: float(h * rng.uniform(0.9, 1.1)) for h in heads}),
        ffn=Curve.of({f: float(f / 400 * rng.uniform(0.9, 1.1)) for f in ffn}),
        baseline_ms=1.0,
    )
    full = predictor.predict(space.largest)
    begin = time.perf_counter()
    answers = solve_many(space, loss, predictor, list(np.linspace(0.1, 0.95, 20) * full))
    return {
        "exact_seconds": time.perf_counter() - begin,
        "largest_gap": max(answer.gap for answer in answers),
    }


def main() -> None:
    """Search, and write the rows and the headline."""
    args = options("search", __doc__)
    results = Results("search", args.quick, PROTOCOL, args.json)
    spaces = [Evaluations(space) for space in (SPACES[:1] if args.quick else SPACES)]
    seeds = range(QUICK_SEEDS if args.quick else SEEDS)
    for space, seed in itertools.product(spaces, seeds):
        try:
            _search_space(results, space, seed)
        except OtherNetworkError as error:
            print(f"{space.name}, seed {seed}: left out, not on record: {error}", flush=True)
    for seed in seeds:
        results.row({"what": "exact", "seed": seed}, partial(exact_row, seed))
    for space in spaces:
        space.close()
    results.finish(headline(results.rows))


def _search_space(results: Results, space: Evaluations, seed: int) -> None:
    for name in SEARCHERS:
        key = {"what": "front", "space": space.name, "searcher": name, "seed": seed}
        results.row(key, partial(front_row, space, name, seed))
    for each, name in itertools.product(EACH, UNDER_BUDGETS):
        key = {"what": "budgets", "space": space.name, "searcher": name}
        key |= {"each": each, "seed": seed}
        results.row(key, partial(budgets_row, space, name, each, seed))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per space, evaluations that ours needs for the hypervolume of all of NSGA-II's."""
    found = {space: _of_space(rows, space) for space in SPACES}
    seconds = max(row["exact_seconds"] for row in rows if row["what"] == "exact")
    return {space: value for space, value in found.items() if value} | {"exact_seconds": seconds}


def _of_space(rows: list[dict[str, Any]], space: str) -> dict[str, Any]:
    fronts = [row for row in rows if row["what"] == "front" and row["space"] == space]

    def every_at(name: str, n: int) -> list[float]:
        found = [r["hypervolume"] for r in fronts if r["searcher"] == name]
        # a row that was read has text for keys
        return [float(h.get(n, h.get(str(n), 0.0))) for h in found]

    def mean_at(name: str, n: int) -> float:
        return statistics.mean(every_at(name, n))

    names = [name for name in SEARCHERS if any(r["searcher"] == name for r in fronts)]
    if not {"guided", "nsga2"} <= set(names):
        return {}
    plain = mean_at("nsga2", RIVALS_MOST)
    enough = [n for n in AT if n <= MOST["guided"] and mean_at("guided", n) >= plain]
    most = {name: MOST.get(name, RIVALS_MOST) for name in names}
    return {
        "evals_to_match_nsga2_500": min(enough, default=None),
        f"hypervolume_of_ours_at_{OURS_AT}": round(mean_at("guided", OURS_AT), 4),
        "hypervolume_in_the_end": {name: round(mean_at(name, n), 4) for name, n in most.items()},
        "spread": {name: spread(every_at(name, n), 4) for name, n in most.items()},
        "seeds": {name: len(every_at(name, n)) for name, n in most.items()},
        "error_within_budgets": _under_budgets(rows, space, "best"),
        "dev_error_within_budgets": _under_budgets(rows, space, "dev"),
    }


def _under_budgets(rows: list[dict[str, Any]], space: str, what: str) -> dict[str, Any]:
    """By evaluations for each budget and searcher: the mean error (per cent) at every budget.

    Args:
        what: `best`, on the sentences that were searched by, or `dev`.
    """
    found: dict[str, Any] = {}
    for each, name in itertools.product(EACH, UNDER_BUDGETS):
        key = {"what": "budgets", "space": space, "searcher": name, "each": each}
        errors = [list(row[what].values()) for row in rows if key.items() <= row.items()]
        if errors:
            means = [_mean_if_all(column) for column in zip(*errors, strict=True)]
            found.setdefault(str(each), {})[name] = means
    return found


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), 2) if len(known) == len(values) else None


if __name__ == "__main__":
    main()
