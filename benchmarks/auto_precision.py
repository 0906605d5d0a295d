"""Whether `hwnas export --precision auto` finds the fastest way to serve a model, and its gain.

Three models with real weights and rows (MiniLM's sentence embeddings; MiniLM trained on SST-2; a
half-size subnetwork of it), at three shapes. For each, every combination of runtime and precision
is timed until it is sure, and scored: the fastest that loses at most one point is what `auto`
should have chosen. Beside it stand what `optimum-cli export openvino` and `export onnx` write by
default, with as many threads and otherwise the settings that Optimum loads them with.

Where this processor lacks a precision, the row's combinations lack it too.

    python benchmarks/auto_precision.py --json benchmarks/results/auto_precision.json
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from record import Results, options
from search import DATA, trained

from hwnas.export.auto import combinations, export_fastest
from hwnas.export.convert import save_model
from hwnas.export.folders import served_folder
from hwnas.export.verify import Judged, measure_against, open_model
from hwnas.exporting import Rows
from hwnas.latency.measure import PAIRS, Inference, Turns, as_stated, settled, time_at_lengths
from hwnas.latency.runtimes import load_for_timing, openvino_core, random_feed
from hwnas.latency.target import Target
from hwnas.search.exact import solve
from hwnas.trained import TrainedRun

SHAPES = ("threads=1,batch=1,seq=32", "threads=1,batch=1,seq=128", "threads=2,batch=8,seq=64")
MODELS = ("minilm-embeddings", "minilm-sst2", "minilm-sst2-half")
MAX_DROP = 1.0  # points of accuracy, or hundredths of the cosine
PROTOCOL = (
    "per model and shape: hwnas export --precision auto; every combination timed in turns with "
    "fp32 OpenVINO until sure to a hundredth, and scored; optimum-cli's defaults timed likewise"
)


def model_of(name: str, folder: Path) -> tuple[Any, Any, Judged]:
    """A model, its tokenizer, and rows that judge it."""
    rows = Rows(DATA / "dev.jsonl", ["sentence"], metric="accuracy")
    if name == "minilm-embeddings":
        model, tokenizer = open_model("demo:minilm")
        rows = Rows(DATA / "dev.jsonl", ["sentence"], against="demo:minilm")
    else:
        run = TrainedRun.open(trained())
        model, tokenizer = open_model(run.inputs.path / "baseline" / "model")
        if name == "minilm-sst2-half":
            half = 0.5 * run.table.reference_ms
            predictor = run.table.predictor().near(half)
            found = solve(run.space, run.scores.loss(), predictor, half, droppable=False)
            model = run.network.extract(found.subnetwork)
    save_model(model, tokenizer, folder)
    judge = rows.judge(name)
    assert judge is not None
    return model, tokenizer, judge(model, tokenizer)


def row(name: str, shape: str) -> dict[str, Any]:
    """What auto chose, all combinations, and Optimum's defaults."""
    target = Target.parse(f"openvino:cpu:{shape}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, tokenizer, judged = model_of(name, folder / "dense")
        auto = export_fastest(model, tokenizer, folder / "auto", target, judged, max_drop=MAX_DROP)
        chosen = Target.parse(auto.target)
        exact = folder / "auto" / "openvino"
        every = [
            _combination(one, model, tokenizer, judged, folder, exact)
            for one in combinations(target)
        ]
        whole = next(c for c in every if (c["runtime"], c["precision"]) == ("openvino", "fp32"))
        for one in every:
            one["drop"] = whole["metric"] - one["metric"]
        admissible = [c for c in every if c["drop"] <= MAX_DROP]
        best = min(admissible, key=lambda c: float(c["ratio"]))
        mine = next(
            c for c in every if (c["runtime"], c["precision"]) == (chosen.runtime, chosen.precision)
        )
        defaults = {
            runtime: _default(runtime, folder, target, exact) for runtime in ("openvino", "onnx")
        }
    return {
        "chosen": [chosen.runtime, chosen.precision],
        "best": [best["runtime"], best["precision"]],
        "gap": mine["ratio"] / best["ratio"] - 1,
        "drop": mine["drop"],
        "combinations": every,
        "defaults": defaults,
        "speedup": min(defaults.values()) / mine["ratio"],
        "not_here": sorted({"bf16"} - {c["precision"] for c in every}),
    }


def _combination(
    one: Target, model: Any, tokenizer: Any, judged: Judged, folder: Path, exact: Path
) -> dict[str, Any]:
    """One combination by itself, timed beside fp32 OpenVINO and scored."""
    from hwnas.export.convert import export_onnx, export_openvino
    from hwnas.export.quantize import calibration, quantize_folder

    out = folder / "every"
    writers = {"openvino": ("openvino", export_openvino), "onnxruntime": ("onnx", export_onnx)}
    form, writer = writers[one.runtime]
    if not (out / form).exists():
        writer(model, tokenizer, out / form)
    served = out / served_folder(one)
    if not served.exists():
        rows = calibration(judged.calibrating, tokenizer)
        quantize_folder(out / form, served, one.precision, rows)
    return {
        "runtime": one.runtime,
        "precision": one.precision,
        "ratio": settled(lambda: measure_against(served, exact, one)).ratio,
        "metric": judged.score(served),
    }


def _default(runtime: str, folder: Path, target: Target, exact: Path) -> float:
    """The time of what optimum-cli exports by default, beside fp32 OpenVINO's."""
    out = folder / f"default-{runtime}"
    command = [str(Path(sys.executable).parent / "optimum-cli"), "export", runtime]
    task = ["--task", _task(folder / "dense")]
    trusted = ["--trust-remote-code"]  # our own file of code, for layers of different widths
    subprocess.run(
        [*command, "--model", str(folder / "dense"), *task, *trusted, str(out)],
        check=True,
        capture_output=True,
    )
    others = [Turns([load_for_timing(exact, target)[0] for _ in range(3)])]

    def once() -> Any:
        mine = [Turns([_as_loaded(runtime, out, target) for _ in range(3)])]
        return as_stated(time_at_lengths(mine, others, target, PAIRS), target)

    return float(settled(once).ratio)


def _task(dense: Path) -> str:
    import json

    name = json.loads((dense / "config.json").read_text())["architectures"][0]
    classifies = name.endswith("SequenceClassification")
    return "text-classification" if classifies else "feature-extraction"


def _as_loaded(runtime: str, folder: Path, target: Target) -> Inference:
    """With Optimum's own settings, and the target's threads."""
    feed = random_feed(target, 30522)
    if runtime == "openvino":
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": target.threads}
        compiled = openvino_core().compile_model(folder / "openvino_model.xml", "CPU", settings)
        request = compiled.create_infer_request()
        for port in request.model_inputs:
            request.set_tensor(port, openvino.Tensor(feed[port.get_any_name()]))
        infer: Inference = request.infer
        return infer
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = target.threads
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), chosen, providers=["CPUExecutionProvider"]
    )
    inputs = {port.name: feed[port.name] for port in session.get_inputs()}
    return lambda: session.run(None, inputs)


def main() -> None:
    """Measure, and write the rows and the headline."""
    args = options("auto_precision", __doc__)
    results = Results("auto_precision", args.quick, PROTOCOL, args.json)
    for name in MODELS[:1] if args.quick else MODELS:
        for shape in SHAPES[:1] if args.quick else SHAPES:
            results.row({"model": name, "shape": shape}, partial(row, name, shape))
    rows = results.rows
    results.finish(
        {
            "gap_to_best": max(r["gap"] for r in rows),
            "speedup_over_defaults": math.exp(
                statistics.mean(math.log(r["speedup"]) for r in rows)
            ),
            "chosen": {f"{r['model']} {r['shape']}": " ".join(r["chosen"]) for r in rows},
        }
    )


if __name__ == "__main__":
    main()
