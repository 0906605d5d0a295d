"""Reading rows: the kinds of file, what counts as a label, and the line of whatever is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hwnas.errors import UserError
from hwnas.tasks.classification import Classification
from hwnas.tasks.rows import Columns, Row, read_file, read_hub, rows_of
from hwnas.tasks.tokens import Tokens

COLUMNS = Columns(("text",), "label")
PARSE = Classification().parse
ROWS = [
    Row(("a good day",), "1", 0),
    Row(('commas, "quotes"\nand a line',), "0", 1),
    Row(("naïve ünïcode 🙂",), "1", 2),
]
CSV = '{bom}label,text\n1,a good day\n0,"commas, ""quotes""\nand a line"\n\n1,naïve ünïcode 🙂\n'
JSONL = (
    '{"text": "a good day", "label": 1, "extra": [1]}\n'
    '{"label": 0.0, "text": "commas, \\"quotes\\"\\nand a line"}\n\n'
    '{"text": "naïve ünïcode 🙂", "label": "1 "}\n'
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", CSV.format(bom="")),
        ("bom.csv", CSV.format(bom="\ufeff")),
        ("windows.CSV", CSV.format(bom="").replace("\n", "\r\n")),
        ("rows.tsv", CSV.format(bom="").replace(",", "\t").replace("commas\t", "commas,")),
        ("rows.jsonl", JSONL),
    ],
)
def test_every_kind_gives_the_same_rows(name: str, content: str, write: Any) -> None:
    found = read_file(write(name, content), COLUMNS, PARSE)
    flat = [row._replace(texts=tuple(t.replace("\r\n", "\n") for t in row.texts)) for row in found]
    assert flat == ROWS


def test_a_pair_of_texts(write: Any) -> None:
    path = write("pairs.csv", "q,a,label\nwho,me,yes\n")
    assert read_file(path, Columns(("q", "a"), "label"), PARSE) == [Row(("who", "me"), "yes", 0)]


@pytest.mark.parametrize(
    ("value", "name"),
    [("true", "true"), ("0", "0"), ("-1", "-1"), ("2.0", "2"), ('" spam "', "spam")],
)
def test_labels_become_names(value: str, name: str, write: Any) -> None:
    path = write("rows.jsonl", f'{{"text": "x", "label": {value}}}\n')
    assert read_file(path, COLUMNS, PARSE)[0].label == name


def test_long_cells_are_read(write: Any) -> None:
    long = "word " * 100_000
    path = write("long.csv", f"text,label\n{long},1\n")
    assert read_file(path, COLUMNS, PARSE)[0].texts == (long,)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"a\.csv: has no rows"),
        ("a.csv", "text,label\n", r"a\.csv: has no rows"),
        ("a.jsonl", "\n\n", r"a\.jsonl: has no rows"),
        ("a.csv", "body,label\nx,1\n", r"no column 'text'; it has: body, label"),
        ("a.jsonl", '{"text": "x"}\n', r"no column 'label'; it has: text"),
        ("a.csv", "text,text,label\nx,y,1\n", r"column 'text' stands twice in the header"),
        ("a.csv", "text,label\nx,1\na, b,1\n", r"line 3: 3 cells, the header has 2; quote"),
        ("a.csv", 'text,label\n"x\ny",1\nz\n', r"line 4: 1 cells"),
        ("a.csv", 'text,label\nx,1\n"open,1\n', r"line 3: damaged CSV: unexpected end"),
        ("a.csv", "text,label\nx,1\n  ,1\n", r"line 3: no text in column 'text'; remove"),
        ("a.csv", "text,label\nx,1\ny,\n", r"line 3: no label in column 'label'; remove"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text":\n', r"line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", r"line 1: expected a JSON object"),
        ("a.jsonl", '{"text": 5, "label": 1}\n', r"line 1: column 'text' holds 5, expected text"),
        ("a.jsonl", '{"text": "x", "label": 1.5}\n', r"column 'label' holds 1\.5, expected the"),
        ("a.jsonl", '{"text": "x", "label": NaN}\n', r"column 'label' holds nan, expected the"),
        ("a.jsonl", '{"text": "x", "label": []}\n', r"column 'label' holds \[\], expected the"),
        ("a.jsonl", '{"text": "x", "label": null}\n', r"line 1: no label in column 'label'"),
        ("a.csv", "text,label\nx,1\nné,1\n".encode("latin-1"), r"not UTF-8 .*line 3.*iconv"),
        ("a.csv", "text,label\nx,1\n".encode("utf-16"), r"not UTF-8 text \(line 1\)"),
        ("a.xlsx", b"PK", r"unknown kind of file; expected \.csv, \.tsv, \.jsonl"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    name: str, content: str | bytes, message: str, write: Any
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_file(write(name, content), COLUMNS, PARSE)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        read_file(tmp_path / "none.csv", COLUMNS, PARSE)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder, expected a data file"):
        read_file(tmp_path / "folder.csv", COLUMNS, PARSE)


def _dataset(labels: list[int | None]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    texts = [f"text {i}" for i in range(len(labels))]
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def test_a_hub_dataset_s_class_names_are_the_labels() -> None:
    rows = rows_of(_dataset([1, 0]), COLUMNS, PARSE, "dataset x")
    assert rows == [Row(("text 0",), "yes", 0), Row(("text 1",), "no", 1)]
    assert rows_of(_dataset([-1, -1]), COLUMNS, PARSE, "dataset x") == [], "a hidden test set"
    for missing in (-1, None):
        with pytest.raises(UserError, match="dataset x: row 1: no label in column 'label'"):
            rows_of(_dataset([1, missing]), COLUMNS, PARSE, "dataset x")
    with pytest.raises(UserError, match="dataset x: no column 'label'; it has: text"):
        rows_of(_dataset([1]).remove_columns("label"), COLUMNS, PARSE, "dataset x")


@pytest.mark.parametrize("missing", [-1, None])
def test_a_word_of_a_hub_dataset_without_a_label_is_refused(missing: int | None) -> None:
    classes = ClassLabel(names=["O", "B-place"])
    features = Features({"words": List(Value("string")), "tags": List(classes)})
    columns = Columns(("words",), "tags")

    def read(tags: list[int | None] | None) -> list[Row]:
        rows = {"words": [["in", "Rome"]] * 2, "tags": [[0, 1], tags]}
        dataset = Dataset.from_dict(rows, features=features)
        return rows_of(dataset, columns, Tokens().parse, "dataset x")

    assert read([0, 0])[0] == Row(("in", "Rome"), ("O", "B-place"), 0)
    for tags in ([0, missing], None):
        with pytest.raises(UserError, match="dataset x: row 1: column 'tags' holds"):
            read(tags)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.csv", "text,label\na,0\nb,1,2,3\n", "Expected 2 fields in line 3, saw 4"),
        ("train.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "lab\n', "JSON parse error"),
        ("train.parquet", "no parquet", "Parquet magic bytes not found"),
    ],
)
def test_damaged_files_of_the_hub_s_library_are_said_in_one_line(
    name: str, content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"dataset {folder}: .*{words}") as caught:
        read_hub(str(folder), None, COLUMNS, PARSE)
    assert "\n" not in str(caught.value)


def test_a_dataset_of_the_hub_s_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(f"text,label\n{split} a,0\n{split} b,1\n")
    splits, notes = read_hub(str(folder), None, COLUMNS, PARSE)
    assert splits["train"] == [Row(("train a",), "0", 0), Row(("train b",), "1", 1)]
    assert (list(splits), notes) == (["train", "test"], [])


def test_a_hub_dataset_that_cannot_be_had() -> None:
    with pytest.raises(
        UserError, match=r"dataset nobody/nothing: .* not to be had from the hub"
    ) as e:
        read_hub("nobody/nothing", None, COLUMNS, PARSE)
    assert "\n" not in str(e.value)
