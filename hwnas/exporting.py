"""`hwnas export`: any dense model as files for a device, in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.anatomy.heads import generates
from hwnas.errors import UserError
from hwnas.latency.target import PRECISIONS, Target
from hwnas.models import load_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.export.verify import Judge, Judged, Recheck, Verification

_AUTO = "auto"
_SHORT = ("int8", "int4")  # whichever of them suits the runtime and what there is to calibrate on


@dataclass(frozen=True)
class Rows:
    """Where labelled rows are, and how they are read; see `evaluation.evaluate_folder`."""

    data: Path | None = None
    text: Sequence[str] | None = None
    label: str | None = None
    metric: str | None = None
    max_length: int | None = None
    against: str | None = None

    def judge(self, where: str) -> Judge | None:
        """Reads the rows for a model of that name; None without any.

        It raises `UserError` where they cannot be read, are too few, or do not fit the model.
        """
        data = self.data
        if data is None:
            return None
        from hwnas.evaluation import Reading
        from hwnas.export.verify import Judged

        def read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Judged:
            reading = Reading.of(
                model.config,
                where,
                self.text,
                self.label,
                self.metric,
                self.max_length,
                self.against,
            )
            return Judged.by(reading, reading.rows(data), tokenizer)

        return read


def export_model_as(
    model: str,
    out: Path,
    target: Target,
    precision: str | None,
    rows: Rows,
    max_drop: float = 1.0,
    keep_runtime: bool = False,
) -> Verification:
    """Export a model for a target.

    Args:
        precision: `auto`, or what the target's runtime has, or `int8`, `int4`; None: the target's.
        rows: to calibrate, compare and score on.
        max_drop, keep_runtime: of `auto`, see `export.auto`.

    Raises:
        UserError: bad input, said before anything is written.
        HwnasError: an exported file does not answer as torch does.
    """
    from hwnas.export.auto import SERVED, export_fastest
    from hwnas.export.verify import export_and_check, open_model

    judge = rows.judge(model)
    if precision == _AUTO:
        if judge is None:
            raise UserError("--precision auto: answers are scored; give labelled rows with --data")
        dense, tokenizer = open_model(model)
        judged = judge(dense, tokenizer)
        runtimes = (target.runtime,) if keep_runtime else SERVED
        return export_fastest(
            dense, tokenizer, out, target, judged, max_drop=max_drop, runtimes=runtimes
        )
    if precision in _SHORT:
        speaks = generates(load_config(model, shrinkable=False))
        target = _short(target, precision, calibrated=judge is not None and not speaks)
    elif precision is not None:
        target = _at(target, precision)
    return export_and_check(model, out, target, judge)


def recheck(folder: Path, rows: Rows) -> Recheck:
    """Verify an earlier export here against its record.

    Raises:
        UserError: there is none, or the rows cannot be read.
    """
    from hwnas.export.verify import check_again, read_record

    promised = read_record(folder).metric
    if promised is not None and rows.metric not in (None, promised):
        raise UserError(
            f"--metric {rows.metric}: {folder} promises what it loses of {promised}; leave it out"
        )
    return check_again(folder, replace(rows, metric=promised or rows.metric).judge(str(folder)))


def _at(target: Target, precision: str) -> Target:
    """The target in a precision that its runtime has."""
    has = PRECISIONS[target.runtime]
    if precision not in has:
        raise UserError(
            f"--precision {precision}: {target.runtime} has auto, {', '.join(has)}, "
            "or int8 and int4 for short"
        )
    return replace(target, precision=precision)


def _short(target: Target, precision: str, *, calibrated: bool) -> Target:
    """The target in whichever of a runtime's kinds of int8, or int4, suits best.

    Args:
        calibrated: there is something to calibrate activations on, and they may be quantized.
    """
    fitting = [name for name in PRECISIONS[target.runtime] if name.split("-")[0] == precision]
    if not fitting:
        return _at(target, precision)
    usable = [name for name in fitting if calibrated or name != "int8-static"]
    # what needs no calibration; ONNX Runtime's dynamic kind is its quicker
    quick = [name for name in usable if name == "int8-dynamic"]
    return replace(target, precision=(quick or usable or fitting)[0])
