"""Data sets that are known by name, and real files: read in the layouts that they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from pydantic import ValidationError

from hwnas.errors import UserError
from hwnas.tasks.classification import ordered
from hwnas.tasks.embedding import Embedding
from hwnas.tasks.loading import load_task
from hwnas.tasks.spans import Spans
from hwnas.tasks.spec import TaskSpec

# the layouts that the hub's data sets have, as their pages state them
GLUE = {
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "sst2": (["sentence"], ["negative", "positive"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "stsb": (["sentence1", "sentence2"], None),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"]),
}
METRICS = {
    "cola": "matthews",
    "stsb": "pearson_spearman",
    "mrpc": "accuracy_f1",
    "qqp": "accuracy_f1",
}


def _glue_like(subset: str, split: str, count: int) -> Dataset:
    from datasets import ClassLabel, Features, Value

    texts, names = GLUE[subset]
    label = Value("float32") if names is None else ClassLabel(names=names)
    features = Features(
        dict.fromkeys(texts, Value("string")) | {"label": label, "idx": Value("int32")}
    )
    hidden = split.startswith("test")
    number = len(names or [0] * 5)
    return Dataset.from_dict(
        {
            **{name: [f"{split} {name} number {i}" for i in range(count)] for name in texts},
            "label": [-1 if hidden else i % number for i in range(count)],
            "idx": list(range(count)),
        },
        features=features,
    )


@pytest.mark.parametrize("subset", GLUE)
@pytest.mark.parametrize("data", ["glue", "nyu-mll/glue"])
def test_glue_is_known_by_name(subset: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = ["validation", "test"]
    if subset == "mnli":
        held_out = [f"{split}_{kind}" for split in held_out for kind in ("matched", "mismatched")]
    sizes = {"train": 400} | dict.fromkeys(held_out, 120)
    found = {split: _glue_like(subset, split, count) for split, count in sizes.items()}
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: found)
    spec = TaskSpec(data=data, subset=subset)
    task = load_task(spec)
    assert task.metric == METRICS.get(subset, "accuracy")
    assert task.labels == ([] if subset == "stsb" else ordered(set(GLUE[subset][1] or [])))
    if task.metric == "accuracy_f1":  # F1 is of the second class, as GLUE's is
        assert task.labels[1] in ("equivalent", "duplicate")
    # published results are on the labelled held-out part: here it is the test split
    assert task.splits["test"] == 120
    matched = "validation_matched" if subset == "mnli" else "validation"
    assert all(text.startswith(matched) for text in task.test["text"])
    assert task.splits["train"] + task.splits["validation"] == 400
    assert ("text2" in task.train.column_names) == (len(GLUE[subset][0]) == 2)


@pytest.mark.parametrize("data", ["squad", "rajpurkar/squad", "rajpurkar/squad_v2"])
def test_squad_is_known_by_name(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Features, List, Value

    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    features = Features(
        {name: Value("string") for name in ("id", "title", "context", "question")}
        | {"answers": answers}
    )

    def split(name: str, count: int) -> Dataset:
        none = data.endswith("v2")
        return Dataset.from_list(
            [
                {
                    "id": str(i),
                    "title": "t",
                    "context": f"{name} context {i // 2} with a needle",
                    "question": f"what {i}?",
                    "answers": {"text": [], "answer_start": []}
                    if none and i % 3 == 0
                    else {
                        "text": ["needle"],
                        "answer_start": [f"{name} context {i // 2} with a needle".find("needle")],
                    },
                }
                for i in range(count)
            ],
            features=features,
        )

    found = {"train": split("train", 200), "validation": split("validation", 60)}
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: found)
    task = load_task(TaskSpec(data=data))
    assert (task.metric, task.kind.task, task.labels) == ("f1", "question-answering", [])
    assert task.splits["test"] == 60
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(getattr(task, one)["context"]) & set(getattr(task, other)["context"])
    assert not any("label" in note for note in task.notes), "other questions are no contradiction"


def test_conll_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import ClassLabel, Features, List, Value

    tags = List(ClassLabel(names=["O", "B-PER", "I-PER"]))
    words = List(Value("string"))
    features = Features({"id": Value("string"), "tokens": words, "ner_tags": tags})

    def split(name: str, count: int) -> Dataset:
        rows = [
            {"id": str(i), "tokens": [name, str(i), "Ada", "L"], "ner_tags": [0, 0, 1, 2]}
            for i in range(count)
        ]
        return Dataset.from_list(rows, features=features)

    found = {"train": split("train", 200), "validation": split("v", 50), "test": split("test", 60)}
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: found)
    task = load_task(TaskSpec(data="eriktks/conll2003"))
    assert task.labels == ["B-PER", "I-PER", "O"]
    assert (task.metric, task.splits["test"]) == ("f1", 60)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"metric": "pearson"},
            r"metric\n.*'pearson' is not for tasks of kind classification; use",
        ),
        ({"kind": "spans", "metric": "accuracy"}, "use one of: f1, exact_match"),
        (
            {"kind": "spans", "text": "context"},
            "expected two columns for a task of kind spans, got 1",
        ),
        (
            {"kind": "tokens", "text": ["a", "b"]},
            "expected one column for a task of kind tokens, got 2",
        ),
        ({"kind": "poetry"}, "kind"),
        ({"data": "glue", "subset": "ax"}, "'ax' is not one of GLUE's tasks: cola, sst2"),
        ({"data": "nyu-mll/glue"}, "None is not one of GLUE's tasks"),
    ],
)
def test_specs_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskSpec(**values)


def test_local_files_of_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"tokens": ["Ada", str(i)], "ner_tags": ["B-PER", "O"]} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskSpec(data=str(path), kind="tokens"))
    assert task.labels == ["B-PER", "O"] and sum(task.splits.values()) == 60


def test_tweets_as_a_task_of_embeddings() -> None:
    task = load_task(TaskSpec(kind="embedding"))
    assert isinstance(task.kind, Embedding) and task.metric == "cosine"
    assert task.train.column_names == ["text", "id"]
    with pytest.raises(UserError, match="is for tasks of kind classification, embedding or choice"):
        load_task(TaskSpec(kind="regression"))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "spec", "kinds"),
    [
        ("sst2", {"text": "sentence"}, 2),
        ("mrpc", {"text": ["sentence1", "sentence2"], "metric": "accuracy_f1"}, 2),
        ("cola", {"text": "sentence", "metric": "matthews"}, 2),
        ("rte", {"text": ["sentence1", "sentence2"]}, 2),
    ],
)
def test_real_glue_files(folder: str, spec: dict[str, Any], kinds: int, shared_data: Path) -> None:
    files = {"data": f"{folder}/train.jsonl", "test": f"{folder}/dev.jsonl"}
    task = load_task(TaskSpec(**{k: str(shared_data / v) for k, v in files.items()}, **spec))
    assert len(task.labels) == kinds
    rows = sum(1 for _ in (shared_data / folder / "dev.jsonl").open())
    assert task.splits["test"] == rows


@pytest.mark.shared_data
def test_real_questions(shared_data: Path, minilm_dir: Path) -> None:
    from hwnas.models import load_tokenizer

    files = {
        split: str(shared_data / f"subjqa/restaurants_{split}.jsonl") for split in ("train", "dev")
    }
    task = load_task(TaskSpec(data=files["train"], test=files["dev"], kind="spans"))
    encoded = task.kind.encode(task.test, load_tokenizer(minilm_dir), 384)
    assert isinstance(task.kind, Spans)
    # the true positions give the true texts, but where a window cuts an answer in two
    answers = np.zeros((sum(encoded["length"]), 2))
    begin = 0
    for window in encoded:
        answers[begin + window["start_positions"], 0] = 9
        answers[begin + window["end_positions"], 1] = 9
        begin += window["length"]
    long = Spans(longest=400)
    assert long.score("exact_match", answers, encoded) > 90
