"""Scoring any folder (dense, ONNX or OpenVINO) on a file of labelled texts, every row of it.

Assumes that the file names the classes as the model does: as strings, in any order.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

from pydantic import BaseModel, ConfigDict

from hwnas.errors import UserError


class Evaluation(BaseModel):
    """A folder's score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    data: str
    rows: int
    metric: str
    value: float  # per cent
    cross_entropy: float


def evaluate_folder(
    model: Path, data: Path, text: list[str], label: str, metric: str, max_length: int
) -> Evaluation:
    """Score `model` on every row of `data`.

    Args:
        text: the column of the text, or the two of a pair.
        max_length: tokens; longer texts are cut.

    Raises:
        UserError: an unknown metric, a folder or file that cannot be read, or a label that the
            model does not know.
    """
    from hwnas.export import load_exported
    from hwnas.models import load_tokenizer
    from hwnas.training.data import Metric, encode, labelled
    from hwnas.training.evaluate import cross_entropy, predict, score
    from hwnas.training.tables import Columns, read_file

    if metric not in get_args(Metric):
        raise UserError(f"metric {metric!r}: unknown; known: {', '.join(get_args(Metric))}")
    if len(text) not in (1, 2):
        raise UserError(f"text columns {', '.join(text)}: give one, or the two of a pair")
    loaded = load_exported(model)
    names = [loaded.config.id2label[i] for i in range(loaded.config.num_labels)]
    if metric == "f1" and len(names) != 2:
        raise UserError(f"metric f1 is for two classes, {model} has {len(names)}; use f1_macro")
    rows = labelled(read_file(data, Columns(tuple(text), label), known=names), names)
    encoded = encode(rows, load_tokenizer(model), max_length)
    logits = predict(loaded, encoded, progress="evaluate")
    return Evaluation(
        model=str(model),
        data=str(data),
        rows=len(encoded),
        metric=metric,
        value=score(cast(Metric, metric), logits, encoded["labels"]),
        cross_entropy=cross_entropy(logits, encoded["labels"]),
    )
