"""The end of a run: winners exported, timed, compared with torch, scored on test; the summary.

Here, and only here, the test split is looked at, once, through the very files that are shipped.
Latency is measured in pairs with the exported baseline; the ratio decides whether a budget is met.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.anatomy import find_shape
from hwnas.clock import time_files
from hwnas.files import copy_missing, read_model, write_json, write_text
from hwnas.inputs import Inputs, load_for
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget, Target
from hwnas.latency.validation import operations
from hwnas.models import load, load_config, load_tokenizer, on_gpu
from hwnas.subnetwork import Subnetwork
from hwnas.summary import (
    Baseline,
    BesideScore,
    Chosen,
    Compute,
    KeptLimit,
    Summary,
    Unquantized,
)
from hwnas.tasks.predict import predict
from hwnas.training.baseline import read_history

if TYPE_CHECKING:
    from datasets import Dataset

    from hwnas.finalists import Winner

TRIMMED = "vocabulary.json"  # beside the formats of a model whose vocabulary was trimmed
_PACKAGES = ("hwnas", "torch", "transformers", "optimum", "onnx", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Served:
    """An exported model as the target serves it."""

    folder: Path  # holds model/, onnx/ and openvino/, and a quantized one if that is served
    target: Target
    metric: float
    size_mb: float
    params: int
    flops: int


def deliver(
    inputs: Inputs, table: LatencyTable, winners: dict[str, Winner], spent: Compute
) -> Summary:
    """Export, verify, score, and write `summary.json`, `report.html` and the model cards.

    Raises:
        HwnasError: an exported file does not answer as torch does.
    """
    path, directory = inputs.path, inputs.directory
    if (path / "summary.json").exists():
        if not (path / "report.html").exists():
            from hwnas.report.html import write_report

            write_report(path)
        return read_model(path / "summary.json", Summary)
    folders = {budget: _folder(inputs, budget) for budget in winners}
    targets = {budget: _target(inputs, winner) for budget, winner in winners.items()}
    first = _first_alike(inputs, winners)
    with directory.stage("export"):
        _write_baseline(inputs)
        for budget in winners:
            _write_winner(inputs, budget, winners[budget], first[budget])
    with directory.stage("verify"):
        timing = {b: _time(inputs, b, folder, targets[b]) for b, folder in folders.items()}
        limits = {b: _limits(inputs, b, folder, targets[b]) for b, folder in folders.items()}
        parity = {b: _parity(inputs, folders[b]) for b in folders if first[b] == b}
        _parity(inputs, path / "baseline")
    with directory.stage("test"):
        original = _serve(inputs, path / "baseline", inputs.target)
        scored = {b: _serve(inputs, folders[b], targets[b]) for b in folders if first[b] == b}
        served = {b: replace(scored[first[b]], folder=folder) for b, folder in folders.items()}
        beside = _beside(inputs, original, served)
    latency_ms = statistics.median(t["reference_ms"] for t in timing.values())
    history = read_history(path / "baseline")
    baseline = Baseline(
        metric=original.metric,
        latency_ms=latency_ms,
        size_mb=original.size_mb,
        params=original.params,
        flops=original.flops,
        steps=history.steps,
        converged=history.converged,
        unquantized=_unquantized(inputs, latency_ms),
    )
    chosen = [
        _chosen(
            inputs,
            budget,
            winners[budget],
            served[budget],
            timing[budget],
            parity[first[budget]],
            limits[budget],
            baseline,
        )
        for budget in winners
    ]
    summary = Summary(
        model=inputs.recipe.model,
        task=inputs.task.name,
        pipeline=inputs.task.kind.task,
        metric=inputs.task.metric,
        target=inputs.recipe.target,
        strategy=inputs.recipe.strategy,
        seed=inputs.recipe.seed,
        splits=inputs.task.splits | {"test": len(inputs.test_split)},
        baseline=baseline,
        chosen=chosen,
        beside=beside,
        compute=spent,
        seconds=directory.seconds(),
        versions={name: version(name) for name in _PACKAGES},
    )
    _write(path, summary)
    return summary


def exceeded(inputs: Inputs, budget: str, winners: Mapping[str, Winner]) -> float:
    """A winner's final files, exported and timed: their latency over what the budget allows."""
    with inputs.directory.stage("export"):
        _write_baseline(inputs)
        _write_winner(inputs, budget, winners[budget], _first_alike(inputs, winners)[budget])
    with inputs.directory.stage("verify"):
        target = _target(inputs, winners[budget])
        timing = _time(inputs, budget, _folder(inputs, budget), target)
    reference_ms = float(timing["reference_ms"])
    return float(timing["ratio"]) * reference_ms / Budget.parse(budget).in_ms(reference_ms)


def _folder(inputs: Inputs, budget: str) -> Path:
    return inputs.path / "chosen" / Budget.parse(budget).folder


def _target(inputs: Inputs, winner: Winner) -> Target:
    """That a winner is served at."""
    return Target.parse(winner.structure.deployment or inputs.recipe.target)


def _first_alike(inputs: Inputs, winners: Mapping[str, Winner]) -> dict[str, str]:
    """Of each budget, the first with the same winner, served alike; mostly itself."""
    first: dict[tuple[Target, str], str] = {}
    return {
        budget: first.setdefault((_target(inputs, winner), _digest(winner.weights)), budget)
        for budget, winner in winners.items()
    }


def _digest(folder: Path) -> str:
    """Of a model's exact weights."""
    digests = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(digests)


def _write_baseline(inputs: Inputs) -> None:
    baseline = inputs.path / "baseline"
    write_exact(inputs, baseline / "model", baseline)
    write_quantized(inputs, baseline, inputs.target)


def _write_winner(inputs: Inputs, budget: str, winner: Winner, first: str) -> None:
    """Write a winner's folder; what that of `first` has of it is copied; see `_first_alike`."""
    folder = _folder(inputs, budget)
    if first != budget:
        copy_missing(_folder(inputs, first), folder)
    write_exact(inputs, winner.weights, folder, trim=True)
    write_quantized(inputs, folder, _target(inputs, winner))


def _write(path: Path, summary: Summary) -> None:
    from hwnas.export import FORMATS, served_folder
    from hwnas.export.serving import write_serve
    from hwnas.report.card import card
    from hwnas.report.html import write_report

    own = Target.parse(summary.target)
    for chosen in summary.chosen:
        target = chosen.served_at(own)
        write_serve(path / chosen.path, target)
        for form in {*FORMATS, served_folder(target)}:
            write_text(path / chosen.path / form / "README.md", card(summary, chosen))
    write_json(path / "summary.json", summary)
    write_report(path)


def write_exact(inputs: Inputs, weights: Path, out: Path, *, trim: bool = False) -> None:
    """Write a model in every format.

    Args:
        trim: as chosen models are, whose vocabulary is its task's only where the recipe says so.
    """
    from hwnas.export import FORMATS, export_model
    from hwnas.vocabulary import trim as trim_vocabulary

    missing = [form for form in FORMATS if not (out / form).exists()]
    if not missing:
        return
    model, tokenizer = load(weights), inputs.tokenizer
    if trim and inputs.vocabulary is not None:
        tokenizer = trim_vocabulary(model, tokenizer, inputs.vocabulary)
        write_json(out / TRIMMED, inputs.vocabulary.report)
    export_model(model, tokenizer, out, missing)


def write_quantized(inputs: Inputs, folder: Path, target: Target) -> None:
    """Write the folder that a quantized target serves, beside the exact one."""
    from hwnas.export import calibration, quantize_folder, served_folder
    from hwnas.export.quantize import CALIBRATION_ROWS

    out = folder / served_folder(target)
    if not out.exists():
        first = inputs.task.train.select(range(min(len(inputs.task.train), CALIBRATION_ROWS)))
        encoded = _read_by(inputs, folder, first, inputs.train)
        rows = calibration(encoded, load_tokenizer(folder / "model"))
        exact = folder / served_folder(replace(target, precision="fp32"))
        quantize_folder(exact, out, target.precision, rows)


def _unquantized(inputs: Inputs, latency_ms: float) -> Unquantized | None:
    """The baseline in full precision; None where that is what the target serves.

    Args:
        latency_ms: of the baseline as it is served.
    """
    from hwnas.export import folder_size_mb, measure_against, score_folder, served_folder

    if inputs.target.precision == "fp32":
        return None
    folder, task = inputs.path / "baseline", inputs.task
    exact = folder / served_folder(replace(inputs.target, precision="fp32"))

    def ratio() -> dict[str, float]:
        pairs = inputs.recipe.measure.pairs
        served = folder / served_folder(inputs.target)
        return {"ratio": measure_against(exact, served, inputs.target, pairs=pairs).ratio}

    measured = inputs.directory.measured("baseline in full precision", ratio)
    return Unquantized(
        metric=score_folder(exact, inputs.test, task.kind, task.metric),
        latency_ms=measured["ratio"] * latency_ms,
        size_mb=folder_size_mb(exact),
    )


def _read_by(inputs: Inputs, folder: Path, split: Dataset, encoded: Dataset) -> Dataset:
    """A split as the folder's own tokenizer reads it: `encoded`, unless its vocabulary is trimmed.

    Args:
        split: rows of the task.
        encoded: the same as the original's tokenizer reads them.
    """
    if not (folder / TRIMMED).exists():
        return encoded
    tokenizer = load_tokenizer(folder / "model")
    return inputs.held_out(split, tokenizer)


def _time(inputs: Inputs, budget: str, folder: Path, target: Target) -> dict[str, Any]:
    """Paired latency of the chosen and the baseline's served files, measured once a run.

    Args:
        target: that the chosen one is served at; the baseline is at the run's.
    """
    from hwnas.export import served_folder

    reference = inputs.path / "baseline" / served_folder(inputs.target)

    def measure() -> dict[str, float]:
        paired = time_files(inputs, folder / served_folder(target), reference, target)
        return {
            "ratio": paired.ratio,
            "spread": paired.ratio_spread,
            "reference_ms": paired.reference_ms,
        }

    return inputs.directory.measured(f"chosen {budget}", measure)


def _limits(inputs: Inputs, budget: str, folder: Path, target: Target) -> list[KeptLimit]:
    """The cache that the chosen model needs, and its paired time to the first token."""
    from hwnas.export import served_folder
    from hwnas.limits import FIRST_TOKEN, cache_limit, first_token_target

    spec = inputs.recipe.limits
    found = []
    if spec.cache_mb is not None:
        limit = cache_limit(inputs, target, spec.cache_mb)
        shape = find_shape(load_config(str(folder / "model")))
        value = limit.of(Subnetwork.full(shape))
        found.append(KeptLimit(name=limit.name, unit=limit.unit, most=limit.most, value=value))
    if spec.first_token is not None:
        at = first_token_target(inputs, target)
        mine, theirs = (
            place / served_folder(one)
            for place, one in ((folder, target), (inputs.path / "baseline", inputs.target))
        )

        def measure() -> dict[str, float]:
            paired = time_files(inputs, mine, theirs, at)
            return {"ratio": paired.ratio, "reference_ms": paired.reference_ms}

        measured = inputs.directory.measured(f"first token {budget}", measure)
        most = Budget.parse(spec.first_token.budget).in_ms(measured["reference_ms"])
        value = measured["ratio"] * measured["reference_ms"]
        found.append(KeptLimit(name=FIRST_TOKEN, unit="ms", most=most, value=value))
    return found


def _parity(inputs: Inputs, folder: Path) -> dict[str, float]:
    """The largest difference of logits from torch, for each exported format, on real inputs.

    Raises:
        HwnasError: a format differs by more than `hwnas.export.compare.TOLERANCE`.
    """
    from hwnas.export import check_parity

    half = inputs.task.choice_validation
    part = half.select(range(min(inputs.recipe.measure.parity_rows, len(half))))
    encoded = inputs.choice_validation
    encoded = encoded.select(range(min(len(part), len(encoded))))
    examples = _read_by(inputs, folder, part, encoded)
    model = load(folder / "model")
    return {form: check_parity(model, folder / form, examples) for form in ("onnx", "openvino")}


def _serve(inputs: Inputs, folder: Path, target: Target) -> Served:
    """Score the served file on the test split."""
    from hwnas.export import folder_size_mb, load_exported, served_folder

    served = folder / served_folder(target)
    test = _read_by(inputs, folder, inputs.test_split, inputs.test)
    answers = predict(load_exported(served, scoring=True), test, progress=f"test {folder.name}")
    dense = load(folder / "model")
    shape = find_shape(dense.config)
    flops = round(2 * operations(Subnetwork.full(shape), shape, inputs.target))
    return Served(
        folder=folder,
        target=target,
        metric=inputs.task.kind.score(inputs.task.metric, answers, test),
        size_mb=folder_size_mb(served),
        params=sum(p.numel() for p in dense.parameters()),
        flops=flops,
    )


def _beside(inputs: Inputs, baseline: Served, chosen: Mapping[str, Served]) -> list[BesideScore]:
    """Scores on further data, of the original model and of the files that are served."""
    from hwnas.beside import load_beside
    from hwnas.export import load_exported, served_folder

    recipe = inputs.recipe
    if not recipe.beside:
        return []
    data = load_beside(recipe.beside, inputs.task.max_length)

    def of_file(one: Served) -> list[float]:
        of_weights = one.target, _digest(one.folder / "model")
        same = scored.get(of_weights)  # several budgets may have one winner
        if same is not None:
            return same
        folder = one.folder / served_folder(one.target)
        tokenizer = load_tokenizer(one.folder / "model")
        # in its runtime alone a model is scored faster, through Optimum it writes
        loaded = {
            writes: load_exported(folder, scoring=not writes)
            for writes in {d.by_writing for d in data}
        }
        found = [d.score(loaded[d.by_writing], tokenizer, inputs.tokenizer) for d in data]
        return scored.setdefault(of_weights, found)

    scored: dict[tuple[Target, str], list[float]] = {}
    model, tokenizer = load_for(recipe.model, inputs.task, seed=recipe.seed)
    before = [d.score(on_gpu(model), tokenizer) for d in data]
    after = of_file(baseline)
    by_budget = {budget: of_file(one) for budget, one in chosen.items()}
    return [
        BesideScore(
            name=one.name,
            metric=one.metric,
            rows=len(one.split),
            of=one.of,
            original=before[i],
            baseline=after[i],
            chosen={budget: found[i] for budget, found in by_budget.items()},
        )
        for i, one in enumerate(data)
    ]


def _chosen(
    inputs: Inputs,
    budget: str,
    winner: Winner,
    served: Served,
    timing: dict[str, Any],
    parity: dict[str, float],
    limits: list[KeptLimit],
    baseline: Baseline,
) -> Chosen:
    budget_ms = Budget.parse(budget).in_ms(baseline.latency_ms)
    measured_ms = timing["ratio"] * baseline.latency_ms
    most_mb = inputs.recipe.max_size_mb
    tolerance = 1 + inputs.recipe.measure.tolerance
    quick = measured_ms <= budget_ms * tolerance
    kept = all(one.value <= one.most * tolerance for one in limits)
    return Chosen(
        budget=budget,
        budget_ms=budget_ms,
        met=quick and kept and (most_mb is None or served.size_mb <= most_mb),
        kind=winner.structure.kind,
        genome=winner.structure.genome,
        metric=served.metric,
        kept=served.metric / baseline.best_metric if baseline.best_metric else 1.0,
        predicted_ms=winner.structure.predicted_ms,
        measured_ms=measured_ms,
        ratio=timing["ratio"],
        runtime=served.target.runtime,
        precision=served.target.precision,
        threads=served.target.threads,
        size_mb=served.size_mb,
        max_size_mb=most_mb,
        limits=limits,
        params=served.params,
        flops=served.flops,
        steps=winner.steps,
        parity=parity,
        rounds=winner.rounds,
        path=str(served.folder.relative_to(inputs.path)),
    )
