"""Scoring any folder (dense, ONNX or OpenVINO) on a file of labelled texts, every row of it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

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
    from typing import get_args

    from transformers import AutoTokenizer

    from hwnas.export import load_exported
    from hwnas.training.data import Metric, encode, read_rows
    from hwnas.training.evaluate import cross_entropy, predict, score

    if metric not in get_args(Metric):
        raise UserError(f"metric {metric!r}: unknown; known: {', '.join(get_args(Metric))}")
    known = cast(Metric, metric)
    loaded = load_exported(model)
    labels = [loaded.config.id2label[i] for i in range(loaded.config.num_labels)]
    rows = read_rows(data, text, label, labels)
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = encode(rows, tokenizer, max_length)
    logits = predict(loaded, encoded, progress="evaluate")
    return Evaluation(
        model=str(model),
        data=str(data),
        rows=len(encoded),
        metric=metric,
        value=score(known, logits, encoded["labels"]),
        cross_entropy=cross_entropy(logits, encoded["labels"]),
    )
