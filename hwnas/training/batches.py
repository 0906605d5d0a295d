"""Batches: encoded rows as a model, its loss and a teacher's memory take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import DataCollatorWithPadding

from hwnas.tasks.written import padded

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_QUESTIONS = ("input_ids", "attention_mask", "token_type_ids")
_LABELS = ("labels", "start_positions", "end_positions", "branch", "closing", "bytes")
ROW = "teacher_row"  # column of a row's number among those that a teacher's memory is of
_FEW_ROWS = 8


def questions(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch without its labels."""
    return {name: value for name, value in inputs.items() if name in _QUESTIONS}


def collator(tokenizer: PreTrainedTokenizerBase, examples: Dataset) -> Callable[[Any], Any]:
    """Makes batches of encoded rows, padded; labels of tokens are padded too."""
    if isinstance(examples[0].get("labels"), list):
        # that of transformers needs a token for padding, which many language models have not
        return partial(padded, pad=tokenizer.pad_token_id or 0)
    found: Callable[[Any], Any] = DataCollatorWithPadding(tokenizer)
    return found


def model_columns(examples: Dataset) -> Dataset:
    """Of encoded rows, what a model takes."""
    return _columns(examples, (*_QUESTIONS, *_LABELS))


def small_batches(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, torch.Tensor]]:
    """The first so many encoded rows as a model takes them, a few at a time, to score parts by."""
    part = model_columns(examples)
    part = part.select(range(min(len(part), count)))
    collate = collator(tokenizer, part)
    return [
        dict(collate([part[i] for i in range(at, min(at + _FEW_ROWS, len(part)))]))
        for at in range(0, len(part), _FEW_ROWS)
    ]


def remembered_columns(examples: Dataset) -> Dataset:
    """Of encoded rows, what a model takes, and their numbers in a teacher's memory."""
    return _columns(examples, (*_QUESTIONS, *_LABELS, ROW))


def _columns(examples: Dataset, names: Sequence[str]) -> Dataset:
    return examples.select_columns([name for name in names if name in examples.column_names])
