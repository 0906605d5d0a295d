"""What the kinds of tasks have in common, and which there are.

A kind says how a row is read and encoded, what its models learn from (losses, in torch) and how
their answers are judged (in numpy). Answers are one array `(n, outputs)` for a whole split: a row
for each example, or, where a model answers every token, for each token of one example after the
other (`predict`); `encoded["length"]` says how many tokens each has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hwnas.tasks.rows import Columns, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    Floats = npt.NDArray[np.floating[Any]]

KINDS = ("classification", "regression", "spans", "tokens", "embedding")  # of encoders
WRITTEN = ("choice", "instruction", "language")  # of language models


class Kind(Protocol):
    """One kind of task."""

    task: str  # Optimum's name
    metrics: tuple[str, ...]  # the first is the usual one
    columns: tuple[tuple[str, ...], str]  # the usual columns: of texts, and of the label
    logits: bool  # whether answers are logits, that a temperature may divide

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        """A row's texts and its label, both hashable.

        Raises:
            UserError: something is missing or of another kind; begins with `where`.
        """

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        """Those of a row's texts by which it is a near-duplicate of another."""

    def label_names(self, rows: Sequence[Row], source: str, metric: str, column: str) -> list[str]:
        """The names of what a model tells apart, by index; none where it does not.

        Raises:
            UserError: the labels are not fit for the task, or not for the metric.
        """

    def split(self, rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
        """The rows as a split of a `Task`."""

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """The split as a model's inputs, not padded, with labels, `length`, what `score` needs."""

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The distance of a batch's outputs from its labels."""

    def soft_loss(
        self,
        outputs: Any,
        teacher: Any,
        inputs: Mapping[str, torch.Tensor],
        temperature: float,
    ) -> torch.Tensor:
        """The distance of a batch's outputs from the teacher's."""

    def size(self, inputs: Mapping[str, torch.Tensor]) -> int | torch.Tensor:
        """Over how many rows, or tokens that count, a batch's losses are means."""

    def probe(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A number of a batch's outputs whose change says that they change: the labels' loss."""

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        """The distance of answers from the truth; smoother than the metric, lower is better."""

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        """The distance of answers from a teacher's; 0 where they are the same."""

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        """The metric, times 100; NaN where an answer is not finite."""


def encode_training(
    kind: Kind, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """A split as it is trained on, where that is not how answers to it are judged."""
    from hwnas.tasks.written import WrittenTask

    encode = kind.encode
    if isinstance(kind, WrittenTask):
        encode = kind.encode_training
    return encode(split, tokenizer, max_length)


def kind_named(name: str, **settings: Any) -> Kind:
    """The kind of that name: one of `KINDS` or `WRITTEN`."""
    from hwnas.tasks.choice import Choice
    from hwnas.tasks.classification import Classification
    from hwnas.tasks.embedding import Embedding
    from hwnas.tasks.instruction import Instruction
    from hwnas.tasks.language import Language
    from hwnas.tasks.regression import Regression
    from hwnas.tasks.spans import Spans
    from hwnas.tasks.tokens import Tokens

    makers: dict[str, Any] = {
        "classification": Classification,
        "regression": Regression,
        "spans": Spans,
        "tokens": Tokens,
        "embedding": Embedding,
        "language": Language,
        "choice": Choice,
        "instruction": Instruction,
    }
    kind: Kind = makers[name](**settings)
    return kind
