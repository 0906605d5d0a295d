"""Whether searches keep their promise: a measured model within the budget, or exit code 3.

Twenty runs of `hwnas search`, each with a budget drawn from 25 to 90 % of the original's latency,
over two super-networks (those of `search.py`) and two runtimes. Afterwards, in another process, the
served file and the baseline's are compiled anew and timed again in pairs: more than 2 % over the
budget counts as broken. A run that ends with exit code 3 is right if that second measurement, or
where nothing was delivered the fastest structure of the space, is over the budget too.

Runs are kept in `runs/budgets/`: an interrupted benchmark goes on inside the run that was cut off.

    python benchmarks/budgets.py --json benchmarks/results/budgets.json
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from record import ROOT, Results, options
from search import SPACES, trained

from hwnas.export import measure_against, served_folder
from hwnas.files import read_model
from hwnas.latency.measure import settled
from hwnas.latency.profiling import profile
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.models import load_config
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Summary
from hwnas.trained import TrainedRun

RUNS = ROOT / "runs" / "budgets"
RUNTIMES = ("openvino", "onnxruntime")
SHAPE = "cpu:threads=1,batch=1,seq=64"
COUNT, QUICK_COUNT = 20, 2
LEAST, MOST = 25, 90  # % of the original's latency
EVALUATIONS = 12
TOLERANCE = 0.02  # of the budget
PROTOCOL = (
    f"{COUNT} searches of trained super-networks, {SHAPE}, budgets drawn from {LEAST} to {MOST} %; "
    "timed again in pairs by a fresh process"
)


def table_of(space: str, runtime: str) -> Path:
    """A latency table of a super-network's model, measured if it is not there."""
    path = RUNS / "tables" / f"{space}-{runtime}.json"
    if not path.exists():
        config = load_config(str(trained(space) / "baseline" / "model"))
        profile(config, Target.parse(f"{runtime}:{SHAPE}"), minutes=1).save(path)
    return path


def row(number: int, space: str, runtime: str, budget: int) -> dict[str, Any]:
    """One search, and what its model takes when it is timed once more."""
    out = RUNS / f"{number}-{space}-{runtime}"
    table = table_of(space, runtime)
    if not (out / "summary.json").exists():
        shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "hwnas", "search", str(trained(space)), "--out", str(out)]
    asked = ["--table", str(table), "--budget", f"{budget}%", "--seed", str(number)]
    command += [*asked, "--evaluations", str(EVALUATIONS), "--resume"]
    ended = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if ended.returncode not in (0, 3):
        raise SystemExit(ended.stderr)
    found: dict[str, Any] = {"exit": ended.returncode}
    if not (out / "summary.json").exists():
        return found | _refused(space, table, budget, ended.stderr)
    (chosen,) = read_model(out / "summary.json", Summary).chosen
    target = Target.parse(f"{runtime}:{SHAPE}")
    mine, theirs = (out / place / served_folder(target) for place in (chosen.path, "baseline"))
    again = settled(lambda: measure_against(mine, theirs, target))
    over = again.ratio / (budget / 100) - 1
    return found | {
        "genome": chosen.genome,
        "predicted": chosen.predicted_ms / LatencyTable.load(table).reference_ms,
        "measured": chosen.ratio,
        "measured_again": again.ratio,
        "spread_again": again.ratio_spread,
        "over": over,
        "rounds": chosen.rounds,
        "kept_promise": (over <= TOLERANCE) == (ended.returncode == 0),
    }


def _refused(space: str, path: Path, budget: int, message: str) -> dict[str, Any]:
    """Whether it was right to deliver nothing: by the table, the fastest structure is over."""
    table = LatencyTable.load(path)
    blocks = TrainedRun.open(trained(space)).space.blocks
    none = [[0, 0]] * len(blocks)
    single = [
        Subnetwork.of([*none[:i], [block.heads[0], block.ffn[0]], *none[i + 1 :]])
        for i, block in enumerate(blocks)
    ]
    fastest = min(map(table.predictor().predict, single)) / table.reference_ms
    return {
        "message": message.strip().splitlines()[-1],
        "fastest": fastest,
        "kept_promise": fastest > budget / 100,
    }


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    args = options("budgets", __doc__)
    results = Results("budgets", args.quick, PROTOCOL, args.json)
    draw = random.Random(0)
    for number in range(QUICK_COUNT if args.quick else COUNT):
        space, runtime = SPACES[number % 2], RUNTIMES[number // 2 % 2]
        budget = draw.randint(LEAST, MOST)
        key = {"number": number, "model": space, "runtime": runtime, "budget": budget}
        results.row(key, partial(row, number, space, runtime, budget))
    rows = results.rows
    over = [r["over"] for r in rows if "over" in r]
    results.finish(
        {
            "runs": len(rows),
            "within_budget": sum(r["exit"] == 0 for r in rows),
            "exit_3": sum(r["exit"] == 3 for r in rows),
            "kept_promises": sum(r["kept_promise"] for r in rows),
            "largest_over": max(over, default=None),
            "unused_budget": -sum(over) / len(over) if over else None,
        }
    )


if __name__ == "__main__":
    main()
