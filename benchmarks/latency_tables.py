"""How well a latency table predicts whole networks that it has not seen, beside its rivals.

Per setting (model, runtime, precision, batch, sequence or cache, threads): a table is profiled for
a limited time, every rival measures for as long, and all predict the same unseen subnetworks of
mixed widths and depths, each compiled twice and timed twice. Then: how many networks
picked just under a budget with 95 % confidence meet it, by several tables; how far tables measured
while other load comes and goes are from quiet ones; how good tables are that a kit brings back, or
that were adapted; predictions a second.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from latency_rivals import errors, isolated, toggled_load, trained, whole_samples
from record import ROOT, Results, options
from scipy.stats import kendalltau
from transformers import BertConfig

from hwnas.anatomy import find_shape
from hwnas.latency.adapt import adapt
from hwnas.latency.compare import compare
from hwnas.latency.graphs import builder
from hwnas.latency.kit import table_from, write_kit
from hwnas.latency.measure import PAIRS, settled
from hwnas.latency.parts import Machine
from hwnas.latency.pinning import pinned
from hwnas.latency.plan import Plan, whole_networks
from hwnas.latency.profiling import table_of
from hwnas.latency.session import Session, Stopwatch, check, measure
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.models import load_config
from hwnas.subnetwork import Subnetwork, genomes


class Setting(NamedTuple):
    """One row of the accuracy table."""

    model: str
    target: str
    seconds: float  # of measuring at most


SETTINGS = (
    Setting("minilm", "openvino:cpu:threads=1,batch=1,seq=128", 20),
    Setting("minilm", "onnxruntime:cpu:threads=1,batch=1,seq=32", 20),
    Setting("minilm", "onnxruntime:cpu:threads=1,batch=1,seq=128,precision=int8-dynamic", 20),
    Setting("minilm", "openvino:cpu:threads=2,batch=8,seq=32,precision=int8-static", 20),
    Setting("bert-base", "openvino:cpu:threads=2,batch=1,seq=128", 60),
    Setting("bert-base", "onnxruntime:cpu:threads=1,batch=1,seq=32,precision=int8-dynamic", 60),
    Setting("bert-base", "openvino:cpu:threads=1,batch=1,seq=384", 60),
    Setting(
        "smollm2",
        "openvino:cpu:threads=1,batch=1,phase=decode,cache=128,precision=int8-weights",
        120,
    ),
    Setting(
        "smollm2",
        "openvino:cpu:threads=1,batch=1,phase=decode,cache=1024,precision=int8-weights",
        120,
    ),
    Setting("smollm2", "openvino:cpu:threads=1,batch=1,phase=prefill,seq=128", 120),
)
# bound by reading weights out of shared caches, and by computing
BATCH_OF_1, BATCH_OF_8 = (f"openvino:cpu:threads=1,batch={n},seq=64" for n in (1, 8))
COMPLIANCE = (BATCH_OF_1, BATCH_OF_8)
ROBUSTNESS = (BATCH_OF_1, BATCH_OF_8, "openvino:cpu:threads=2,batch=1,seq=64")
KIT = "openvino:cpu:threads=1,batch=1,seq=128"
ADAPTED = "openvino:cpu:threads=2,batch=1,seq=64"
UNSEEN, QUICK_UNSEEN = 30, 6
BUDGETS, QUICK_BUDGETS = 100, 6
TABLES = 5  # that networks within budgets are picked by
ROUNDS = 3  # of a quiet table and one under load
PROTOCOL = (
    "rivals measure for as long as the table, operators alone once each, in less; samples are "
    "taken with warm caches; unseen networks: 2 compilations in turns, 15 pairs or 2 s, timed "
    "twice; errors against the first timing"
)


def config_of(model: str) -> Any:
    """The config of a model by its short name; weights are random, times do not depend on them."""
    return BertConfig() if model == "bert-base" else load_config(f"demo:{model}")


def accuracy(setting: Setting, unseen: int) -> dict[str, Any]:
    """A table and its rivals on one setting."""
    target = Target.parse(setting.target)
    config = config_of(setting.model)
    shape = find_shape(config)
    plan = Plan.of(shape, unseen, seed=0, phase=target.phase)
    build = builder(config, target)
    with pinned(target):
        stopwatch = Stopwatch(build, target, plan.reference)
        begin = time.perf_counter()
        fitted = measure(plan, stopwatch, setting.seconds)
        seconds = time.perf_counter() - begin
        samples = whole_samples(plan, shape, stopwatch, seconds)
        begin = time.perf_counter()
        alone = isolated(plan, shape, target, stopwatch.reference)
        alone_seconds = time.perf_counter() - begin
        pairs = check(plan, stopwatch)
    session = Session(tuple(fitted), tuple(pairs), seconds)
    table = table_of(session, plan, shape, target, Machine.here(target))
    found = table.validation
    assert found is not None
    networks = [first.subnetwork for first, _ in pairs]
    once, again = (
        np.array([turn.points[0].ratio for turn in turns]) for turns in zip(*pairs, strict=True)
    )
    rivals = trained(samples, shape, target) | {"isolated": alone}
    return {
        "full_ms": table.reference_ms,
        "seconds": seconds,
        "networks": len(fitted),
        "mape": found.mape,
        "bias": found.bias,
        "noise": found.noise,
        "tau": found.kendall_tau,
        # of the two timings: no order is truer than the one it is compared with
        "tau_repeated": float(kendalltau(once, again).statistic),
        "coverage_90": found.coverage_90,
        "interval_90": table.interval_90,
        "rival_networks": len(samples),
        "isolated_seconds": alone_seconds,
        "rivals": {name: errors(predict(networks), once) for name, predict in rivals.items()},
        "unseen": [row.model_dump() for row in found.rows],
    }


def profiled(spec: str) -> tuple[LatencyTable, Stopwatch, Plan, list[Any]]:
    """A table of MiniLM in 20 s, and what measured it."""
    target = Target.parse(spec)
    config = config_of("minilm")
    shape = find_shape(config)
    plan = Plan.of(shape)
    stopwatch = Stopwatch(builder(config, target), target, plan.reference)
    with pinned(target):
        begin = time.perf_counter()
        fitted = measure(plan, stopwatch, 20)
    session = Session(tuple(fitted), (), time.perf_counter() - begin)
    table = table_of(session, plan, shape, target, Machine.here(target))
    return table, stopwatch, plan, fitted


def compliance(spec: str, count: int, tables: int) -> dict[str, Any]:
    """Networks picked just under a budget with 95 % confidence, measured; each table's by turns."""
    target = Target.parse(spec)
    rows, intervals = [], []
    for number in range(tables):
        table, stopwatch, _, fitted = profiled(spec)
        sure, likely = table.predictor(0.95), table.predictor()
        candidates = whole_networks(table.model.shape, 5000, seed=5)
        bound = sure.predict_many(genomes(candidates))
        beside = statistics.median(m.points[0].reference_ms for m in fitted)
        with pinned(target):
            for share in np.linspace(0.3, 0.9, count)[number::tables]:
                budget = float(share * table.reference_ms)
                inside = np.flatnonzero(bound <= budget)
                pick: Subnetwork = candidates[int(inside[np.argmax(bound[inside])])]
                truly = settled(partial(stopwatch.once, pick, PAIRS)).ratio * beside
                rows.append((number, budget, likely.predict(pick), truly))
        intervals.append(table.interval_90)
    of, budgets, predicted, ms = np.array(rows).T
    return {
        "picked": len(rows),
        "met": float(np.mean(ms <= budgets)),
        "met_of_each_table": [float(np.mean((ms <= budgets)[of == n])) for n in range(tables)],
        "slack": float(np.mean(1 - predicted / budgets)),
        "used": float(np.mean(ms / budgets)),
        "intervals_90": intervals,
        "picks": rows,
    }


def robustness(spec: str, rounds: int) -> dict[str, Any]:
    """How far costs and predictions move when two processors are burnt on and off meanwhile.

    Quiet tables and others take turns; each of the others is compared with the quiet one before,
    and each quiet one with the next.
    """
    quiet, loaded = [profiled(spec)], []
    for _ in range(rounds):
        with toggled_load(period=3.0):
            loaded.append(profiled(spec))
        quiet.append(profiled(spec))

    def drift(one: list[Any], other: list[Any], timed: str) -> float:
        """Of networks' times beside the reference's, or as a table without pairing takes them."""
        mine, theirs = (
            {m.subnetwork: getattr(m.points[0], timed) for m in fitted} for fitted in (one, other)
        )
        return float(np.median([abs(theirs[s] / mine[s] - 1) for s in mine.keys() & theirs.keys()]))

    found: dict[str, Any] = {}
    for name, others in (("", loaded), ("_quiet_again", quiet[1:])):
        pairs = list(zip(quiet, others, strict=False))
        compared = [compare(one[0], other[0])[0] for one, other in pairs]
        each = {
            "drift": [c.drift for c in compared],  # of the costs of operators
            "predictions_apart": [c.apart for c in compared],  # of whole networks, per cent
            "paired_drift": [drift(one[-1], other[-1], "ratio") for one, other in pairs],
            "unpaired_drift": [drift(one[-1], other[-1], "ms") for one, other in pairs],
        }
        for what, values in each.items():
            found |= {f"{what}{name}": statistics.median(values), f"{what}{name}_each": values}
    return found


def kit(unseen: int) -> dict[str, Any]:
    """A table from a kit, run where only numpy and OpenVINO are installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_kit("demo:minilm", KIT, folder / "kit.zip", validate=unseen)
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        python = str(folder / "env" / "bin" / "python")
        pip = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "numpy", "openvino"], check=True)
        listed = [python, "-m", "pip", "list", "--format", "json"]
        packages = json.loads(subprocess.run(listed, capture_output=True, check=True).stdout)
        run = [python, "kit.zip", "--out", "result.json", "--minutes", "0.33"]
        subprocess.run(run, cwd=folder, check=True, capture_output=True)
        table = table_from(folder / "result.json")
        size = (folder / "kit.zip").stat().st_size
    return _record(table) | {
        "packages": sorted(package["name"] for package in packages),
        "kit_mb": size / 1e6,
    }


def adapted(unseen: int) -> dict[str, Any]:
    """A table of one target scaled to another by a tenth of the measurements."""
    source, *_ = profiled(BATCH_OF_1)
    return _record(adapt(source, "demo:minilm", ADAPTED, validate=unseen))


def _record(table: LatencyTable) -> dict[str, Any]:
    found = table.validation
    assert found is not None
    return {
        "seconds": table.protocol.seconds,
        "interval_90": table.interval_90,
        **found.model_dump(exclude={"rows"}),
    }


def speed() -> dict[str, Any]:
    """Predictions a second on one core, one vectorised call for a million BERT-base networks."""
    table, *_ = profiled(BATCH_OF_1)
    rng = np.random.default_rng(0)
    widths = (rng.integers(1, 13, (10**6, 12)), 64 * rng.integers(1, 25, (10**6, 12)))
    million = np.stack(widths, axis=-1)
    predictor = table.predictor()
    times = []
    for _ in range(5):
        begin = time.process_time()
        predictor.predict_many(million)
        times.append(time.process_time() - begin)
    return {"per_second": 1e6 / statistics.median(times)}


def main() -> None:
    """Measure, and write the rows and the headline."""
    args = options("latency_tables", __doc__)
    results = Results("latency_tables", args.quick, PROTOCOL, args.json)
    settings = SETTINGS[:1] if args.quick else SETTINGS
    unseen = QUICK_UNSEEN if args.quick else UNSEEN
    for setting in settings:
        key = {"what": "accuracy", "model": setting.model, "target": setting.target}
        results.row(key, lambda setting=setting: accuracy(setting, unseen))  # type: ignore[misc]
    budgets = QUICK_BUDGETS if args.quick else BUDGETS
    tables, rounds = (1, 1) if args.quick else (TABLES, ROUNDS)
    for spec in COMPLIANCE[: 1 if args.quick else None]:
        results.row(
            {"what": "compliance", "target": spec}, partial(compliance, spec, budgets, tables)
        )
    for spec in ROBUSTNESS[: 1 if args.quick else None]:
        results.row({"what": "robustness", "target": spec}, partial(robustness, spec, rounds))
    few = QUICK_UNSEEN if args.quick else UNSEEN // 2
    if not args.quick:
        results.row({"what": "kit", "target": KIT}, lambda: kit(unseen))
    results.row({"what": "adapt", "from": BATCH_OF_1, "target": ADAPTED}, lambda: adapted(few))
    results.row({"what": "speed"}, speed)
    results.finish(headline(results.rows))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the settings, and the rest."""
    found = [row for row in rows if row["what"] == "accuracy"]

    def median(values: list[float]) -> float:
        return round(statistics.median(values), 4)

    inside = [
        abs(row["measured_ms"] / row["predicted_ms"] - 1) <= setting["interval_90"]
        for setting in found
        for row in setting["unseen"]
    ]
    others = {row["what"]: row for row in rows if row["what"] != "accuracy"}
    return {
        "settings": len(found),
        "mape_median": median([row["mape"] for row in found]),
        "noise_median": median([row["noise"] for row in found]),
        "tau_median": median([row["tau"] for row in found]),
        "tau_least": min(row["tau"] for row in found),
        "tau_repeated_least": min(row["tau_repeated"] for row in found),
        **{
            f"{rival}_mape_median": median([row["rivals"][rival]["mape"] for row in found])
            for rival in found[0]["rivals"]
        },
        "coverage_90": round(float(np.mean(inside)), 4),
        "compliance_95": {r["target"]: r["met"] for r in rows if r["what"] == "compliance"},
        "slack_95": {r["target"]: r["slack"] for r in rows if r["what"] == "compliance"},
        "drift_under_load": {r["target"]: r["drift"] for r in rows if r["what"] == "robustness"},
        "predictions_apart_under_load": {
            r["target"]: r["predictions_apart"] for r in rows if r["what"] == "robustness"
        },
        "kit_mape": others.get("kit", {}).get("mape"),
        "adapted_mape": others["adapt"]["mape"],
        "predictions_per_second": others["speed"]["per_second"],
    }


if __name__ == "__main__":
    main()
