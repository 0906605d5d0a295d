"""The demo's models against the two plain rivals: all layers alike, and the first layers whole.

For every seed the searched run is made first, on the latency table that the first seed's measured.
Each rival takes its baseline and the table, shrinks to the same measured latency and is trained
directly, with the same distillation, for all the compute that the searched run spent:
super-network, search and finalists. Runs are kept in `runs/rivals/`, so an interrupted benchmark
goes on inside the run that was cut off.

The test split of 3,456 tweets leaves a standard error of 0.7 points, as much as the rivals differ
by. So all models are also scored on rows that no model of the run has ever seen: `unseen`, the
last of the training split, which no training reaches.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import Results, options

from hwnas.files import read_model, write_json
from hwnas.models import load, load_tokenizer
from hwnas.recipe import load_recipe
from hwnas.summary import Summary
from hwnas.tasks.loading import load_task
from hwnas.tasks.predict import predict

SEEDS = (0, 1, 2)
BUDGETS = ("50%", "33%")
STRATEGIES = ("search", "uniform", "layers")
UNSEEN = 8000  # rows at the end of the training split, which no training reaches
QUICK_MINUTES = 1.0  # of training, for a look at whether all works; no result
PROTOCOL = "hwnas run, demo:minilm on demo:tweets; test accuracy and paired latency of the files"
RUNS = Path(__file__).resolve().parent.parent / "runs" / "rivals"


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    args = options("demo_rivals", __doc__)
    results = Results("demo_rivals", args.quick, PROTOCOL, args.json)
    for seed in SEEDS[:1] if args.quick else SEEDS:
        for strategy in STRATEGIES:
            for budget in BUDGETS:
                key = {"seed": seed, "strategy": strategy, "budget": budget}
                results.row(key, lambda k=key: row(k, args.quick))  # type: ignore[misc]
        if not args.quick:
            report(seed)
    results.finish(headline(results.rows))


def row(key: dict[str, Any], quick: bool) -> dict[str, Any]:
    """The figures of one budget of one run, which is made or finished first."""
    seed, strategy = key["seed"], key["strategy"]
    searched = folder(seed, "search", quick)
    command = [sys.executable, "-m", "hwnas", "run", "--seed", str(seed), "--resume"]
    command += ["--out", str(folder(seed, strategy, quick))]
    if strategy != "search":
        command += ["--baseline", strategy, "--reuse", str(searched)]
    elif seed != SEEDS[0]:
        command += ["--table", str(folder(SEEDS[0], "search", quick) / "table.json")]
    if quick:
        command += ["--minutes", str(QUICK_MINUTES)]
    ended = subprocess.run(command, check=False).returncode
    if ended not in (0, 3):  # a missed budget is a result: the row says so
        raise SystemExit(ended)
    summary = read_model(folder(seed, strategy, quick) / "summary.json", Summary)
    chosen = next(c for c in summary.chosen if c.budget == key["budget"])
    run = folder(seed, strategy, quick)
    return {
        "unseen": unseen(run, run / chosen.path / "model"),
        "baseline_unseen": unseen(run, run / "baseline" / "model"),
        "metric": chosen.metric,
        "baseline_metric": summary.baseline.metric,
        "baseline_steps": summary.baseline.steps,
        "kept": chosen.kept,
        "ratio": chosen.ratio,
        "met": chosen.met,
        "kind": chosen.kind,
        "genome": chosen.genome,
        "steps": chosen.steps,
        "compute": summary.compute.model_dump(),
        "seconds": sum(summary.seconds.values()),
    }


def unseen(run: Path, model: Path) -> float:
    """Accuracy of a dense model on the last training rows, in per cent; kept beside the model."""
    kept = model.with_name("unseen.json")
    if not kept.exists():
        recipe = load_recipe(run / "recipe.yaml")
        task = load_task(recipe.task_at_target)
        seen = recipe.compute.baseline_steps(len(recipe.budgets)) * recipe.compute.batch
        first = max(seen, len(task.train) - UNSEEN)
        held_out = task.train.select(range(first, len(task.train)))
        data = task.kind.encode(held_out, load_tokenizer(model), task.max_length)
        answers = predict(load(model), data, progress=f"{run.name}, unseen rows")
        value = {"rows": len(data), "accuracy": task.kind.score("accuracy", answers, data)}
        write_json(kept, value)
    return float(json.loads(kept.read_text())["accuracy"])


def folder(seed: int, strategy: str, quick: bool) -> Path:
    """The run directory of a seed and a strategy."""
    return RUNS / ("quick" if quick else "full") / f"{strategy}-{seed}"


def report(seed: int) -> None:
    """The searched run's report, with its rivals' figures in it."""
    command = [sys.executable, "-m", "hwnas", "report", str(folder(seed, "search", False))]
    for strategy in STRATEGIES[1:]:
        command += ["--rival", str(folder(seed, strategy, False))]
    subprocess.run(command, check=True)


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds: test accuracy kept (% of the baseline's), accuracy on unseen rows (%).

    With the searched model's rank of the three by the former.
    """
    found: dict[str, Any] = {}
    for budget in BUDGETS:
        kept = {
            strategy: statistics.mean(
                100 * r["kept"] for r in rows if r["strategy"] == strategy and r["budget"] == budget
            )
            for strategy in STRATEGIES
        }
        at = [r for r in rows if r["budget"] == budget]
        seen_by_none = {
            strategy: statistics.mean(r["unseen"] for r in at if r["strategy"] == strategy)
            for strategy in STRATEGIES
        }
        name = budget.rstrip("%")
        found[f"unseen_{name}"] = {s: round(value, 2) for s, value in seen_by_none.items()}
        found[f"kept_{name}"] = {strategy: round(value, 2) for strategy, value in kept.items()}
        found[f"rank_{name}"] = sorted(kept, key=lambda s: -kept[s]).index("search") + 1
        found[f"worst_ratio_{name}"] = max(r["ratio"] for r in rows if r["budget"] == budget)
    found["seeds"] = len({r["seed"] for r in rows})
    return found


if __name__ == "__main__":
    main()
