"""Texts, or pairs of texts, with a number, such as how alike two sentences are (STS-B)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.tasks.encoding import encode_texts, text_split
from hwnas.tasks.rows import Columns, Row, text_of

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Floats


@dataclass(frozen=True)
class Regression:
    """See the module; a `Kind`. Losses are squared errors."""

    task: str = "text-classification"
    metrics: tuple[str, ...] = ("pearson", "spearman", "pearson_spearman")
    columns: tuple[tuple[str, ...], str] = (("text",), "label")
    logits: bool = False

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        texts = tuple(text_of(record, name, where) for name in columns.texts)
        value = record.get(columns.label)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise UserError(f"{where}: column {columns.label!r} holds {value!r}, expected a number")
        return texts, number

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def label_names(self, rows: Sequence[Row], source: str, metric: str, column: str) -> list[str]:
        if len({row.label for row in rows}) < 2:
            raise UserError(
                f"{source}: every row of train has {rows[0].label} in column {column!r}; "
                "a task needs numbers that differ"
            )
        return []

    def split(self, rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
        return text_split(rows, [row.label for row in rows])

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        return encode_texts(split, tokenizer, max_length, labels=True)

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from torch.nn import functional as F

        return F.mse_loss(outputs.logits.squeeze(-1), inputs["labels"].to(outputs.logits.dtype))

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        from torch.nn import functional as F

        return F.mse_loss(outputs.logits, teacher.logits)

    def size(self, inputs: Mapping[str, torch.Tensor]) -> int:
        return len(inputs["input_ids"])

    def probe(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.hard_loss(outputs, inputs)

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        return float(np.mean((answers[:, 0] - np.asarray(encoded["labels"])) ** 2))

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        return float(np.mean((answers - teacher) ** 2))

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        """Correlations times 100; 0 where all answers are alike."""
        from scipy import stats

        if not np.isfinite(answers).all():
            return math.nan
        mine, truth = answers[:, 0], np.asarray(encoded["labels"])
        if np.ptp(mine) == 0 or np.ptp(truth) == 0:
            return 0.0
        pearson = float(stats.pearsonr(mine, truth).statistic)
        spearman = float(stats.spearmanr(mine, truth).statistic)
        values = {"pearson": pearson, "spearman": spearman}
        return 100 * values.get(metric, (pearson + spearman) / 2)
