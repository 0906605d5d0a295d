"""How many evaluations a search needs for a good front of quality and latency, beside its rivals.

The space is that of a real super-network: MiniLM, trained on SST-2 by the recipe below. A structure
is as bad as its share of wrong answers on 512 validation sentences, with the super-network's
weights, and as slow as a measured latency table predicts. What counts is the hypervolume: the share
of the box between the fastest and the slowest structure, and between no error and that of a
constant answer, that the front dominates.

Every evaluation is real, and kept in `results/search_evaluations.json` with the space, the
importances and the table, so that a second run takes minutes; without that file the super-network
is trained first (`runs/search`), and some ten thousand structures are evaluated.

Then the exact solver alone: 32 blocks, 20 options each, 20 budgets.

    python benchmarks/search.py --json benchmarks/results/search.json
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, Results, options

from hwnas.files import read_json, validate, write_json
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.table import LatencyTable
from hwnas.pipeline import train_supernet
from hwnas.recipe import Recipe
from hwnas.search.exact import BlockLoss, solve_many
from hwnas.search.front import FrontProblem, hypervolume, search_front
from hwnas.search.rivals import SEARCHERS
from hwnas.search.workers import Processes, Workers
from hwnas.searching import JudgeOfRun
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.trained import TrainedRun

DATA = ROOT.parent / "shared" / "data" / "sst2"
RUN = ROOT / "runs" / "search" / "minilm-sst2"
EVALUATIONS = ROOT / "benchmarks" / "results" / "search_evaluations.json"
RECIPE = {
    "model": "demo:minilm",
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
SEEDS, QUICK_SEEDS = 5, 1
MOST = {"guided": 100, "exact": 100}  # evaluations; of the rivals:
RIVALS_MOST = 500
AT = (10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500)  # evaluations that the front is looked at
OURS_AT = 50
SAVE_EVERY = 200  # fresh evaluations
PROTOCOL = (
    "MiniLM's super-network on SST-2, error on 512 validation sentences against predicted latency "
    "(OpenVINO, 1 thread, batches of 8, 32 tokens); hypervolume after so many evaluations, 5 seeds"
)


class Evaluations:
    """Real evaluations: those on record, and by workers whatever else is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            _record_problem(path)
        stored = read_json(path)
        self.stored = stored
        self.signals: dict[str, float] = stored["signals"]
        self.workers: Workers | None = None
        self.fresh = 0

    @property
    def problem(self) -> FrontProblem:
        """The space, the importances and the latencies on record."""
        loss = BlockLoss(*([np.array(block) for block in self.stored[k]] for k in ("heads", "ffn")))
        table = validate(LatencyTable, self.stored["table"], where=str(self.path))
        space = validate(SearchSpace, self.stored["space"], where=str(self.path))
        return FrontProblem.of(space, loss, table.predictor(), self.stored["worst"])

    def __call__(self, subnetworks: Sequence[Subnetwork]) -> list[float]:
        missing = [s for s in subnetworks if str(s) not in self.signals]
        if missing:
            if self.workers is None:
                make = JudgeOfRun(trained(), validate(Recipe, RECIPE, where="recipe"))
                self.workers = Workers(Processes(make, os.cpu_count() or 1))
            self.signals |= dict(zip(map(str, missing), self.workers(missing), strict=True))
            self.fresh += len(missing)
            if self.fresh >= SAVE_EVERY:
                self.save()
        return [self.signals[str(s)] for s in subnetworks]

    def save(self) -> None:
        """Write what was evaluated, if anything was."""
        if self.fresh:
            write_json(self.path, self.stored | {"signals": self.signals})
            self.fresh = 0


def trained() -> Path:
    """The run whose super-network is searched, trained if it is not there."""
    if not (RUN / "supernet").exists():
        if not DATA.is_dir():
            raise SystemExit(f"{DATA} is not there, and some evaluations are not on record")
        recipe = validate(Recipe, RECIPE, where="recipe")
        train_supernet(recipe, RUN, resume=True).inputs.directory.close()
    return RUN


def _record_problem(path: Path) -> None:
    run = TrainedRun.open(trained())
    loss = run.scores.loss()

    def rounded(curves: Sequence[Any]) -> list[list[float]]:
        return [[float(f"{value:.5g}") for value in curve] for curve in curves]

    write_json(
        path,
        {
            "recipe": RECIPE,
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
    evaluations = Evaluations(EVALUATIONS)
    for seed in range(QUICK_SEEDS if args.quick else SEEDS):
        for name in SEARCHERS:
            key = {"what": "front", "space": "minilm-sst2", "searcher": name, "seed": seed}
            results.row(key, partial(front_row, evaluations, name, seed))
        results.row({"what": "exact", "seed": seed}, partial(exact_row, seed))
    if evaluations.workers is not None:
        evaluations.workers.backend.close()
    results.finish(headline(results.rows))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Evaluations that ours needs for plain NSGA-II's hypervolume with all of its own."""
    fronts = [row for row in rows if row["what"] == "front"]

    def mean_at(name: str, n: int) -> float:
        found = [r["hypervolume"] for r in fronts if r["searcher"] == name]
        # a row that was read has text for keys
        return statistics.mean(float(h.get(n, h.get(str(n), 0.0))) for h in found)

    plain = mean_at("nsga2", RIVALS_MOST)
    enough = [n for n in AT if n <= MOST["guided"] and mean_at("guided", n) >= plain]
    return {
        "evals_to_match_nsga2_500": min(enough, default=None),
        "exact_seconds": max(r["exact_seconds"] for r in rows if r["what"] == "exact"),
        f"hypervolume_of_ours_at_{OURS_AT}": round(mean_at("guided", OURS_AT), 4),
        "hypervolume_in_the_end": {
            name: round(mean_at(name, MOST.get(name, RIVALS_MOST)), 4) for name in SEARCHERS
        },
    }


if __name__ == "__main__":
    main()
