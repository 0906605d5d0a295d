"""Models for three tiers of devices, learned where uneven data lies, beside other ways.

MiniLM on SST-2 (and tweets), twelve clients, a third of them in each tier of devices (the whole
model, 60 % and 35 % of its latency by a shipped table), labels spread by Dirichlet 0.3. Every
client spends the same training compute a round in all ways:

- `ours`: `hwnas federate`: subnetworks by latency, small ones learned first, then nested in the
  largest that a client's memory holds (here the whole model) and taught by it; each tier is served
  the best that it can run, in all ways;
- `heterofl`: widths as ours, each client trains its own only (Diao et al. 2021);
- `fedrolex`: the same, and the window of heads and neurons rolls every round (Alam et al. 2022);
- `smallest`: everybody trains the smallest tier's model;
- `whole`: everybody trains the whole model, in fewer steps the smaller its tier (McMahan et al.
  2017); smaller tiers' models are cut from it;
- `strong`: the whole model, by the clients of the largest tier only;
- `local`: every client alone, its tier's model on its own rows;
- `central`: the whole model on all rows in one place, the bound.

Scores are of each tier's own model on held-out rows of the data set, with every client's own
held-out rows and the bytes that travelled beside them.

    python benchmarks/federated.py --json benchmarks/results/federated.json

With `--at-once N` rows are made beside one another, on a GPU if there is one, each in one process
and without Ray; what they score is the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import ROOT, Results, options, spread

from hwnas.federated.client import Client
from hwnas.federated.identity import Identity
from hwnas.federated.local import Trainee, train_locally
from hwnas.federated.originals import original_of
from hwnas.federated.population import deal, load_simulated
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server import ROUNDS as ROUNDS_FILE
from hwnas.federated.server import Federation
from hwnas.federated.simulation import simulate
from hwnas.federated.state import ServerState
from hwnas.federated.summary import FederatedSummary
from hwnas.federated.tiers import dealt_tiers
from hwnas.files import validate
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.tasks.predict import predict
from hwnas.training.autocast import on_processor
from hwnas.training.compute import Precision

DATA = ROOT.parent / "shared" / "data"
RUNS = ROOT / "runs" / "federated"
TABLE = "minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128.json"
TARGET = "openvino:cpu:threads=1,batch=1,seq=128"
TIERS: dict[str, str | None] = {"large": None, "medium": "60%", "small": "35%"}
WAYS = ("ours", "heterofl", "fedrolex", "smallest", "whole", "strong", "local", "central")
Key = tuple[str, int, str]  # task, seed, way
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {
        "data": str(DATA / "sst2" / "train.jsonl"),
        "test": str(DATA / "sst2" / "dev.jsonl"),
        "text": "sentence",
        "max_length": 64,
    },
    "tweets": {"data": "demo:tweets", "max_length": 64},
}
SEEDS = 3
ROUNDS, STEPS, BATCH, RATE = 40, 10, 16, 1e-4
PRECISION: Precision = "bf16"  # where the processor has units for it; else all ways train in fp32
GROW = 0.2  # of the rounds, in which ours learns smaller subnetworks first
CLIENTS = 12
PROTOCOL = (
    f"demo:minilm, {CLIENTS} clients in three tiers, Dirichlet 0.3, {ROUNDS} rounds of {STEPS} "
    f"steps of {BATCH} rows (ours; the same compute a client and round for all), all test rows"
)


def recipe_of(task: str, seed: int, way: str, quick: bool) -> FederatedRecipe:
    """The recipe of one way; all but `ours` train one subnetwork a step."""
    cost = {"large": 1.0, "medium": 0.6, "small": 0.35}
    tiers = []
    for name, budget in TIERS.items():
        steps = STEPS
        if way not in ("ours", "central", "local"):
            trained = cost["small"] if way == "smallest" else cost[name]
            steps = round(STEPS * spent(name, cost) / trained)
        tiers.append(
            {
                "name": name,
                "budget": TIERS["small"] if way == "smallest" else budget,
                "target": TARGET,
                "table": TABLE,
                "steps": 1 if quick else steps,
            }
        )
    value = {
        "model": "demo:minilm",
        "task": TASKS[task],
        "tiers": tiers,
        "rounds": 2 if quick else ROUNDS,
        "clients": {"count": CLIENTS, "split": {"kind": "dirichlet", "alpha": 0.3}, "rows": 600},
        "local": {
            "steps": STEPS,
            "batch": BATCH,
            "rate": RATE,
            "precision": PRECISION,
            "nested": 1 if way == "ours" else 0,
            # who learns for itself only may make use of which classes it has
            "calibrate": 0.0 if way == "local" else 1.0,
            "grow": GROW if way == "ours" else 0.0,
            "reach": 1.0 if way in ("ours", "whole") else 0.0,
        },
        "evaluation": {"every": 2 if quick else 10, "rows": 100 if quick else 4000},
        "seed": seed,
    }
    if way in ("heterofl", "fedrolex"):  # they average over those who hold a coordinate
        value["aggregation"] = {"few": 0.0}
    return validate(FederatedRecipe, value, where="federated")


def spent(tier: str, cost: dict[str, float]) -> float:
    """What a step of ours costs a client of a tier, with one smaller tier's subnetwork."""
    smaller = [c for c in cost.values() if c < cost[tier]]
    return cost[tier] + (statistics.mean(smaller) if smaller else 0.0)


class Rolling(Federation):
    """FedRolex: every round, the first head and neurons of each block go to the end."""

    def arrange(self, state: ServerState, number: int) -> None:
        """Roll by one head and by as large a share of the neurons."""
        shape = state.network.shape
        heads = tuple(torch.arange(n, 0, -1).roll(1) for n in shape.heads)
        ffn = tuple(
            torch.arange(n, 0, -1).roll(n // h) for n, h in zip(shape.ffn, shape.heads, strict=True)
        )
        reorder(state.network.model, Importance(heads, ffn))


class StrongOnly(Federation):
    """Clients of the largest tier train; the others are judged only."""

    def chosen(self, number: int) -> list[int]:
        """Those of the largest tier."""
        return [n for n in super().chosen(number) if self.roster.clients[n].tier == "large"]


def row(
    task: str, seed: int, way: str, quick: bool, runner: Callable[..., FederatedSummary] = simulate
) -> dict[str, Any]:
    """One way's models, one for each tier.

    Args:
        runner: of a recipe in a folder.
    """
    recipe = recipe_of(task, seed, way, quick)
    if way == "central":
        return central(recipe)
    if way == "local":
        return alone(recipe)
    run = RUNS / ("quick" if quick else "full") / f"{task}-{seed}-{way}"
    kind = {"fedrolex": Rolling, "strong": StrongOnly}.get(way, Federation)
    summary = runner(recipe, run, resume=True, kind=kind)
    lines = (run / ROUNDS_FILE).read_text().splitlines()
    found = {
        "scores": {tier.name: tier.score for tier in summary.tiers},
        "clients": {tier.name: tier.mean for tier in summary.tiers},
        "lowest": {tier.name: tier.least for tier in summary.tiers},
        "genomes": {tier.name: tier.genome for tier in summary.tiers},
        "down_bytes": summary.down_bytes,
        "up_bytes": summary.up_bytes,
        "trained_bytes": summary.trained_bytes,
        "everything_bytes": summary.everything_bytes,
        "steps": summary.steps,
        "seconds": round(sum(json.loads(line)["seconds"] for line in lines), 1),
        "events": summary.events,
    }
    shutil.rmtree(run / "state")  # what is in `tiers` is enough
    return found


def start_of(recipe: FederatedRecipe) -> tuple[Any, Any]:
    """The original model with a new head, and the test rows."""
    from hwnas.models import load_model

    task = load_simulated(recipe)
    model, tokenizer = load_model(recipe.model, labels=task.labels, seed=recipe.seed)
    test = task.test.select(range(min(len(task.test), recipe.evaluation.rows)))
    return model, task.kind.encode(test, tokenizer, recipe.length)


def alone(recipe: FederatedRecipe) -> dict[str, Any]:
    """Every client's own training, for the compute that it spends in ours."""
    from hwnas.anatomy import find_shape
    from hwnas.elastic.supernet import SuperNetwork
    from hwnas.federated.parts import Part
    from hwnas.federated.tiers import Device, tiers_of
    from hwnas.importance.kinds import measure
    from hwnas.importance.spec import ImportanceSpec
    from hwnas.latency.table import LatencyTable

    torch.set_num_threads(1)
    table = LatencyTable.find(TABLE)
    scores: dict[str, list[float]] = {name: [] for name in TIERS}
    own: dict[str, list[float]] = {name: [] for name in TIERS}
    text = recipe.model_dump_json()
    model, test = start_of(recipe)
    network = SuperNetwork(model)
    sizes = measure(model, [], ImportanceSpec(kind="magnitude"))
    reorder(model, sizes)
    tiers = tiers_of(
        [Device(one, table) for one in recipe.tiers], find_shape(model.config), recipe, sizes
    )
    seconds = 0.0
    kind, metric = recipe.task.task_kind, recipe.task.usual_metric
    dealt = dealt_tiers(recipe)
    for number, name in enumerate(dealt):
        client = Client(text, Identity(f"client-{number:04}", partition=number))
        labels = client.hello().labels
        tier = tiers[name]
        part = Part.of(model.config, tier.subnetwork, kind.task, recipe.method)
        original = original_of(text, tuple(labels))
        arrays = original.embeddings | part.cut(network.model.state_dict())
        mine = Trainee.of_weights(model.config, tier.subnetwork, kind.task, arrays)
        cost = {other.name: other.macs for other in tiers.values()}
        steps = round(recipe.rounds * recipe.steps_at(name) * spent(name, cost) / cost[name])
        seconds += train_locally(
            mine,
            original.tokenizer,
            client.encoded(labels, "train"),
            kind,
            recipe.local.model_copy(update={"nested": 0}),
            smaller=[],
            steps=steps,
            rate=recipe.local.rate / 2,  # the mean of what falls to a tenth
            seed=recipe.seed * 100 + number,
        )
        scores[name].append(kind.score(metric, predict(mine.model, test), test))
        held = client.encoded(labels, "held_out")
        own[name].append(kind.score(metric, predict(mine.model, held), held))
    return {
        "scores": {name: statistics.mean(found) for name, found in scores.items()},
        "clients": {name: statistics.mean(found) for name, found in own.items()},
        "lowest": {name: min(found) for name, found in own.items()},
        "seconds": seconds,
    }


def central(recipe: FederatedRecipe) -> dict[str, Any]:
    """The whole model on all clients' training rows, for the compute of all clients in ours."""
    import tempfile

    from hwnas.training.optimization import Optimization
    from hwnas.training.trainer import train

    torch.set_num_threads(1)
    task = load_simulated(recipe)
    model, test = start_of(recipe)
    text = recipe.model_dump_json()
    from datasets import concatenate_datasets

    dealt = deal(recipe, task)
    rows = concatenate_datasets(
        [
            Client(text, Identity(f"client-{i:04}", partition=i)).encoded(task.labels, "train")
            for i in range(len(dealt))
        ]
    )
    cost = {"large": 1.0, "medium": 0.6, "small": 0.35}
    each = [recipe.steps_at(name) * spent(name, cost) for name in dealt_tiers(recipe)]
    steps = round(recipe.rounds * sum(each))
    tokenizer = original_of(text, tuple(task.labels)).tokenizer
    optimization = Optimization(
        steps=steps,
        learning_rate=RATE,
        batch=BATCH,
        freeze_embeddings=True,
        precision=PRECISION,
        seed=recipe.seed,
        checkpoint_every=0,
    )
    with tempfile.TemporaryDirectory() as work:
        train(model, tokenizer, rows, optimization, Path(work), kind=task.kind, title="central")
    score = task.kind.score(task.metric, predict(model, test), test)
    return {"scores": {"large": score}, "steps": steps, "rows": len(rows)}


def wanted(quick: bool) -> Iterator[Key]:
    """Task, seed and way: all with three seeds on the first task, with one on the second."""
    if quick:
        yield from (("sst2", 0, way) for way in ("ours", "heterofl"))
        return
    for seed in range(SEEDS):
        yield from (("sst2", seed, way) for way in WAYS)
    yield from (("tweets", 0, way) for way in WAYS)


def in_one_process(recipe: FederatedRecipe, out: Path, **how: Any) -> FederatedSummary:
    """As `simulate`, without Ray: a round's clients train one after the other."""
    sys.path.insert(0, str(ROOT / "tests" / "federated"))
    from in_process import run

    summary: FederatedSummary = run(recipe, out, **how)[0]
    return summary


def alone_in_process(task: str, seed: int, way: str, quick: bool) -> dict[str, Any]:
    """One row in a process of its own."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = row(task, seed, way, quick, runner=in_one_process)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    took = {"seconds": round(time.perf_counter() - begin, 1)}
    return (
        took | found | {"trained_on": device, "in": "bf16" if on_processor(PRECISION) else "fp32"}
    )


def beside_one_another(results: Results, keys: Sequence[Key], quick: bool, at_once: int) -> None:
    """So many rows at a time, each in a process, written as they end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, context) as pool:
        running = {
            pool.submit(alone_in_process, *key, quick): key
            for key in keys
            if results.find(named(*key)) is None
        }
        for future in as_completed(running):
            if (error := future.exception()) is not None:
                print(running[future], repr(error), flush=True)
                continue
            results.row(named(*running[future]), future.result)


def named(task: str, seed: int, way: str) -> dict[str, Any]:
    """What a row is found by."""
    return {"task": task, "seed": seed, "way": way}


def more_options(parser: argparse.ArgumentParser) -> None:
    """Which rows, and how many at a time."""
    parser.add_argument("--ways", default=",".join(WAYS), help="by default all, in this order")
    parser.add_argument("--only", nargs="*", metavar="TASK:SEED", help="by default all")
    parser.add_argument(
        "--at-once",
        type=int,
        default=0,
        help="rows beside one another, each in one process, without Ray; for a GPU, or a session",
    )


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    args = options("federated", __doc__, more_options)
    results = Results("federated", args.quick, PROTOCOL, args.json)
    keys = [
        (task, seed, way)
        for task, seed, way in wanted(args.quick)
        if way in args.ways.split(",") and (not args.only or f"{task}:{seed}" in args.only)
    ]
    if args.at_once:
        beside_one_another(results, keys, args.quick, args.at_once)
    else:
        for key in keys:
            results.row(named(*key), partial(row, *key, args.quick))
    results.finish(headline(results.rows))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Tiers won against the smallest model for all, the share of central training, and bytes."""
    found: dict[str, Any] = {}
    for task in TASKS:
        means: dict[str, dict[str, float]] = {}
        spreads: dict[str, dict[str, float]] = {}
        for way in WAYS:
            mine = [r for r in rows if r["task"] == task and r["way"] == way]
            for tier in TIERS:
                scores = [r["scores"][tier] for r in mine if tier in r["scores"]]
                if scores:
                    means.setdefault(way, {})[tier] = round(statistics.mean(scores), 2)
                if (apart := spread(scores)) is not None:
                    spreads.setdefault(way, {})[tier] = apart
        found[f"means_{task}"], found[f"spreads_{task}"] = means, spreads
    first = next(iter(TASKS))
    means, spreads = found[f"means_{first}"], found[f"spreads_{first}"]
    if {"ours", "smallest"} <= spreads.keys():
        found["tiers_won"] = sum(
            means["ours"][tier] - means["smallest"][tier]
            > max(spreads[way][tier] for way in ("ours", "smallest"))
            for tier in TIERS
        )
    large = {(r["way"], r["seed"]): r["scores"]["large"] for r in rows if r["task"] == first}
    kept = [
        large["ours", seed] / large["central", seed]
        for seed in range(SEEDS)
        if {("ours", seed), ("central", seed)} <= large.keys()
    ]
    if kept:
        found["kept_of_centralised"] = round(100 * statistics.mean(kept), 1)
    for name, of in (("bytes_ratio", "everything_bytes"), ("bytes_ratio_trained", "trained_bytes")):
        found[name] = {
            way: round(statistics.mean(shares), 3)
            for way in WAYS
            if (
                shares := [
                    (r["down_bytes"] + r["up_bytes"]) / r[of]
                    for r in rows
                    if r["way"] == way and of in r
                ]
            )
        }
    return found


if __name__ == "__main__":
    main()
