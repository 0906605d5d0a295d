"""What searching structure, precision and runtime together gains over either of them alone.

MiniLM on SST-2, one thread, one sentence; the budget is 32 % of what fp32 OpenVINO takes for the
unshrunk model. Per sequence length and seed:

- `together`: `hwnas run` with the deployments below beside the target's own;
- `structure`: the same recipe at fp32 OpenVINO only, from the same baseline;
- `precision`: the unshrunk baseline at whichever deployment is within the budget, the best there.

All are scored on the official dev split through the files that are served, and timed in pairs with
the baseline. Latency tables are measured once per sequence length. Runs are kept in
`runs/deployment/`: an interrupted benchmark goes on inside the run that was cut off.

    python benchmarks/deployments.py --json benchmarks/results/deployments.json
"""

from __future__ import annotations

import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from record import ROOT, Results, made, options

from hwnas.deployments import read_anchors
from hwnas.export import score_folder, served_folder
from hwnas.files import read_model, validate
from hwnas.latency.target import Target
from hwnas.pipeline import Given, prepare
from hwnas.recipe import MeasureSpec, Recipe
from hwnas.summary import Summary

DATA = ROOT.parent / "shared" / "data" / "sst2"
RUNS = ROOT / "runs" / "deployment"
BUDGET, SHARE = "32%", 0.32
LENGTHS = (128, 64)
SEEDS = (0, 1, 2)
DEPLOYMENTS = ("openvino:int8-static", "openvino:bf16", "onnxruntime:int8-dynamic")
COMPUTE = {
    "start_steps": 500,
    "supernet_steps": 48,
    "first_rung_steps": 60,
    "winner_steps": 500,
    "heir_steps": 250,
}
PROTOCOL = (
    "MiniLM, SST-2, official dev split; paired latency of the served files, 1 thread, batch 1; "
    f"budget {BUDGET} of fp32 OpenVINO; {', '.join(DEPLOYMENTS)} beside it"
)


def recipe_of(seq: int, seed: int, together: bool, quick: bool) -> Recipe:
    """The recipe of one search."""
    value = {
        "model": "demo:minilm",
        "task": {
            "data": str(DATA / "train.jsonl"),
            "test": str(DATA / "dev.jsonl"),
            "text": "sentence",
            "metric": "accuracy",
            "max_length": 64,
        },
        "target": f"openvino:cpu:threads=1,batch=1,seq={seq}",
        "budgets": [BUDGET],
        "seed": seed,
        "compute": COMPUTE | ({"minutes": 0.5} if quick else {}),
        "measure": {"table_minutes": 1, "validate_table": 4},
        "deployments": list(DEPLOYMENTS if together else ()),
    }
    return validate(Recipe, value, where="deployments")


def run_of(seq: int, seed: int, way: str, quick: bool) -> Path:
    """Where a run is kept."""
    return RUNS / ("quick" if quick else "full") / f"{seq}-{seed}-{way}"


def row(seq: int, seed: int, quick: bool) -> dict[str, Any]:
    """All three ways on one baseline, metrics in points, latencies as shares of fp32 OpenVINO's."""
    together = run_of(seq, seed, "together", quick)
    _take_tables(run_of(seq, SEEDS[0], "together", quick), together, seq, seed, quick)
    joint = _run(together, recipe_of(seq, seed, True, quick))
    structure = run_of(seq, seed, "structure", quick)
    alone = _run(structure, recipe_of(seq, seed, False, quick), "--reuse", str(together))
    precision = _precisions(together, recipe_of(seq, seed, True, quick))
    return {
        "baseline": joint.baseline.metric,
        "together": _chosen(joint),
        "structure": _chosen(alone),
        "precisions": precision,
        "seconds": sum(joint.seconds.values()),
    }


def _take_tables(first: Path, out: Path, seq: int, seed: int, quick: bool) -> None:
    """Begin a run with the tables that another seed's has measured."""
    if out.exists() or not (first / "summary.json").exists():
        return
    out.mkdir(parents=True)
    shutil.copy(first / "table.json", out)
    shutil.copytree(first / "tables", out / "tables")
    recipe_of(seq, seed, True, quick).save(out / "recipe.yaml")


def _run(out: Path, recipe: Recipe, *options_: str) -> Summary:
    """`hwnas run`, or what it has written before."""
    made(out, recipe, *options_)
    return read_model(out / "summary.json", Summary)


def _chosen(summary: Summary) -> dict[str, Any]:
    (chosen,) = summary.chosen
    return {
        "served": f"{chosen.runtime}:{chosen.precision}",
        "genome": chosen.genome,
        "metric": chosen.metric,
        "latency": chosen.ratio,
        "kept": chosen.kept,
        "met": chosen.met,
    }


def _precisions(run: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """The unshrunk baseline at every deployment of a run, scored on the test split."""
    inputs = prepare(recipe, run, resume=True, given=Given())
    found = []
    for anchor in read_anchors(run):
        target = Target.parse(anchor.target)
        folder = run / "baseline" / served_folder(target)
        metric = score_folder(folder, inputs.test, inputs.task.kind, inputs.task.metric)
        served = f"{target.runtime}:{target.precision}"
        found.append({"served": served, "latency": anchor.ratio, "metric": metric})
    inputs.directory.close()
    return found


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    args = options("deployments", __doc__)
    results = Results("deployments", args.quick, PROTOCOL, args.json)
    for seq in LENGTHS[:1] if args.quick else LENGTHS:
        for seed in SEEDS[:1] if args.quick else SEEDS:
            results.row({"seq": seq, "seed": seed}, partial(row, seq, seed, args.quick))
    results.finish({f"{seq} tokens": headline(results.rows, seq) for seq in LENGTHS})


def best_precision(row: dict[str, Any]) -> dict[str, Any] | None:
    """Of the whole model within the budget, as ours has to be; the best on the test split."""
    most = SHARE * (1 + MeasureSpec().tolerance)
    within = (one for one in row["precisions"] if one["latency"] <= most)
    return max(within, key=lambda one: float(one["metric"]), default=None)


def headline(rows: list[dict[str, Any]], seq: int) -> dict[str, Any]:
    """Means over seeds: metric, share of the baseline's metric and latency of every way."""
    found = [row | {"precision": best_precision(row)} for row in rows if row["seq"] == seq]
    means: dict[str, Any] = {"seeds": len(found)}
    for way in ("together", "structure", "precision"):
        every = [
            row[way] | {"kept": row[way]["metric"] / row["baseline"]} for row in found if row[way]
        ]
        if every:
            means[way] = {
                name: round(statistics.mean(float(one[name]) for one in every), 4)
                for name in ("metric", "kept", "latency")
            } | {"served": sorted({one["served"] for one in every}), "seeds": len(every)}
    return means


if __name__ == "__main__":
    main()
