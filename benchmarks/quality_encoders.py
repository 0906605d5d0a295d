"""How much of its quality a small encoder keeps at a measured latency, beside other ways to shrink.

Per task and seed one baseline is trained until validation no longer improves. From it, within
the same latency budgets:

- `ours`: `hwnas run` (importance, super-network, search, finalists in successive halving);
- `uniform`, `layers`: all layers alike; the first layers whole;
- `one-shot`: Torch-Pruning's Taylor importance, pruned in one go;
- `fresh`: a smaller checkpoint out of every other layer of the teacher;
- `int8`: the baseline in static int8, nothing else;
- `whittle`: says why it is not there.

Latency is of batches of eight. A single short sentence is bound by reading weights out of caches
that a shared machine's neighbours use too: there one structure took 0.49 to 0.55 of the baseline's
time within minutes, in batches 0.553 to 0.562.

Every rival is trained, with the same distillation, for all the compute that our run spent after the
baseline, each budget for its part. A row holds the budgets of one way on one task with one seed:
all of them with the first seed; with the others, rivals are asked for 50 %, and the one that was
the strongest at 33 % for that too. Fresh models, int8 and the smaller tasks have one seed. Runs are
kept in `runs/quality/`: an interrupted benchmark goes on inside the run that was cut off. Rivals
take their baseline and latency table from our run; where that is gone, ours is measured again.

    pip install --no-deps torch-pruning==1.6.1    # for `one-shot`; else its row says so
    python benchmarks/quality_encoders.py --json benchmarks/results/quality_encoders.json
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from quality_rivals import choose, finished, fresh, int8, one_shot
from record import ROOT, Results, options, rank, spread

from hwnas.files import read_model, validate
from hwnas.pipeline import Given, prepare
from hwnas.recipe import Recipe
from hwnas.summary import Summary

DATA = ROOT.parent / "shared" / "data"
RUNS = ROOT / "runs" / "quality"
BUDGETS = ("50%", "33%", "20%")
WAYS = ("ours", "uniform", "layers", "one-shot", "fresh", "int8", "whittle")
REPEATED = ("ours", "uniform", "layers", "one-shot")  # with more than one seed
PROTOCOL = (
    "demo:minilm, official dev split as test; paired latency of the exported files, in batches of "
    "eight; rivals train for all the compute that ours spends after the baseline"
)
WHITTLE = (
    "whittle 0.6.0 shrinks LitGPT decoders only, it has no encoder; it also needs transformers "
    "< 4.54 and torchvision, which cannot be installed beside optimum-intel 1.27 and torch 2.13"
)


class Problem(NamedTuple):
    """A task, and how long it is trained."""

    data: str  # folder below `DATA`, or its files' beginning
    task: dict[str, Any]
    seq: int  # of the target
    max_length: int
    compute: dict[str, int]
    seeds: int


def _compute(start: int, supernet: int, winner: int, heir: int) -> dict[str, int]:
    return {
        "start_steps": start,
        "supernet_steps": supernet,
        "winner_steps": winner,
        "heir_steps": heir,
        "first_rung_steps": winner // 10,
    }


PROBLEMS = {
    "sst2": Problem(
        "sst2/", {"text": "sentence", "metric": "accuracy"}, 32, 64, _compute(780, 48, 1600, 800), 3
    ),
    "mrpc": Problem(
        "mrpc/",
        {"text": ["sentence1", "sentence2"], "metric": "accuracy_f1"},
        64,
        128,
        _compute(600, 40, 900, 450),
        3,
    ),
    "cola": Problem(
        "cola/",
        {"text": "sentence", "metric": "matthews"},
        16,
        64,
        _compute(960, 48, 2400, 1200),
        3,
    ),
    "rte": Problem(
        "rte/",
        {"text": ["sentence1", "sentence2"], "metric": "accuracy"},
        64,
        128,
        _compute(400, 32, 600, 300),
        1,
    ),
    "subjqa": Problem(
        "subjqa/electronics_",
        {"kind": "spans", "metric": "f1"},
        128,
        256,
        _compute(400, 24, 400, 200),
        1,
    ),
}


def recipe_of(problem: Problem, seed: int, quick: bool) -> Recipe:
    """The searched run's recipe."""
    files = [str(DATA / f"{problem.data}{split}.jsonl") for split in ("train", "dev")]
    value = {
        "model": "demo:minilm",
        "task": problem.task
        | {"data": files[0], "test": files[1], "max_length": problem.max_length},
        "target": f"openvino:cpu:threads=1,batch=8,seq={problem.seq}",
        "budgets": budgets_for("ours", seed, [], quick),
        "seed": seed,
        "compute": problem.compute | ({"minutes": 0.5} if quick else {}),
    }
    return validate(Recipe, value, where="quality_encoders")


def run_of(name: str, seed: int, way: str, quick: bool) -> Path:
    """Where the run of one way to shrink is kept."""
    return RUNS / ("quick" if quick else "full") / f"{name}-{seed}-{way}"


def row(name: str, seed: int, way: str, quick: bool, budgets: tuple[str, ...]) -> dict[str, Any]:
    """The budgets of one way to shrink, after what is missing of its run is made."""
    if way == "whittle":
        return {"missing": WHITTLE}
    if way == "one-shot" and importlib.util.find_spec("torch_pruning") is None:
        return {"missing": "pip install --no-deps torch-pruning==1.6.1"}
    recipe = recipe_of(PROBLEMS[name], seed, quick)
    ours, run = (run_of(name, seed, each, quick) for each in ("ours", way))
    if way == "int8":
        inputs = prepare(recipe, ours, resume=True, given=Given())
        baseline = read_model(ours / "summary.json", Summary).baseline
        found = int8(ours, inputs)
        inputs.directory.close()
        kept = found["metric"] / baseline.metric
        return {"baseline": baseline.metric, "int8": found | {"kept": kept}}
    if way != "ours":
        strategy = "layers" if way == "layers" else "uniform"
        recipe = recipe.model_copy(update={"strategy": strategy, "budgets": budgets})
    if way in ("one-shot", "fresh") and not (run / "importance.safetensors").exists():
        inputs = prepare(recipe, run, resume=True, given=Given(reuse=ours))
        choose(inputs, (one_shot if way == "one-shot" else fresh)(inputs))
        inputs.directory.close()
    return _figures(finished(recipe, run, None if way == "ours" else ours))


def _figures(summary: Summary) -> dict[str, Any]:
    return {
        "baseline": summary.baseline.metric,
        "baseline_steps": summary.baseline.steps,
        "converged": summary.baseline.converged,
        "budgets": {
            chosen.budget: {
                "metric": chosen.metric,
                "kept": chosen.kept,
                "ratio": chosen.ratio,
                "met": chosen.met,
                "kind": chosen.kind,
                "genome": chosen.genome,
                "steps": chosen.steps,
            }
            for chosen in summary.chosen
        },
        "compute": summary.compute.model_dump(),
        "seconds": sum(summary.seconds.values()),
    }


def wanted(quick: bool) -> Iterator[tuple[str, int, str]]:
    """Task, seed, way: the main tasks with one seed, then the other seeds, then the other tasks."""
    if quick:
        yield from (("mrpc", 0, way) for way in ("ours", "one-shot", "int8"))
        return
    of_main = [name for name, problem in PROBLEMS.items() if problem.seeds > 1]
    of_others = [name for name in PROBLEMS if name not in of_main]
    yield from ((name, 0, way) for name in of_main for way in WAYS)
    for seed in range(1, max(problem.seeds for problem in PROBLEMS.values())):
        yield from ((name, seed, way) for name in of_main for way in REPEATED)
    yield from ((name, 0, way) for name in of_others for way in WAYS if way != "whittle")


def budgets_for(way: str, seed: int, rows: list[dict[str, Any]], quick: bool) -> tuple[str, ...]:
    """What a way is asked for; see the module."""
    if quick:
        return ("33%",)
    if way == "ours" or seed == 0:
        return BUDGETS
    first = [r for r in rows if r["seed"] == 0 and "33%" in r.get("budgets", {})]
    kept = {
        rival: statistics.mean(r["budgets"]["33%"]["kept"] for r in first if r["way"] == rival)
        for rival in REPEATED
        if rival != "ours" and any(r["way"] == rival for r in first)
    }
    strongest = max(kept, key=lambda rival: kept[rival])
    return ("50%", "33%") if way == strongest else ("50%",)


def rivals_missing(results: Results, name: str, seed: int, quick: bool) -> bool:
    """Whether a rival is yet to be measured that takes what it needs from our run."""
    return any(
        results.find({"task": name, "seed": seed, "way": way}) is None
        for task, number, way in wanted(quick)
        if (task, number) == (name, seed) and way not in ("ours", "whittle")
    )


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    args = options("quality_encoders", __doc__)
    results = Results("quality_encoders", args.quick, PROTOCOL, args.json)
    for name, seed, way in wanted(args.quick):
        key = {"task": name, "seed": seed, "way": way}
        kept = (run_of(name, seed, "ours", args.quick) / "summary.json").exists()
        if way == "ours" and not kept and rivals_missing(results, name, seed, args.quick):
            results.forget(key)
        budgets = budgets_for(way, seed, results.rows, args.quick)
        results.row(key, partial(row, name, seed, way, args.quick, budgets))
    results.finish(headline(results.rows))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per budget and way the share of the baseline's metric that is kept, mean over the tasks.

    Of the three main tasks, over their seeds; `spread` is the standard deviation over seeds of the
    mean over tasks.
    """
    main_tasks = [name for name, problem in PROBLEMS.items() if problem.seeds > 1]
    found: dict[str, Any] = {}
    for budget in BUDGETS:
        means: dict[str, dict[int, float]] = {}
        for way in WAYS:
            by_seed: dict[int, list[float]] = {}
            for r in rows:
                if r["way"] == way and r["task"] in main_tasks and budget in r.get("budgets", {}):
                    by_seed.setdefault(r["seed"], []).append(r["budgets"][budget]["kept"])
            whole = {
                seed: 100 * statistics.mean(kept)
                for seed, kept in by_seed.items()
                if len(kept) == len(main_tasks)
            }
            if whole:
                means[way] = whole
                found[f"{way}_{budget.rstrip('%')}"] = {
                    "kept": round(statistics.mean(whole.values()), 2),
                    "spread": spread([*whole.values()]),
                    "seeds": len(whole),
                }
        if "ours" in means:
            name = budget.rstrip("%")
            found[f"kept_{name}"] = found[f"ours_{name}"]["kept"]
            found[f"rank_{name}"] = rank(means, "ours")
    return found


if __name__ == "__main__":
    main()
