"""Texts as splits and as token ids, for the kinds of task whose rows are a text or a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError
from hwnas.progress import bar
from hwnas.tasks.rows import Columns, Row, text_columns, text_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TEXT_COLUMNS = ("text", "text2")  # their names in every split
_CHUNK = 4096  # texts tokenized at a time


class PlainTexts:
    """The reading part of a `Kind` whose rows are one text each, without a label."""

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        return (text_of(record, columns.texts[0], where),), ""

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def label_names(self, rows: Sequence[Row], source: str, metric: str, column: str) -> list[str]:
        return []

    def split(self, rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
        return text_split(rows)

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        return encode_texts(split, tokenizer, max_length, labels=False)


def text_split(rows: Sequence[Row], labels: Sequence[Any] | None = None) -> Dataset:
    """Columns `text` (and `text2` for pairs), `label` if there are any, and `id`."""
    from datasets import Dataset

    columns: dict[str, list[Any]] = dict(zip(TEXT_COLUMNS, text_columns(rows), strict=False))
    if labels is not None:
        columns["label"] = list(labels)
    columns["id"] = [row.id for row in rows]
    return Dataset.from_dict(columns)


def texts_of(split: Dataset) -> list[list[str]]:
    """The texts of a split of `text_split`, column by column."""
    names = [name for name in TEXT_COLUMNS if name in split.column_names]
    return list(split.select_columns(names)[:].values())


def encode_texts(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, *, labels: bool
) -> Dataset:
    """The rows as token ids, not padded: `input_ids`, `attention_mask`, `token_type_ids` if the
    model takes them, `labels` and `length` (tokens). Held in memory, no cache is written.

    Args:
        max_length: longer texts (or pairs, longest first) are cut to so many tokens.

    Raises:
        UserError: the model's positions end before `max_length`.
    """
    from datasets import Dataset

    check_length(tokenizer, max_length)
    texts = texts_of(split)
    names = input_names(tokenizer)

    def encode(start: int, end: int) -> Dataset:
        part = [column[start:end] for column in texts]
        encoded = tokenizer(*part, truncation=True, max_length=max_length, padding=False)
        columns = {name: encoded[name] for name in names if name in encoded}
        if labels:
            columns["labels"] = split[start:end]["label"]
        columns["length"] = [len(ids) for ids in encoded["input_ids"]]
        return Dataset.from_dict(columns)

    return in_chunks(len(split), _CHUNK, encode)


def in_chunks(rows: int, chunk: int, encode: Callable[[int, int], Dataset]) -> Dataset:
    """What `encode(start, end)` makes of so many rows at a time, joined, under a progress bar."""
    from datasets import concatenate_datasets

    chunks = []
    with bar("Tokenizing", rows) as advance:
        for start in range(0, rows, chunk):
            end = min(start + chunk, rows)
            chunks.append(encode(start, end))
            advance(end - start)
    return concatenate_datasets(chunks)


def input_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a model takes of what its tokenizer makes."""
    return [name for name in tokenizer.model_input_names if name != "length"]


def check_length(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise `UserError` if the model's positions end before `max_length`."""
    if max_length > tokenizer.model_max_length:
        raise UserError(
            f"max_length {max_length}: the model reads at most {tokenizer.model_max_length} "
            "tokens; give no more"
        )
