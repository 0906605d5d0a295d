"""Plain text, of which a language model predicts every next token.

Answers are two numbers for each token that follows another: the logarithm of the probability that
the model gave it, and whether it was the model's first choice. Logits of a whole vocabulary for a
whole split would not fit into memory.

Only what judges models is here: they are scored and compared, not yet trained on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.tasks.encoding import PlainTexts

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from hwnas.tasks.kinds import Floats


def next_tokens(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """What a batch's logits say of the tokens that came, `(batch, seq, 2)`.

    The last place of each row is of no token: there both numbers are 0.

    Args:
        logits: `(batch, seq, vocabulary)`.
        ids: `(batch, seq)`.
    """
    import torch

    answers = torch.zeros(*ids.shape, 2)
    for row, (said, came) in enumerate(zip(logits[:, :-1].float(), ids[:, 1:], strict=True)):
        given = torch.log_softmax(said, dim=-1).gather(-1, came[:, None])[:, 0]
        answers[row, :-1, 0] = given
        answers[row, :-1, 1] = (said.argmax(-1) == came).float()
    return answers


@dataclass(frozen=True)
class Language(PlainTexts):
    """See the module; the part of a `Kind` that judges."""

    task: str = "text-generation"
    metrics: tuple[str, ...] = ("token_accuracy",)
    columns: tuple[tuple[str, ...], str] = (("text",), "")
    logits: bool = False

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        """The mean negative logarithm of a token's probability; its exponential: perplexity."""
        return -float(answers[_counted(encoded), 0].mean())

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        """How much less likely than the teacher a token was found on the mean; 0 if no less."""
        counted = _counted(encoded)
        return max(0.0, float((teacher[counted, 0] - answers[counted, 0]).mean()))

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        """The share of tokens that were the first choice, times 100."""
        if not np.isfinite(answers).all():
            return math.nan
        return 100 * float(answers[_counted(encoded), 1].mean())


def _counted(encoded: Dataset) -> Any:
    """Which answers are of a token: all but each row's last."""
    lengths = np.asarray(encoded["length"])
    counted = np.ones(int(lengths.sum()), dtype=bool)
    counted[np.cumsum(lengths) - 1] = False
    return counted
