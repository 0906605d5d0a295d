"""Unlabelled text, for the first of two stages of distillation: students imitate what is inside.

There is no task here, so nothing is learned from answers, only from hidden states and relations.
Blank rows, as between the paragraphs of WikiText, are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from hwnas.tasks.embedding import Embedding
from hwnas.tasks.loading import is_file
from hwnas.tasks.rows import Columns, read_file, read_hub

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


class TextSpec(BaseModel):
    """Where unlabelled text is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(min_length=1)  # a CSV, TSV or JSONL file, or a hub name (its train split)
    subset: str | None = None  # which configuration of a hub dataset
    text: str = "text"  # the column


@dataclass(frozen=True)
class Unlabelled(Embedding):
    """A `Kind` whose answers do not count."""

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        if str(record.get(columns.texts[0]) or "").strip():
            return super().parse(record, columns, where)
        return (), ""

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        return self.hard_loss(outputs, inputs)

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        first: torch.Tensor = outputs[0]
        return first.new_zeros(())


def load_text(spec: TextSpec) -> Dataset:
    """All texts of `spec`, as a split to encode.

    Raises:
        UserError: a file or column is missing, or there is no text.
    """
    kind, columns = Unlabelled(), Columns((spec.text,), "")
    if is_file(spec.data):
        rows = read_file(Path(spec.data).expanduser(), columns, kind.parse)
    else:
        splits = {"train": "train"}
        found, _ = read_hub(spec.data, spec.subset, columns, kind.parse, splits)
        rows = found["train"]
    return kind.split(rows, [])
