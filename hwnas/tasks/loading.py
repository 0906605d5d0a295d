"""A task: rows in three splits that never mix, of one kind, and the metric that counts.

Search looks at one half of validation, the choice among finalists at the other, and nothing looks
at test before the summary. How rows are read is `rows`, how they are split `splits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError
from hwnas.tasks import demo_tweets
from hwnas.tasks.encoding import TEXT_COLUMNS
from hwnas.tasks.kinds import Kind
from hwnas.tasks.rows import FORMATS, Row, read_file, read_hub
from hwnas.tasks.spec import TaskSpec
from hwnas.tasks.splits import key, separate

if TYPE_CHECKING:
    from datasets import Dataset

_FEW = 100  # a test split smaller than this scores accuracy with a standard error of 4 points
_MAX_LENGTH = 128


@dataclass(frozen=True, eq=False)
class Task:
    """Rows in three splits, their kind and their metric.

    Each split has the columns of its kind and `id` (number of the row in its source), in a fixed
    shuffled order.
    """

    name: str
    text: tuple[str, ...]  # the source's columns
    label: str
    kind: Kind
    labels: list[str]  # names of classes, by index; none where there are no classes
    metric: str
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

    def texts(self) -> list[str]:
        """All texts of train and validation, whatever their column."""
        found: list[str] = []
        for split in (self.train, self.validation):
            for column in _columns(split, (*TEXT_COLUMNS, "question", "context", "words")):
                found += [t if isinstance(t, str) else " ".join(t) for t in column]
        return found


def _columns(dataset: Dataset, names: Sequence[str]) -> list[list[Any]]:
    """Those of the columns that a split has."""
    present = [name for name in names if name in dataset.column_names]
    return list(dataset.select_columns(present)[:].values())


def _middle(dataset: Dataset) -> int:
    """The index nearest the middle that parts no near-duplicates (they stand side by side)."""
    columns = _columns(dataset, (*TEXT_COLUMNS, "words", "context", "choices"))
    keys = [
        key([t for part in texts for t in ([part] if isinstance(part, str) else part)])
        for texts in zip(*columns, strict=True)
    ]
    borders = [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]
    return min(borders, key=lambda i: abs(i - len(keys) / 2), default=len(keys) // 2)


def load_task(spec: TaskSpec) -> Task:
    """Read the data of `spec` and split it.

    Data in one source is split 80/10/10 by a hash of the normalised text; given `validation` and
    `test` files are kept, without near-duplicates in two splits (`splits.separate`).

    Raises:
        UserError: in one line, what is wrong with which file.
    """
    kind = spec.task_kind
    given, notes = _read_source(spec)
    sources = dict.fromkeys(("train", "validation", "test"), spec.data)
    for split, file in (("validation", spec.validation), ("test", spec.test)):
        if file is not None:
            given[split] = read_file(Path(file).expanduser(), spec.columns, kind.parse)
            sources[split] = file
    parts, split_notes = separate(given, kind.identity)
    _check_sizes(parts, sources, kind)
    labels = kind.label_names(
        parts["train"], sources["train"], spec.usual_metric, spec.columns.label
    )
    for split in ("validation", "test"):
        _check_seen(parts[split], labels, sources[split], split)
    few = len(parts["test"]) < _FEW
    split_notes += [f"test has only {len(parts['test'])} rows: its score is rough"] if few else []
    return Task(
        name=f"{spec.data}/{spec.subset}" if spec.subset else spec.data,
        text=spec.columns.texts,
        label=spec.columns.label,
        kind=kind,
        labels=labels,
        metric=spec.usual_metric,
        max_length=spec.max_length or _MAX_LENGTH,
        notes=(*notes, *split_notes),
        **{split: kind.split(rows, labels) for split, rows in parts.items()},
    )


def _read_source(spec: TaskSpec) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of `spec.data`, by split, and notes; a single source is all `train`."""
    if spec.data == "demo:tweets":
        return _read_tweets(spec)
    if spec.data.startswith("demo:"):
        raise UserError(f"data {spec.data!r}: unknown demo data; known: demo:tweets")
    parse = spec.task_kind.parse
    if is_file(spec.data):
        return {"train": read_file(Path(spec.data).expanduser(), spec.columns, parse)}, []
    splits = dict(zip(("train", "test"), spec.known.splits, strict=True)) if spec.known else None
    return read_hub(spec.data, spec.subset, spec.columns, parse, splits)


def _read_tweets(spec: TaskSpec) -> tuple[dict[str, list[Row]], list[str]]:
    has = demo_tweets.COLUMNS
    if spec.kind_name not in ("classification", "embedding", "choice"):
        raise UserError(f"{spec.data}: is for tasks of kind classification, embedding or choice")
    if spec.columns.texts != has.texts or spec.columns.label not in (has.label, ""):
        raise UserError(
            f"{spec.data}: its columns are 'text' and 'label', not "
            f"{', '.join(map(repr, spec.columns.all))}"
        )
    rows, notes = demo_tweets.read_tweets()
    if not spec.columns.label:
        rows = [row._replace(label="") for row in rows]
    if spec.kind_name == "choice":
        if not spec.choices:
            raise UserError(f"{spec.data}: is of texts in classes; give task.choices")
        records = ({"text": row.texts[0], "label": row.label} for row in rows)
        read = (spec.task_kind.parse(record, spec.columns, spec.data) for record in records)
        rows = [Row(*found, row.id) for found, row in zip(read, rows, strict=True)]
    return {"train": rows}, notes


def is_file(data: str) -> bool:
    """Whether `data` names a file, rather than a data set of the hub."""
    path = Path(data).expanduser()
    if path.is_dir():  # of files that `load_dataset` reads
        return False
    looks_like_one = path.suffix.lower() in (*FORMATS, ".json", ".txt", ".parquet", ".xlsx")
    return path.is_file() or looks_like_one or data.startswith((".", "/", "~"))


def _check_sizes(
    parts: Mapping[str, Sequence[Row]], sources: Mapping[str, str], kind: Kind
) -> None:
    """Raise `UserError` unless every split has the rows that its use takes."""

    def same(a: Row, b: Row) -> bool:
        return key(kind.identity(a.texts)) == key(kind.identity(b.texts))

    for split, rows in parts.items():
        needed = 1 if split == "test" else 2  # validation is halved
        # near-duplicates stand side by side, so equal ends mean that all are one text
        distinct = len(rows) if len(rows) < 2 or not same(rows[0], rows[-1]) else 1
        if distinct < needed:
            raise UserError(
                f"{sources[split]}: too few rows: {distinct or 'none'} left for {split} "
                "once split without near-duplicates; give more data, or a file for each split"
            )


def _check_seen(rows: Sequence[Row], labels: Sequence[str], source: str, split: str) -> None:
    """Raise `UserError` if a held-out row has a label that training does not know."""
    if not labels:
        return
    of_row = (row.label if isinstance(row.label, tuple) else (row.label,) for row in rows)
    unseen = Counter(label for found in of_row for label in found if label not in labels)
    if unseen:
        name, count = unseen.most_common(1)[0]
        raise UserError(
            f"{source}: label {name!r} ({count} rows of {split}) is never seen in "
            "training; correct the label, remove the rows or add such rows to train"
        )
