"""The demo's models against the two plain rivals: all layers alike, and the first layers whole.

For every seed the searched run is made first, on the latency table that the first seed's measured.
Each rival takes its baseline and the table, shrinks to the same measured latency and is trained
directly, with the same distillation, for all the compute that the searched run spent:
super-network, search and finalists. Runs are kept in `runs/rivals/`, so an interrupted benchmark
goes on inside the run that was cut off.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import Results, options

from hwnas.files import read_model
from hwnas.summary import Summary

SEEDS = (0, 1, 2)
BUDGETS = ("50%", "33%")
STRATEGIES = ("search", "uniform", "layers")
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
    subprocess.run(command, check=True)
    summary = read_model(folder(seed, strategy, quick) / "summary.json", Summary)
    chosen = next(c for c in summary.chosen if c.budget == key["budget"])
    return {
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
    """Mean share of the baseline's accuracy kept (%), and the searched model's rank of three."""
    found: dict[str, Any] = {}
    for budget in BUDGETS:
        kept = {
            strategy: statistics.mean(
                100 * r["kept"] for r in rows if r["strategy"] == strategy and r["budget"] == budget
            )
            for strategy in STRATEGIES
        }
        name = budget.rstrip("%")
        found[f"kept_{name}"] = {strategy: round(value, 2) for strategy, value in kept.items()}
        found[f"rank_{name}"] = sorted(kept, key=lambda s: -kept[s]).index("search") + 1
        found[f"worst_ratio_{name}"] = max(r["ratio"] for r in rows if r["budget"] == budget)
    found["seeds"] = len({r["seed"] for r in rows})
    return found


if __name__ == "__main__":
    main()
