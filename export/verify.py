"""The last word on an export: its logits, its size, and its time on the target beside another's.

Times on a shared machine drift, so the exported model and its reference take turns and what counts
is the ratio within each pair (`hwnas.latency.measure`). The record is written as `export.json`
beside the folders, last: where it stands, the export is whole and verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.anatomy.heads import generates
from hwnas.errors import UserError
from hwnas.export.compare import TOLERANCE, check_parity, parity, random_rows
from hwnas.export.convert import RECORD, export_model
from hwnas.export.folders import (
    FORMATS,
    RUNTIMES,
    computed_in,
    find_format,
    folder_size_mb,
    format_for,
    load_exported,
    served_folder,
)
from hwnas.export.quantize import CALIBRATION_ROWS, calibration, quantize_folder
from hwnas.export.serving import SCRIPT, cold_start, write_serve
from hwnas.files import filling, write_json
from hwnas.latency.target import DEVICES, PHASES, Target
from hwnas.progress import bar
from hwnas.summary import Record

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.evaluation import Reading
    from hwnas.latency.measure import Paired
    from hwnas.tasks.kinds import Kind


_COMPILATIONS = 3
_COMPARED = 100  # rows, where there are as many
_SLOWER = 0.1  # of the ratio on record, by which one measured later may be larger


@dataclass(frozen=True)
class Judged:
    """Labelled rows, as `kind.encode` makes them, and by what answers are judged."""

    kind: Kind
    metric: str
    calibrating: Dataset  # rows that quantizers may look at
    scored: Dataset  # others

    @classmethod
    def by(cls, reading: Reading, rows: list[Any], tokenizer: Any) -> Judged:
        """The first rows calibrate, half of them at most, the others are scored.

        Raises:
            UserError: there are fewer than two rows.
        """
        border = min(CALIBRATION_ROWS, len(rows) // 2)
        if border < 1:
            raise UserError(f"--data: {len(rows)} rows are too few to calibrate and score on")
        calibrating, scored = (
            reading.encode(part, tokenizer) for part in (rows[:border], rows[border:])
        )
        return cls(reading.kind, reading.metric, calibrating, scored)

    @property
    def compared(self) -> Dataset:
        """A few of the scored rows, on which logits are compared."""
        return self.scored.select(range(min(_COMPARED, len(self.scored))))

    def score(self, folder: Path) -> float:
        """The metric of an exported folder, in per cent."""
        return score_folder(folder, self.scored, self.kind, self.metric)


# reads labelled rows for a model, with its tokenizer
Judge = Callable[["PreTrainedModel", "PreTrainedTokenizerBase"], Judged]


class Tried(Record):
    """One way to serve a model, among others that were tried (`auto`)."""

    runtime: str
    precision: str
    ratio: float | None = None  # of its time to the exact model's, in pairs
    ms: float | None = None
    size_mb: float | None = None
    metric: float | None = None  # of the task, in per cent; None where it was not scored
    drop: float | None = None  # points that it loses against the exact model
    chosen: bool = False
    note: str = ""


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
    cold_start_s: float | None = None  # from starting `serve.py` to its first answer
    metric: str | None = None  # by which those that were tried were scored
    max_drop: float | None = None  # points of it that might be lost
    tried: tuple[Tried, ...] = ()

    @classmethod
    def timed(cls, paired: Paired, **more: Any) -> Verification:
        """With the times of a pair, `more` being the other fields."""
        names = ("ratio", "ratio_spread", "ms", "p10_ms", "p90_ms", "reference_ms", "samples")
        return cls(**{name: getattr(paired, name) for name in names}, **more)


def write_record(out: Path, record: Verification) -> Verification:
    """Write `serve.py` and `export.json` beside the folders that they speak of.

    Returns:
        The record, with the time that the script took to start.

    Raises:
        HwnasError: the script does not answer.
    """
    write_serve(out, Target.parse(record.target))
    if record.cold_start_s is None:
        record = record.model_copy(update={"cold_start_s": cold_start(out)})
    write_json(out / RECORD, record)
    return record


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
    with bar("compare with torch", total=len(present)) as advance:
        for name in present:
            parity[name] = check_parity(model, out / name, encoded, target.threads, tolerance)
            advance(1.0)
    paired = measure_against(served, reference, target, pairs=pairs)
    record = Verification.timed(
        paired,
        target=str(target),
        reference=str(reference),
        parity=parity,
        size_mb={name: folder_size_mb(out / name) for name in {*present, served.name}},
    )
    return write_record(out, record)


def measure_against(
    folder: Path,
    reference: Path,
    target: Target,
    *,
    reference_threads: int | None = None,
    pairs: int | None = None,
) -> Paired:
    """Time two exported folders in turns at the target's shape; ratios are `folder` / `reference`.

    Each is served by the runtime of its own format, and loaded several times (`measure.Turns`).

    Args:
        reference_threads: that serve the reference; by default as many as the target has.

    Raises:
        UserError: a folder is missing or holds no exported model.
    """
    from hwnas.latency.measure import PAIRS, Turns, as_stated, time_at_lengths
    from hwnas.latency.runtimes import load_for_timing

    def at_each_length(timed: Path, threads: int) -> list[Turns]:
        served = replace(_served_by_own_runtime(timed, target), threads=threads)
        loaded = [load_for_timing(timed, served) for _ in range(_COMPILATIONS)]
        return [Turns(at_one) for at_one in zip(*loaded, strict=True)]

    mine = at_each_length(folder, target.threads)
    others = at_each_length(reference, reference_threads or target.threads)
    return as_stated(time_at_lengths(mine, others, target, pairs or PAIRS), target)


def _served_by_own_runtime(folder: Path, target: Target) -> Target:
    runtime = RUNTIMES[find_format(folder)]
    # one runtime's gpu is the other's cuda
    device = target.device if target.device in DEVICES[runtime] else DEVICES[runtime][-1]
    # bf16 is how a folder is computed, not what is in it
    precision = computed_in(folder) if target.precision == "bf16" else target.precision
    return replace(target, runtime=runtime, device=device, precision=precision)


def score_folder(folder: Path, encoded: Dataset, kind: Kind, metric: str) -> float:
    """The task's metric, in per cent, of an exported folder, computed by all processors.

    Args:
        folder: of any format.
        encoded: rows as `kind.encode` makes them.
        kind, metric: of the task.

    Raises:
        UserError: there is no such folder, or no exported model in it.
    """
    from hwnas.tasks.predict import predict

    answers = predict(load_exported(folder, scoring=True), encoded, progress=f"score {folder.name}")
    return kind.score(metric, answers, encoded)


def export_and_check(
    model: str | Path, out: Path, target: Target, judge: Judge | None = None
) -> Verification:
    """Export a dense model in every format, and verify it; the time is set against torch's.

    Args:
        model: `demo:minilm`, a folder of safetensors or a hub name; with the head of its task.
        out: gets `model/`, `onnx/`, `openvino/`, `export.json` and, for a target that is not
            fp32, the quantized folder that it serves.
        target: where and at what shape it is timed.
        judge: reads rows to calibrate, compare and score on; without it, logits are compared on
            random tokens and nothing is scored.

    Raises:
        UserError: the model cannot be used, `out` holds any of these already, or the target's
            device is not here or its precision is not exported.
        HwnasError: an exported folder's logits differ from torch's.
    """
    from hwnas.latency.runtimes import check_length, require

    target.check_exportable(PHASES)
    if target.precision == "int8-static" and judge is None:
        raise UserError(
            f"target {target}: int8-static is calibrated on texts of a task; "
            "give some with --data, or choose another precision"
        )
    require(target)
    dense, tokenizer = open_model(model)
    target = for_model(target, dense.config)
    require(target)  # now that its phase is known
    judged = judge(dense, tokenizer) if judge else None
    check_length(dense.config, target)
    for name in dict.fromkeys((*FORMATS, served_folder(target), SCRIPT, RECORD)):
        if (out / name).exists():
            raise UserError(f"{out / name}: exists already; choose another --out or remove it")
    with filling(out) as staged:
        written = export_model(dense, tokenizer, staged)
        if target.precision != "fp32":
            exact = written[format_for(target.runtime)]
            rows = calibration(judged.calibrating, tokenizer) if judged else ()
            quantize_folder(exact, staged / served_folder(target), target.precision, rows)
        encoded = random_rows(dense, tokenizer) if judged is None else judged.compared
        record = verify(dense, staged, staged / "model", encoded, target)
        record = record.model_copy(update={"reference": str(out / "model")})
        if judged is not None:
            tried = tuple(_scores(staged, target, judged, record))
            record = record.model_copy(update={"metric": judged.metric, "tried": tried})
        write_record(staged, record)
    return record


def for_model(target: Target, config: Any) -> Target:
    """The target as a model is served there: what a language model encodes are prompts.

    Raises:
        UserError: phase or precision is not for such a model.
    """
    if not generates(config):
        if target.phase != "encode":
            raise UserError(f"target {target}: the model generates no text; leave phase out")
        return target
    if target.precision == "int8-static":
        raise UserError(
            f"target {target}: int8-static is for encoders; language models have "
            "int8-weights, int4-weights (OpenVINO) and int8-dynamic (ONNX Runtime)"
        )
    return replace(target, phase="prefill") if target.phase == "encode" else target


def open_model(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A dense model of any family, for the task it was saved for, and its tokenizer.

    Raises:
        UserError: it cannot be had, weights are missing, of its head for instance, or no numbers.
    """
    from hwnas.models import load, load_tokenizer, model_folder

    folder = model_folder(str(name))
    model = load(folder, shrinkable=False)
    for part, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise UserError(f"model {name}: {part} holds NaN or infinity; its training failed")
    return model, load_tokenizer(folder)


def _scores(out: Path, target: Target, judged: Judged, record: Verification) -> list[Tried]:
    """The exact model's score and, where that is another, that of the folder that is served."""
    exact = replace(target, precision="fp32")
    metric = judged.score(out / served_folder(exact))
    found = []
    for one in dict.fromkeys((exact, target)):
        served = served_folder(one)
        mine = metric if one == exact else judged.score(out / served)
        found.append(
            Tried(
                runtime=one.runtime,
                precision=one.precision,
                ms=record.ms if one == target else None,
                size_mb=record.size_mb.get(served),
                metric=mine,
                drop=metric - mine,
                chosen=one == target,
            )
        )
    return found


class Recheck(Record):
    """What a second look at an export found, beside what its record promises."""

    target: str
    parity: dict[str, float]
    ratio: float | None  # None where what it was timed against is not there
    promised_ratio: float
    drop: float | None  # points lost against the exact model; None where it was not scored
    broken: list[str]  # promises that do not hold, a line each


def read_record(out: Path) -> Verification:
    """What an export promises.

    Raises:
        UserError: no export with its record is there.
    """
    from hwnas.files import read_model

    if not (out / RECORD).is_file():
        raise UserError(f"{out}: has no {RECORD}; was it written by hwnas export?")
    return read_model(out / RECORD, Verification)


def check_again(out: Path, judge: Judge | None = None) -> Recheck:
    """Verify an export against the record that it came with, here and now.

    Args:
        out: what `hwnas export` wrote, perhaps on another machine.
        judge: reads rows to compare and score on; without it, logits are compared on random tokens.

    Raises:
        UserError: no export with its record is there, or this machine lacks the target's device.
    """
    from hwnas.latency.measure import settled
    from hwnas.latency.runtimes import require

    record = read_record(out)
    target = Target.parse(record.target)
    require(target)
    served = out / served_folder(target)
    for folder in (out / "model", served):
        find_format(folder)
    dense, tokenizer = open_model(out / "model")
    judged = judge(dense, tokenizer) if judge else None
    encoded = random_rows(dense, tokenizer) if judged is None else judged.compared
    exact = [name for name in FORMATS if name != "model" and (out / name).is_dir()]
    found = {name: parity(dense, out / name, encoded, target.threads) for name in exact}
    broken = [
        f"{name}: logits differ from torch's by {difference:.2g}, more than {TOLERANCE:g}"
        for name, difference in found.items()
        if not difference <= TOLERANCE
    ]
    reference = out / Path(record.reference).name
    ratio: float | None = None
    if reference.is_dir():
        ratio = settled(lambda: measure_against(served, reference, target)).ratio
        if ratio > record.ratio * (1 + _SLOWER):
            broken.append(
                f"{served.name}: takes {ratio:.3f} of {reference.name}'s time here, "
                f"{record.ratio:.3f} was measured"
            )
    drop: float | None = None
    if judged is not None:
        whole = out / served_folder(replace(target, precision="fp32"))
        drop = judged.score(whole) - judged.score(served)
        if record.max_drop is not None and drop > record.max_drop:
            broken.append(
                f"{served.name}: loses {drop:.2f} points, {record.max_drop:g} are allowed"
            )
    return Recheck(
        target=record.target,
        parity=found,
        ratio=ratio,
        promised_ratio=record.ratio,
        drop=drop,
        broken=broken,
    )
