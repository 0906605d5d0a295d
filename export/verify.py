"""The last word on an export: its logits, its size, and its time on the target beside another's.

Times on a shared machine drift, so the exported model and its reference take turns and what counts
is the ratio within each pair (`hwnas.latency.measure`). The record is written as `export.json`
beside the folders, last: where it stands, the export is whole and verified.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import UserError
from hwnas.export.compare import TOLERANCE, check_parity, random_rows
from hwnas.export.convert import RECORD, export_model
from hwnas.export.folders import (
    FORMATS,
    RUNTIMES,
    find_format,
    folder_size_mb,
    format_for,
    load_exported,
    served_folder,
)
from hwnas.export.quantize import quantize_folder
from hwnas.files import write_json
from hwnas.latency.target import DEVICES, Target
from hwnas.progress import bar
from hwnas.summary import Record

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from hwnas.latency.measure import Paired
    from hwnas.tasks.kinds import Kind


_COMPILATIONS = 3


class Verification(Record):
    """What was found out about one export (`export.json`)."""

    target: str
    reference: str  # the folder it was timed against
    ratio: float  # median of time / reference's time, pair by pair
    ratio_spread: float
    ms: float  # median
    p10_ms: float
    p90_ms: float
    reference_ms: float  # the reference's median
    samples: int
    parity: dict[str, float]  # unquantized format -> largest difference of a logit from torch's
    size_mb: dict[str, float]  # folder's name -> its size, 10^6 bytes


def verify(
    model: PreTrainedModel,
    out: Path,
    reference: Path,
    encoded: Dataset,
    target: Target,
    *,
    tolerance: float = TOLERANCE,
    pairs: int | None = None,
) -> Verification:
    """Compare every exported folder in `out` with `model`, time the target's, write `export.json`.

    Args:
        model: the dense torch model that was exported.
        out: holds `model/`, `onnx/`, `openvino/` or some of them; the target's must be there.
        reference: the folder to time it against, of any format: the baseline's of the same format,
            or `out/model` for the gain over torch.
        encoded: rows to compare logits on; about a hundred do.
        target: where and at what shape it is timed.
        tolerance: of a logit.
        pairs: how many pairs are timed; by default as `time_pairs` has it.

    Raises:
        UserError: `reference` or the folder that the target serves is missing.
        HwnasError: a folder's logits differ from the model's by more than `tolerance`.
    """
    served = out / served_folder(target)
    for folder in (served, reference):
        find_format(folder)
    present = [name for name in FORMATS if (out / name).is_dir()]
    parity = {}
    with bar(f"compare {out.name} with torch", total=len(present)) as advance:
        for name in present:
            parity[name] = check_parity(model, out / name, encoded, target.threads, tolerance)
            advance(1.0)
    paired = measure_against(served, reference, target, pairs=pairs)
    record = Verification(
        target=str(target),
        reference=str(reference),
        ratio=paired.ratio,
        ratio_spread=paired.ratio_spread,
        ms=paired.ms,
        p10_ms=paired.p10_ms,
        p90_ms=paired.p90_ms,
        reference_ms=paired.reference_ms,
        samples=paired.samples,
        parity=parity,
        size_mb={name: folder_size_mb(out / name) for name in {*present, served.name}},
    )
    write_json(out / RECORD, record)
    return record


def measure_against(
    folder: Path, reference: Path, target: Target, *, pairs: int | None = None
) -> Paired:
    """Time two exported folders in turns at the target's shape; ratios are `folder` / `reference`.

    Each is served by the runtime of its own format, and loaded several times (`measure.Turns`).

    Raises:
        UserError: a folder is missing or holds no exported model.
    """
    from hwnas.latency.measure import PAIRS, Turns, as_stated, time_at_lengths
    from hwnas.latency.runtimes import load_for_timing

    def at_each_length(timed: Path) -> list[Turns]:
        served = _served_by_own_runtime(timed, target)
        loaded = [load_for_timing(timed, served) for _ in range(_COMPILATIONS)]
        return [Turns(at_one) for at_one in zip(*loaded, strict=True)]

    mine, others = at_each_length(folder), at_each_length(reference)
    return as_stated(time_at_lengths(mine, others, target, pairs or PAIRS), target)


def _served_by_own_runtime(folder: Path, target: Target) -> Target:
    runtime = RUNTIMES[find_format(folder)]
    # one runtime's gpu is the other's cuda
    device = target.device if target.device in DEVICES[runtime] else DEVICES[runtime][-1]
    return replace(target, runtime=runtime, device=device)


def score_folder(
    folder: Path, encoded: Dataset, kind: Kind, metric: str, threads: int | None = None
) -> float:
    """The task's metric, in per cent, of an exported folder.

    Args:
        folder: of any format.
        encoded: rows as `kind.encode` makes them.
        kind, metric: of the task.
        threads: for the folder's runtime.

    Raises:
        UserError: there is no such folder, or no exported model in it.
    """
    from hwnas.tasks.predict import predict

    answers = predict(load_exported(folder, threads), encoded, progress=f"score {folder.name}")
    return kind.score(metric, answers, encoded)


def export_and_check(model: str | Path, out: Path, target: Target) -> Verification:
    """Export the dense model in a folder in every format, and verify it without a task's data.

    Logits are compared on random tokens; the time is set against the same model in torch.

    Args:
        model: a folder of safetensors.
        out: gets `model/`, `onnx/`, `openvino/`, `export.json` and, for a target that is not
            fp32, the quantized folder that it serves.
        target: where and at what shape it is timed.

    Raises:
        UserError: the folder does not hold a usable model, `out` holds an export already, or the
            target's device is not here or its precision is not exported.
        HwnasError: an exported folder's logits differ from torch's.
    """
    from hwnas.latency.runtimes import require
    from hwnas.models import load, load_model

    target.check_exportable()
    if target.precision == "int8-static":
        raise UserError(
            f"target {target}: int8-static is calibrated on texts of a task; "
            "hwnas run has some, here choose another precision"
        )
    require(target)
    dense = load(model)  # refuses weights without a head, where `load_model` would invent one
    _, tokenizer = load_model(str(model))
    for name in dict.fromkeys((*FORMATS, served_folder(target))):
        if (out / name).exists():
            raise UserError(f"{out / name}: exists already; choose another --out or remove it")
    written = export_model(dense, tokenizer, out)
    if target.precision != "fp32":
        exact = written[format_for(target.runtime)]
        quantize_folder(exact, out / served_folder(target), target.precision)
    return verify(dense, out, out / "model", random_rows(dense, tokenizer), target)
