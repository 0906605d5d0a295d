"""Texts, or pairs of texts, in classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hwnas.errors import UserError
from hwnas.tasks.encoding import encode_texts, text_split
from hwnas.tasks.rows import Columns, Row, text_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Floats

    Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Classification:
    """See the module; a `Kind`."""

    task: str = "text-classification"
    metrics: tuple[str, ...] = ("accuracy", "f1", "f1_macro", "matthews", "accuracy_f1")
    columns: tuple[tuple[str, ...], str] = (("text",), "label")
    logits: bool = True

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        texts = tuple(text_of(record, name, where) for name in columns.texts)
        return texts, _class_of(record.get(columns.label), columns.label, where)

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def label_names(self, rows: Sequence[Row], source: str, metric: str, column: str) -> list[str]:
        names = {row.label for row in rows}
        if len(names) < 2:
            raise UserError(
                f"{source}: every row of train has label {min(names)!r}; a task needs two classes"
            )
        if 2 * len(names) > len(rows):
            raise UserError(
                f"{source}: column {column!r} has {len(names)} different labels in "
                f"{len(rows)} rows of train; is it the right column?"
            )
        check_classes(metric, len(names), source)
        return ordered(names)

    def split(self, rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
        index = {label: i for i, label in enumerate(labels)}
        return text_split(rows, [index[row.label] for row in rows])

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        return encode_texts(split, tokenizer, max_length, labels=True)

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(outputs.logits, inputs["labels"])

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        return softened(outputs.logits, teacher.logits, temperature)

    def size(self, inputs: Mapping[str, torch.Tensor]) -> int:
        return len(inputs["input_ids"])

    def probe(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.hard_loss(outputs, inputs)

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        return cross_entropy(answers, encoded["labels"])

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        return divergence(teacher, answers)

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        return score_classes(metric, answers, encoded["labels"])


def check_classes(metric: str, classes: int, source: str) -> None:
    """Raise `UserError` if the metric is for two classes and there are more."""
    if metric in ("f1", "accuracy_f1") and classes > 2:
        other = "f1_macro" if metric == "f1" else "accuracy"
        raise UserError(f"metric {metric} is for two classes, {source} has {classes}; use {other}")


def ordered(names: set[str]) -> list[str]:
    """Names of classes in order, numbers by their value.

    Of two, that which is not the other comes first (`not_equivalent`, `equivalent`): F1 is of the
    second, and GLUE's of MRPC and QQP of what is equivalent and a duplicate.
    """
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    if len(names) == 2:
        return sorted(names, key=lambda name: (_denied(name) not in names, name))
    return sorted(names)


def _denied(name: str) -> str | None:
    """What a class's name says that it is not."""
    found = re.fullmatch(r"(?:not|non)[ _-](.+)", name, re.IGNORECASE)
    return found[1] if found else None


def _class_of(value: Any, name: str, where: str) -> str:
    """The name of a class."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value).strip()
    if value is None or value == "" or isinstance(value, str):
        raise UserError(f"{where}: no label in column {name!r}; remove the row or fill it")
    raise UserError(f"{where}: column {name!r} holds {value!r}, expected the name of a class")


def softened(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL from the teacher, both softened (Hinton et al. 2015); logits are `(…, classes)`.

    Times the temperature's square, so that its gradients are as large as those of labels.
    """
    from torch.nn import functional as F

    mine, theirs = (x.flatten(0, -2) / temperature for x in (logits, teacher))
    apart = F.kl_div(
        F.log_softmax(mine, dim=-1),
        F.log_softmax(theirs, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * apart


def score_classes(metric: str, logits: Floats, labels: Ints | list[int]) -> float:
    """The metric in per cent (Matthews' correlation: times 100); NaN if a logit is not finite.

    Args:
        metric: one of `Classification.metrics`; F1 is that of class 1, `accuracy_f1` the mean of
            both, as GLUE takes it.
        logits: `(n, classes)`.
        labels: `(n,)`, the true classes.
    """
    from sklearn import metrics

    if not np.isfinite(logits).all():
        return math.nan
    truth, guess = np.asarray(labels), logits.argmax(axis=-1)
    if metric == "accuracy":
        value = np.mean(truth == guess)
    elif metric == "matthews":
        value = metrics.matthews_corrcoef(truth, guess)
    elif metric == "f1":
        value = metrics.f1_score(truth, guess, pos_label=1, zero_division=0)
    elif metric == "f1_macro":
        classes = range(logits.shape[1])
        value = metrics.f1_score(truth, guess, labels=classes, average="macro", zero_division=0)
    elif metric == "accuracy_f1":
        return (score_classes("accuracy", logits, labels) + score_classes("f1", logits, labels)) / 2
    else:
        raise ValueError(f"unknown metric {metric!r}")
    return 100 * float(value)


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Of the last axis, in double precision."""
    from scipy import special

    return cast("npt.NDArray[np.float64]", special.log_softmax(logits.astype(np.float64), axis=-1))


def cross_entropy(logits: Floats, labels: Ints | list[int]) -> float:
    """The mean of -log p(true class), in nats; `logits` `(n, classes)`, `labels` `(n,)`."""
    truth = np.asarray(labels)
    return float(-log_softmax(logits)[np.arange(len(truth)), truth].mean())


def divergence(teacher: Floats, logits: Floats) -> float:
    """The mean Kullback-Leibler divergence KL(teacher || model), in nats; both `(n, classes)`."""
    theirs, mine = log_softmax(teacher), log_softmax(logits)
    return float((np.exp(theirs) * (theirs - mine)).sum(axis=-1).mean())
