"""What a shrunk language model still can that it was not trained on: scores beside the task's.

A model that is trained for one task while it is cut may forget the others; LoNAS names that as its
limitation. So a recipe may name further data, of any kind of written task, and the original, the
baseline and every chosen model are scored on a stated number of its rows. Text is scored by
perplexity, the exponential of the mean loss of a token; of the original's tokens in any case, for
a model of a trimmed vocabulary reads the same text in more and shorter ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from hwnas.errors import UserError
from hwnas.tasks.generation import EXACT_MATCH, score_written
from hwnas.tasks.instruction import Instruction
from hwnas.tasks.kinds import Kind
from hwnas.tasks.loading import is_file
from hwnas.tasks.rows import read_file, read_hub
from hwnas.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PERPLEXITY = "perplexity"


class BesideSpec(TaskSpec):
    """Data as a task has it, a file whole, of the hub the test split; and how much is looked at."""

    rows: int = Field(200, ge=1)  # at most, chosen at random but always the same


@dataclass(frozen=True)
class Beside:
    """Rows to score models on."""

    name: str
    kind: Kind
    metric: str
    split: Dataset
    of: int  # rows that the data has
    max_length: int

    @classmethod
    def load(cls, name: str, spec: BesideSpec, max_length: int) -> Beside:
        """Read the data.

        Args:
            max_length: tokens of a row, where the spec says nothing.

        Raises:
            UserError: it cannot be read, or is of a kind for encoders.
        """
        where = f"beside.{name}"
        if not spec.is_written:
            raise UserError(
                f"{where}: kind {spec.kind_name} is for encoders; give choice, instruction or "
                "language"
            )
        kind = spec.task_kind
        try:
            if is_file(spec.data):
                rows = read_file(Path(spec.data).expanduser(), spec.columns, kind.parse)
            else:
                held_out = spec.known.splits[1] if spec.known else "test"
                splits = {"train": held_out}
                found, _ = read_hub(spec.data, spec.subset, spec.columns, kind.parse, splits)
                rows = found["train"]
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        some = rows
        if len(rows) > spec.rows:
            some = sorted(random.Random(0).sample(rows, spec.rows), key=lambda row: row.id)
        metric = PERPLEXITY if spec.kind_name == "language" else spec.usual_metric
        length = spec.max_length or max_length
        return cls(name, kind, metric, kind.split(some, []), len(rows), length)

    @property
    def by_writing(self) -> bool:
        """Whether answers are written, for which a model must be able to generate."""
        return self.metric == EXACT_MATCH

    def score(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        original: PreTrainedTokenizerBase | None = None,
    ) -> float:
        """The model's metric, in per cent, or its perplexity.

        Args:
            tokenizer: the model's own.
            original: whose tokens a perplexity is of; by default the model's.
        """
        from hwnas.tasks.predict import predict

        if self.by_writing:
            assert isinstance(self.kind, Instruction)
            return score_written(self.kind, model, tokenizer, self.split, self.max_length)
        encoded = self.kind.encode(self.split, tokenizer, self.max_length)
        answers = predict(model, encoded, batch_size=16, progress=f"beside: {self.name}")
        if self.metric == PERPLEXITY:
            loss = self.kind.loss(answers, encoded)
            if original is not None and len(original) != len(tokenizer):
                loss /= _bytes_of_token(tokenizer, encoded)
                loss *= _bytes_of_token(
                    original, self.kind.encode(self.split, original, self.max_length)
                )
            return math.exp(loss)
        return self.kind.score(self.metric, answers, encoded)


def _bytes_of_token(tokenizer: PreTrainedTokenizerBase, encoded: Dataset) -> float:
    """How much text a token is on the mean, the first of each row apart, which is not predicted."""
    predicted = [row[1:] for row in encoded["input_ids"]]
    texts = tokenizer.batch_decode(predicted, clean_up_tokenization_spaces=False)
    return sum(len(text.encode()) for text in texts) / sum(map(len, predicted))


def load_beside(specs: Mapping[str, BesideSpec], max_length: int) -> list[Beside]:
    """All that a recipe names; see `Beside.load`."""
    return [Beside.load(name, spec, max_length) for name, spec in specs.items()]
