"""What a finished run leaves, built through the models of its files."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hwnas.anatomy import Shape
from hwnas.files import write_text
from hwnas.latency.parts import (
    AtLength,
    Device,
    Entry,
    Milliseconds,
    ModelSizes,
    Protocol,
    Validation,
    ValidationRow,
)
from hwnas.latency.table import LatencyTable
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork, macs
from hwnas.summary import Baseline, Candidate, Chosen, Compute, Finalist, Record, Summary

SHAPE = Shape("bert", hidden=384, head_size=32, heads=(12,) * 6, ffn=(1536,) * 6, vocab=30522)
SPACE = SearchSpace.whole(SHAPE)
BASELINE_MS = 21.4
HALF = [[5, 608], [6, 704], [5, 640], [7, 736], [6, 768], [8, 864]]
THIRD = [[4, 416], [5, 512], [0, 0], [4, 448], [5, 576], [6, 640]]

Write = Callable[..., Path]


def predicted(genome: list[list[int]]) -> float:
    """A latency proportional to the multiply-accumulates, plus a fixed part."""
    whole = macs(Subnetwork.full(SHAPE), SHAPE, 64)
    return BASELINE_MS * (0.02 + 0.98 * macs(Subnetwork.of(genome), SHAPE, 64) / whole)


def chosen(budget: str, genome: list[list[int]], /, **changes: Any) -> Chosen:
    """A chosen subnetwork that met its budget; `changes` replace single fields."""
    ms = predicted(genome)
    budget_ms = BASELINE_MS * float(budget.removesuffix("%")) / 100 if "%" in budget else 8.0
    values: dict[str, Any] = {
        "budget": budget,
        "budget_ms": budget_ms,
        "met": True,
        "kind": "evolved",
        "genome": genome,
        "metric": 73.9,
        "kept": 0.991,
        "predicted_ms": ms,
        "measured_ms": 1.005 * ms,
        "ratio": 1.005 * ms / BASELINE_MS,
        "runtime": "openvino",
        "precision": "fp32",
        "size_mb": 67.2,
        "params": 17_300_000,
        "flops": 670_000_000,
        "steps": 660,
        "parity": {"onnx": 3.4e-7, "openvino": 4.1e-7},
        "rounds": 1,
        "path": f"chosen/{budget.replace('%', 'pct')}",
    }
    return Chosen(**(values | changes))


def make_summary(**changes: Any) -> Summary:
    values: dict[str, Any] = {
        "model": "demo:minilm",
        "task": "demo:tweets",
        "metric": "accuracy",
        "target": "openvino:cpu:threads=1,batch=1,seq=64",
        "strategy": "search",
        "seed": 0,
        "splits": {"train": 30544, "validation": 3799, "test": 3815},
        "baseline": Baseline(
            metric=74.6,
            latency_ms=BASELINE_MS,
            size_mb=91.0,
            params=22_700_000,
            flops=1_390_000_000,
            steps=660,
            converged=True,
        ),
        "chosen": [
            chosen("50%", HALF),
            chosen("33%", THIRD, metric=72.5, kept=0.972, kind="hybrid"),
        ],
        "compute": Compute(baseline=660, supernet=131, search=402, finalists=378),
        "seconds": {"data": 4.1, "baseline": 251.0, "table": 38.2, "search": 107.5, "export": 40.6},
        "versions": {"hwnas": "0.1.0", "torch": "2.13.0", "openvino": "2025.4.1"},
    }
    return Summary(**(values | changes))


def make_candidates(count: int = 90) -> list[Candidate]:
    rng = random.Random(0)
    records = []
    for i in range(count):
        kind = ("exact", "uniform", "layers", "hybrid")[i] if i < 4 else "evolved"
        genome = SPACE.sample(rng, drop=0.2 if i % 3 == 0 else 0).genome
        share = predicted(genome) / BASELINE_MS
        loss = (1 - share) ** 2 * rng.uniform(0.2, 0.5) + 0.01
        records.append(_candidate("50%" if i % 2 else "33%", kind, genome, loss))
    winners = [("50%", "evolved", HALF, 0.04), ("33%", "hybrid", THIRD, 0.09)]
    return [*records, *(_candidate(*winner) for winner in winners)]


def _candidate(budget: str, kind: str, genome: list[list[int]], signal: float) -> Candidate:
    return Candidate(
        budget=budget,
        round=1,
        kind=kind,
        genome=genome,
        signal=signal,
        predicted_ms=predicted(genome),
    )


def make_table(**changes: Any) -> LatencyTable:
    """A table of a few widths; `changes` replace single fields."""
    values: dict[str, Any] = {
        "model": ModelSizes.of(SHAPE),
        "target": "openvino:cpu:threads=1,batch=1,seq=64",
        "device": Device(
            cpu="Some CPU",
            flags=("avx2", "avx512f"),
            cores=8,
            governor=None,
            memory_gb=15.6,
            system="Linux 6.1 x86_64",
        ),
        "versions": {"openvino": "2026.0", "torch": "2.13.0"},
        "protocol": Protocol(
            pairs=9,
            networks=40,
            clock="process",
            reference="the full model",
            spread=0.01,
            seconds=75,
        ),
        "reference_ms": BASELINE_MS,
        "lengths": (AtLength(tokens=64, share=1.0, reference_ms=BASELINE_MS),),
        "entries": (
            _entry("fixed", {}, 0.4),
            *(_entry("attention", {"heads": heads}, 0.12 * heads) for heads in (12, 6, 1)),
            *(_entry("ffn", {"width": width}, 0.0013 * width) for width in (128, 768, 1536)),
        ),
        "validation": make_validation(),
    }
    return LatencyTable(**(values | changes))


def _entry(op: Any, dims: dict[str, int], ms: float) -> Entry:
    spread = Milliseconds(median=ms, p10=0.98 * ms, p90=1.05 * ms)
    at_length = dims | {"seq": 64}
    return Entry(op=op, dims=at_length, ms=spread, ratio_to_reference=ms / BASELINE_MS, samples=9)


def make_validation(**changes: Any) -> Validation:
    rows = tuple(
        ValidationRow(
            genome=genome,
            predicted_ms=0.98 * predicted(genome),
            measured_ms=predicted(genome),
            remeasured_ms=1.01 * predicted(genome),
            flops_ms=0.9 * predicted(genome),
        )
        for genome in (HALF, THIRD)
    )
    values: dict[str, Any] = {
        "n": 2,
        "mape": 2.0,
        "bias": -2.0,
        "kendall_tau": 0.95,
        "noise": 1.0,
        "flops_mape": 10.04,
        "rows": rows,
    }
    return Validation(**(values | changes))


def make_finalists() -> list[Finalist]:
    records = []
    for budget, winner, kind in (("50%", HALF, "evolved"), ("33%", THIRD, "hybrid")):
        entrants = [(kind, winner, "supernet", 0.0)]
        entrants.append(("uniform", [[4, 512]] * 6, "supernet", 0.02))
        entrants.append(("layers", [[12, 1536]] * 3 + [[0, 0]] * 3, "teacher", 0.05))
        for rung, steps in enumerate((50, 350)):
            for i, (name, genome, start, behind) in enumerate(entrants):
                if rung == 0 or i == 0:
                    records.append(
                        Finalist(
                            budget=budget,
                            round=1,
                            kind=name,
                            genome=genome,
                            start=start,
                            rung=rung,
                            steps=steps,
                            loss=0.68 - 0.0002 * steps + behind,
                            metric=71.0 + 0.005 * steps - 10 * behind,
                            survived=i == 0,
                        )
                    )
    return records


def write_lines(path: Path, records: Sequence[Record]) -> None:
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))


def write_importance(path: Path) -> None:
    """Scores of every head, neuron and block."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    scores = {f"heads.{i}": rng.random(n, np.float32) for i, n in enumerate(SHAPE.heads)}
    scores |= {f"ffn.{i}": rng.random(n, np.float32) for i, n in enumerate(SHAPE.ffn)}
    save_file(scores | {"layers": rng.random(SHAPE.depth, np.float32)}, path)
