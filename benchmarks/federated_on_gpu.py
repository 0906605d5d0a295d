"""Rows of `federated.py` trained on a GPU, many beside one another, each in one process.

The apps, the messages and the recipes are the same; what is left out is Ray, for a round's clients
are trained one after the other. Tiers are by the same latency table, of a CPU.

    python benchmarks/federated_on_gpu.py OUT.json sst2:0 sst2:1 tweets:0 --ways ours,smallest
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from federated import CLIENTS, WAYS, row
from record import ROOT

from hwnas.federated.client import client_app
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server import federate
from hwnas.federated.summary import FederatedSummary

sys.path.insert(0, str(ROOT / "tests" / "federated"))
from in_process import InProcess

WORKERS = 14


def in_one_process(recipe: FederatedRecipe, out: Path, **how: Any) -> FederatedSummary:
    """As `hwnas.federated.simulation.simulate`, with no processes but this one."""
    return federate(InProcess(client_app(recipe), CLIENTS), recipe, out, **how)


def job(task: str, seed: int, way: str, quick: bool) -> dict[str, Any]:
    """One row."""
    import torch

    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = row(task, seed, way, quick, runner=in_one_process)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    spent = {"seconds": round(time.perf_counter() - begin, 1), "trained_on": device}
    return {"task": task, "seed": seed, "way": way} | found | spent


def main() -> None:
    """Run what is asked for; a line for each row that ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("groups", nargs="+", help="TASK:SEED")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--quick", action="store_true", help="two rounds, to see it run")
    args = parser.parse_args()
    wanted = [(*group.split(":"), way) for way in args.ways.split(",") for group in args.groups]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context) as pool, open(args.out, "a") as file:
        running = {
            pool.submit(job, t, int(s), way, args.quick): (t, s, way) for t, s, way in wanted
        }
        for future in as_completed(running):
            if (error := future.exception()) is not None:
                print(running[future], repr(error), flush=True)
                continue
            file.write(json.dumps(future.result()) + "\n")
            file.flush()
            print(running[future], future.result()["scores"], flush=True)


if __name__ == "__main__":
    main()
