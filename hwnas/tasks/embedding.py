"""Embeddings of texts: the small model's are to be where the original's are, for retrieval.

There are no labels: the original model is the baseline and the teacher, and a text's embedding is
the mean of its tokens' last states, of length 1 (as sentence-transformers' mean pooling).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.tasks.encoding import PlainTexts
from hwnas.tasks.predict import pooled

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from hwnas.tasks.kinds import Floats

TEACHER = "teacher"  # the column of an encoded split that holds the original's embeddings


def with_teacher(encoded: Dataset, embeddings: Floats) -> Dataset:
    """Encoded rows with the embeddings `(rows, hidden)` that the original model gives them."""
    found: Dataset = encoded.add_column(TEACHER, list(embeddings))
    return found


@dataclass(frozen=True)
class Embedding(PlainTexts):
    """See the module; a `Kind`. All distances are 1 - cosine."""

    task: str = "feature-extraction"
    metrics: tuple[str, ...] = ("cosine",)
    columns: tuple[tuple[str, ...], str] = (("text",), "")
    logits: bool = False

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return outputs.last_hidden_state.new_zeros(())  # type: ignore[no-any-return]

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        mine, theirs = (
            pooled(x.last_hidden_state, inputs["attention_mask"]) for x in (outputs, teacher)
        )
        return (1 - (mine * theirs).sum(-1)).mean()

    def size(self, inputs: Mapping[str, torch.Tensor]) -> int:
        return len(inputs["input_ids"])

    def probe(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The embeddings along random directions, for the original has no loss to its own."""
        import torch

        mine = pooled(outputs.last_hidden_state, inputs["attention_mask"])
        generator = torch.Generator().manual_seed(int(inputs["input_ids"].sum()))
        along = torch.randn(mine.shape, generator=generator).to(mine)
        return (mine * along).sum(-1).mean()

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        return self.divergence(np.asarray(encoded[TEACHER]), answers, encoded)

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        return float(1 - np.mean(np.sum(teacher * answers, axis=-1)))

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        """The mean cosine to the original's embeddings, times 100."""
        if not np.isfinite(answers).all():
            return math.nan
        return 100 * (1 - self.loss(answers, encoded))
