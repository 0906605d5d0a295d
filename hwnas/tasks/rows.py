"""Reading rows out of CSV, TSV and JSONL files and hub datasets.

Files are UTF-8, with a header (CSV, TSV) or one JSON object a line (JSONL). Nothing is guessed or
silently left out: the first row that is damaged or lacks a text or a label stops the reading
with its line number. What a row's text and label may be, its kind of task says (`Parse`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from hwnas.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (".csv", ".tsv", ".jsonl")
_MAX_CELL = 2**24  # characters; csv's own limit of 2**17 is too small for long documents


class Row(NamedTuple):
    """One example."""

    texts: tuple[str, ...]  # one text, the two of a pair, or the words of a sentence
    label: Any  # hashable, as the kind of task has it
    id: int  # number of the row in its source, from 0


class Columns(NamedTuple):
    """Where texts and label stand in a source."""

    texts: tuple[str, ...]
    label: str  # empty where rows have none

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.texts, self.label) if self.label else self.texts


# (record, columns, where) -> texts, label
Parse = Callable[[Mapping[str, Any], Columns, str], tuple[Any, Any]]


def read_file(path: Path, columns: Columns, parse: Parse) -> list[Row]:
    """All rows of a CSV, TSV or JSONL file.

    Raises:
        UserError: a missing, empty or damaged file, a missing column, text or label.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: unknown kind of file; expected {', '.join(FORMATS)}")
    reader = _jsonl_records if path.suffix.lower() == ".jsonl" else _csv_records
    try:
        # utf-8-sig: spreadsheets put a byte order mark first; newlines are left to the parsers
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(reader(file, path), columns, parse, str(path), "line"))
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
    parse: Parse,
    source: str,
    unit: str,
) -> Iterator[Row]:
    found = index = 0
    for index, (number, record) in enumerate(records, start=1):
        if index == 1:
            check_columns(record, columns, source)
        texts, label = parse(record, columns, f"{source}: {unit} {number}")
        if texts:  # a kind may pass over blank rows
            found += 1
            yield Row(texts, label, index - 1)
    if index and not found:
        raise UserError(f"{source}: column {columns.texts[0]!r} holds no text")


def check_columns(present: Iterable[str], columns: Columns, source: str) -> None:
    """Raise `UserError` if a column is not among those present, which it lists."""
    names = list(present)
    for wanted in columns.all:
        if wanted not in names:
            raise UserError(f"{source}: no column {wanted!r}; it has: {', '.join(map(str, names))}")


def text_of(record: Mapping[str, Any], name: str, where: str) -> str:
    """The text in a column.

    Raises:
        UserError: there is none, or something else.
    """
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column {name!r} holds {value!r}, expected text")
    if value is None or not value.strip():
        raise UserError(f"{where}: no text in column {name!r}; remove the row or fill it")
    return value


def rows_of(dataset: Dataset, columns: Columns, parse: Parse, source: str) -> list[Row]:
    """The rows of a hub dataset's split; none if it carries no labels (-1, hidden test sets).

    Class numbers become the names that the dataset has for them.

    Raises:
        UserError: a missing column, text or label.
    """
    from datasets import ClassLabel

    check_columns(dataset.column_names, columns, source)
    dataset = dataset.select_columns(list(columns.all))
    feature = dataset.features[columns.label] if columns.label else None
    records: Iterable[dict[str, Any]] = iter(dataset)
    classes = getattr(feature, "feature", feature)  # where a row has a list of labels, one's
    if isinstance(classes, ClassLabel):
        if all(value == -1 for value in dataset[columns.label]):
            return []
        names = classes.names
        records = (
            {**record, columns.label: _named(record[columns.label], names)} for record in dataset
        )
    return list(_rows(enumerate(records), columns, parse, source, "row"))


def _named(label: Any, names: Sequence[str]) -> Any:
    """What a class number, or each of a list, is called; None where there is none (-1, null)."""
    if isinstance(label, list):
        return [_named(one, names) for one in label]
    return None if label is None or label < 0 else names[label]


def read_hub(
    name: str,
    subset: str | None,
    columns: Columns,
    parse: Parse,
    splits: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[Row]], list[str]]:
    """The labelled splits (`train`, `validation`, `test`) of a hub dataset, and notes.

    Downloads into the hub's cache unless it is there; code of a dataset is never run.

    Args:
        splits: its name of each split that is to be used; by default, of those three, each its own.

    Raises:
        UserError: it cannot be had, or has no split for `train`.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    source = f"dataset {name}"
    try:
        found = load_dataset(name, subset)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{source}: no such file, and not to be had from the hub: {_first_line(error)}"
        ) from None
    except DatasetsError as error:  # what is wrong, only its cause says
        raise UserError(
            f"{source}: its files cannot be read: {_first_line(error.__cause__ or error)}"
        ) from None
    wanted = splits or {split: split for split in ("train", "validation", "test")}
    if wanted["train"] not in found:
        raise UserError(
            f"{source}: has no split {wanted['train']!r}; it has: {', '.join(map(str, found))}"
        )
    read: dict[str, list[Row]] = {}
    notes: list[str] = []
    for split, its_name in wanted.items():
        if its_name in found:
            rows = rows_of(found[its_name], columns, parse, f"{source}, split {its_name}")
            if rows:
                read[split] = rows
            else:
                notes.append(f"{source}: split {its_name} has no labels and is not used")
    if "train" not in read:
        raise UserError(f"{source}: split {wanted['train']} has no labelled rows")
    return read, notes


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def text_columns(rows: Sequence[Row]) -> list[list[str]]:
    """The rows' texts, column by column."""
    return [list(column) for column in zip(*(row.texts for row in rows), strict=True)]
