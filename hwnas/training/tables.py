"""Reading labelled rows out of CSV, TSV and JSONL files and hub datasets.

Files are UTF-8, with a header (CSV, TSV) or one JSON object a line (JSONL). Nothing is guessed or
silently left out: the first row that is damaged or lacks a text or a label stops the reading
with its line number. Labels become names: the text of the cell, or the hub's class name.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from hwnas.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (".csv", ".tsv", ".jsonl")
_MAX_CELL = 2**24  # characters; csv's own limit of 2**17 is too small for long documents


class Row(NamedTuple):
    """One labelled example."""

    texts: tuple[str, ...]  # one text, or the two of a pair
    label: str
    id: int  # number of the row in its source, from 0


class Columns(NamedTuple):
    """Where texts and label stand in a source."""

    texts: tuple[str, ...]
    label: str


def read_file(path: Path, columns: Columns, known: Collection[str] | None = None) -> list[Row]:
    """All rows of a CSV, TSV or JSONL file.

    Args:
        known: the labels that may occur; without it, any.

    Raises:
        UserError: a missing, empty or damaged file, a missing column, text or label, or a label
            that is not known.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: unknown kind of file; expected {', '.join(FORMATS)}")
    reader = _jsonl_records if path.suffix.lower() == ".jsonl" else _csv_records
    try:
        # utf-8-sig: spreadsheets put a byte order mark first; newlines are left to the parsers
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(reader(file, path), columns, str(path), "line", known))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a data file") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: not UTF-8 text ({_undecodable_line(path)}); convert it, "
            "for example with iconv -f latin1 -t utf-8"
        ) from None
    if not rows:
        raise UserError(f"{path}: has no rows")
    return rows


def _undecodable_line(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"line {number}"
    return "at its end"


def _csv_records(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and cells by column name of every row."""
    csv.field_size_limit(_MAX_CELL)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise UserError(f"{path}: column {min(twice)!r} stands twice in the header")
        line = reader.line_num + 1  # of the row's first line; a quoted cell may hold more
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}: line {line}: {len(cells)} cells, the header has {len(header)}; "
                    "quote cells that hold the separator"
                )
            if cells:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: damaged CSV: {error}") from None


def _jsonl_records(file: IO[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number}: not valid JSON: {error.msg}") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}: line {number}: expected a JSON object")
        yield number, record


def _rows(
    records: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    source: str,
    unit: str,
    known: Collection[str] | None = None,
) -> Iterator[Row]:
    for index, (number, record) in enumerate(records):
        where = f"{source}: {unit} {number}"
        if index == 0:
            check_columns(record, columns, source)
        texts = tuple(_text(record.get(name), name, where) for name in columns.texts)
        label = _label(record.get(columns.label), columns.label, where)
        if known is not None and label not in known:
            raise UserError(f"{where}: label {label!r} is not one of: {', '.join(known)}")
        yield Row(texts, label, index)


def check_columns(present: Iterable[str], columns: Columns, source: str) -> None:
    """Raise `UserError` if a column is not among those present, which it lists."""
    names = list(present)
    for wanted in (*columns.texts, columns.label):
        if wanted not in names:
            raise UserError(f"{source}: no column {wanted!r}; it has: {', '.join(map(str, names))}")


def _text(value: Any, name: str, where: str) -> str:
    if value is None or value == "":
        raise UserError(f"{where}: no text in column {name!r}; remove the row or fill it")
    if not isinstance(value, str):
        raise UserError(f"{where}: column {name!r} holds {value!r}, expected text")
    if not value.strip():
        raise UserError(f"{where}: no text in column {name!r}; remove the row or fill it")
    return value


def _label(value: Any, name: str, where: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (str, int)) and str(value).strip():
        return str(value).strip()
    if value is None or value == "" or isinstance(value, str):
        raise UserError(f"{where}: no label in column {name!r}; remove the row or fill it")
    raise UserError(f"{where}: column {name!r} holds {value!r}, expected the name of a class")


def rows_of(dataset: Dataset, columns: Columns, source: str) -> list[Row]:
    """The rows of a hub dataset's split; none if it carries no labels (-1, hidden test sets).

    Raises:
        UserError: a missing column, text or label.
    """
    from datasets import ClassLabel

    check_columns(dataset.column_names, columns, source)
    dataset = dataset.select_columns([*columns.texts, columns.label])
    feature = dataset.features[columns.label]
    if isinstance(feature, ClassLabel):
        values: Sequence[int] = dataset[columns.label]
        if all(value == -1 for value in values):
            return []
        names = feature.names
        records: Iterable[dict[str, Any]] = (
            {**record, columns.label: names[i] if (i := record[columns.label]) >= 0 else None}
            for record in dataset
        )
    else:
        records = iter(dataset)
    return list(_rows(enumerate(records), columns, source, "row"))


def read_hub(
    name: str, subset: str | None, columns: Columns
) -> tuple[dict[str, list[Row]], list[str]]:
    """The labelled splits (`train`, `validation`, `test`) of a hub dataset, and notes.

    Downloads into the hub's cache unless it is there; code of a dataset is never run.

    Raises:
        UserError: it cannot be had, or has no `train` split.
    """
    from datasets import load_dataset

    source = f"dataset {name}"
    try:
        found = load_dataset(name, subset)
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise UserError(
            f"{source}: no such file, and not to be had from the hub: {reason}"
        ) from None
    if "train" not in found:
        raise UserError(f"{source}: has no split 'train'; it has: {', '.join(found)}")
    splits: dict[str, list[Row]] = {}
    notes: list[str] = []
    for split in ("train", "validation", "test"):
        if split in found:
            rows = rows_of(found[split], columns, f"{source}, split {split}")
            if rows:
                splits[split] = rows
            else:
                notes.append(f"{source}: split {split} has no labels and is not used")
    if "train" not in splits:
        raise UserError(f"{source}: split train has no labelled rows")
    return splits, notes
