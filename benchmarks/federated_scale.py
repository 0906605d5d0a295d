"""What more clients cost the server: memory, seconds and bytes of simulated runs of growing size.

MiniLM on tweets, everybody asked in every round, one step each: the server's side is what is
looked at. Every size is a process of its own, and its peak memory is that of the process in which
the server runs (the clients' are Ray's). What 10,000 clients would need is worked out from bytes
and seconds a client.

    python benchmarks/federated_scale.py --json benchmarks/results/federated_scale.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from record import Results, options

from hwnas.federated.recipe import FederatedRecipe
from hwnas.files import validate

TABLE = "minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128.json"
TARGET = "openvino:cpu:threads=1,batch=1,seq=128"
SIZES = (25, 100, 200)
MANY = 10_000
PROTOCOL = "demo:minilm on demo:tweets, two rounds, all clients asked, one step of four rows each"


def recipe_of(clients: int) -> FederatedRecipe:
    """So many clients in three tiers."""
    tiers = {"large": None, "medium": "60%", "small": "35%"}
    value = {
        "task": {"data": "demo:tweets", "max_length": 32},
        "tiers": [
            {"name": name, "budget": budget, "target": TARGET, "table": TABLE}
            for name, budget in tiers.items()
        ],
        "rounds": 2,
        "clients": {"count": clients, "split": {"kind": "even"}, "rows": 10, "deadline_s": 3000.0},
        "local": {"steps": 1, "batch": 4, "nested": 0, "grow": 0},
        "importance": "magnitude",
        "evaluation": {"every": 2, "rows": 20, "clients": False},
    }
    return validate(FederatedRecipe, value, where="federated_scale")


def measure(clients: int) -> None:
    """In a process of its own: run, and print what it took."""
    import resource

    from hwnas.federated.simulation import simulate
    from hwnas.federated.summary import Round

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        summary = simulate(recipe_of(clients), out)
        rounds = [
            Round.model_validate_json(line)
            for line in (out / "rounds.jsonl").read_text().splitlines()
        ]
    found = {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "answered": [one.answered for one in rounds],
        "round_seconds": [one.seconds for one in rounds],
        "down_bytes": summary.down_bytes / summary.rounds,
        "up_bytes": summary.up_bytes / summary.rounds,
        "seconds": summary.seconds,
    }
    print(json.dumps(found))


def row(clients: int) -> dict[str, Any]:
    """One size."""
    command = [sys.executable, __file__, "--measure", str(clients)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]))
        return
    args = options("federated_scale", __doc__)
    results = Results("federated_scale", args.quick, PROTOCOL, args.json)
    for clients in SIZES[:1] if args.quick else SIZES:
        results.row({"clients": clients}, partial(row, clients))
    results.finish(headline(results.rows))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Memory of the largest beside the smallest, and a round of 10,000 clients."""
    small, large = rows[0], rows[-1]
    n = large["clients"]
    return {
        "peak_mb": {r["clients"]: round(r["peak_mb"]) for r in rows},
        "memory_ratio": round(large["peak_mb"] / small["peak_mb"], 3),
        "seconds_a_client": round(large["round_seconds"][0] / n, 3),
        "mb_a_client": round((large["down_bytes"] + large["up_bytes"]) / n / 1e6, 1),
        "gb_of_10000_a_round": round((large["down_bytes"] + large["up_bytes"]) / n * MANY / 1e9),
    }


if __name__ == "__main__":
    main()
