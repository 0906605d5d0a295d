"""A task: labelled texts in three splits that never mix, and how success is scored.

Search looks at one half of validation, the choice among finalists at the other, and nothing looks
at test before the summary. How rows are read is `tables`, how they are split `splits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hwnas.errors import UserError
from hwnas.progress import bar
from hwnas.training import demo_tweets
from hwnas.training.splits import key, separate
from hwnas.training.tables import FORMATS, Columns, Row, read_file, read_hub

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Metric = Literal["accuracy", "f1", "f1_macro", "matthews"]
TEXT_COLUMNS = ("text", "text2")  # their names in every split
_FEW = 100  # a test split smaller than this scores accuracy with a standard error of 4 points
_MAX_LENGTH = 128
_CHUNK = 4096  # texts tokenized at a time


class TaskSpec(BaseModel):
    """The recipe's description of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field("demo:tweets", min_length=1)  # demo:tweets, a CSV/TSV/JSONL file, a hub name
    validation: str | None = None  # a file; without it, a tenth of the data
    test: str | None = None  # likewise
    subset: str | None = None  # which configuration of a hub dataset
    text: str | list[str] = "text"  # one column, or the two of a pair
    label: str = "label"
    metric: Metric = "accuracy"  # f1: of the second of two classes
    # tokens; longer texts are cut. By default the target's seq, or 128 where there is no target
    max_length: int | None = Field(None, ge=4)

    @field_validator("text")
    @classmethod
    def _one_or_two(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(value) not in (1, 2):
            raise ValueError(f"expected one or two columns, got {len(value)}")
        return value

    @property
    def columns(self) -> Columns:
        return Columns((self.text,) if isinstance(self.text, str) else tuple(self.text), self.label)


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled texts and their metric.

    Each split has columns `text` (and `text2` for pairs), `label` (index into `labels`) and `id`
    (number of the row in its source), in a fixed shuffled order.
    """

    name: str
    text: tuple[str, ...]  # the source's columns
    label: str
    labels: list[str]
    metric: Metric
    max_length: int
    train: Dataset
    validation: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()  # what the user should know of how the data was read

    @property
    def splits(self) -> dict[str, int]:
        """The number of rows of each split."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }

    @cached_property
    def search_validation(self) -> Dataset:
        """The half of validation that search may look at."""
        return self.validation.select(range(_middle(self.validation)))

    @cached_property
    def choice_validation(self) -> Dataset:
        """The other half, by which the finalists are judged."""
        return self.validation.select(range(_middle(self.validation), len(self.validation)))


def _texts(dataset: Dataset) -> list[list[str]]:
    names = [name for name in TEXT_COLUMNS if name in dataset.column_names]
    return list(dataset.select_columns(names)[:].values())


def _middle(dataset: Dataset) -> int:
    """The index nearest the middle that parts no near-duplicates (they stand side by side)."""
    keys = [key(texts) for texts in zip(*_texts(dataset), strict=True)]
    borders = [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]
    return min(borders, key=lambda i: abs(i - len(keys) / 2))


def load_task(spec: TaskSpec) -> Task:
    """Read the data of `spec` and split it.

    Data in one source is split 80/10/10 by a hash of the normalised text; given `validation` and
    `test` files are kept, without near-duplicates in two splits (`splits.separate`).

    Raises:
        UserError: in one line, what is wrong with which file.
    """
    given, notes = _read_source(spec)
    sources = dict.fromkeys(("train", "validation", "test"), spec.data)
    for split, file in (("validation", spec.validation), ("test", spec.test)):
        if file is not None:
            given[split] = read_file(Path(file).expanduser(), spec.columns)
            sources[split] = file
    parts, split_notes = separate(given)
    _check_sizes(parts, sources)
    labels = _class_names(parts["train"], sources["train"], spec)
    for split in ("validation", "test"):
        _check_seen(parts[split], labels, sources[split], split)
    few = len(parts["test"]) < _FEW
    split_notes += [f"test has only {len(parts['test'])} rows: its score is rough"] if few else []
    return Task(
        name=spec.data,
        text=spec.columns.texts,
        label=spec.label,
        labels=labels,
        metric=spec.metric,
        max_length=spec.max_length or _MAX_LENGTH,
        notes=(*notes, *split_notes),
        **{split: labelled(rows, labels) for split, rows in parts.items()},
    )


def _read_source(spec: TaskSpec) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of `spec.data`, by split, and notes; a single source is all `train`."""
    if spec.data == "demo:tweets":
        if spec.columns != demo_tweets.COLUMNS:
            raise UserError(
                f"{spec.data}: its columns are 'text' and 'label', not "
                f"{', '.join(map(repr, (*spec.columns.texts, spec.columns.label)))}"
            )
        rows, notes = demo_tweets.read_tweets()
        return {"train": rows}, notes
    if spec.data.startswith("demo:"):
        raise UserError(f"data {spec.data!r}: unknown demo data; known: demo:tweets")
    if _is_file(spec.data):
        return {"train": read_file(Path(spec.data).expanduser(), spec.columns)}, []
    return read_hub(spec.data, spec.subset, spec.columns)


def _is_file(data: str) -> bool:
    path = Path(data).expanduser()
    looks_like_one = path.suffix.lower() in (*FORMATS, ".json", ".txt", ".parquet", ".xlsx")
    return path.exists() or looks_like_one or data.startswith((".", "/", "~"))


def _check_sizes(parts: Mapping[str, Sequence[Row]], sources: Mapping[str, str]) -> None:
    """Raise `UserError` unless every split has the rows that its use takes."""
    for split, rows in parts.items():
        needed = 1 if split == "test" else 2  # validation is halved
        # near-duplicates stand side by side, so equal ends mean that all are one text
        distinct = len(rows) if len(rows) < 2 or key(rows[0].texts) != key(rows[-1].texts) else 1
        if distinct < needed:
            raise UserError(
                f"{sources[split]}: too few rows: {distinct or 'none'} left for {split} "
                "once split without near-duplicates; give more data, or a file for each split"
            )


def _class_names(rows: Sequence[Row], source: str, spec: TaskSpec) -> list[str]:
    """The names of the classes in the training rows, in order."""
    names = {row.label for row in rows}
    if len(names) < 2:
        raise UserError(
            f"{source}: every row of train has label {min(names)!r}; a task needs two classes"
        )
    if 2 * len(names) > len(rows):
        raise UserError(
            f"{source}: column {spec.label!r} has {len(names)} different labels in "
            f"{len(rows)} rows of train; is it the right column?"
        )
    if spec.metric == "f1" and len(names) > 2:
        raise UserError(f"metric f1 is for two classes, {spec.data} has {len(names)}; use f1_macro")
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numeric else None)


def _check_seen(rows: Sequence[Row], labels: Sequence[str], source: str, split: str) -> None:
    """Raise `UserError` if a held-out row has a label that training does not know."""
    unseen = Counter(row.label for row in rows if row.label not in labels)
    if unseen:
        name, count = unseen.most_common(1)[0]
        raise UserError(
            f"{source}: label {name!r} ({count} rows of {split}) is never seen in "
            "training; correct the label, remove the rows or add such rows to train"
        )


def labelled(rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
    """The rows with the columns of a `Task`'s splits.

    Args:
        labels: the names of the classes, by index; every row's is among them.
    """
    from datasets import Dataset

    index = {label: i for i, label in enumerate(labels)}
    columns: dict[str, list[Any]] = {
        name: list(texts)
        for name, texts in zip(
            TEXT_COLUMNS, zip(*(row.texts for row in rows), strict=True), strict=False
        )
    }
    columns["label"] = [index[row.label] for row in rows]
    columns["id"] = [row.id for row in rows]
    return Dataset.from_dict(columns)


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """The rows as token ids, not padded: `input_ids`, `attention_mask`, `token_type_ids` if the
    model takes them, `labels` and `length` (tokens). Held in memory, no cache is written.

    Args:
        dataset: a split of a `Task`.
        tokenizer: of the model.
        max_length: longer texts (or pairs, longest first) are cut to so many tokens.

    Raises:
        UserError: the model's positions end before `max_length`.
    """
    from datasets import Dataset, concatenate_datasets

    if max_length > tokenizer.model_max_length:
        raise UserError(
            f"max_length {max_length}: the model reads at most {tokenizer.model_max_length} "
            "tokens; give no more"
        )
    texts, labels = _texts(dataset), dataset[:]["label"]
    names = [n for n in tokenizer.model_input_names if n != "length"]
    chunks = []
    with bar("Tokenizing", len(dataset)) as advance:
        for start in range(0, len(dataset), _CHUNK):
            part = [column[start : start + _CHUNK] for column in texts]
            encoded = tokenizer(*part, truncation=True, max_length=max_length, padding=False)
            columns = {name: encoded[name] for name in names if name in encoded}
            columns["labels"] = labels[start : start + _CHUNK]
            columns["length"] = [len(ids) for ids in encoded["input_ids"]]
            chunks.append(Dataset.from_dict(columns))
            advance(len(part[0]))
    return concatenate_datasets(chunks)
