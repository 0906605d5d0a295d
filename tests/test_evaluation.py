"""`hwnas evaluate`: one value for the three formats, and files that do not fit the model."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hwnas.anatomy.dense import new_dense
from hwnas.errors import UserError
from hwnas.evaluation import evaluate_folder
from hwnas.export import FORMATS, export_model, load_exported, save_model
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.generation import last_number

LABELS = ("negative", "neutral", "positive")
WORDS = ("good", "bad", "day", "a", "other")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(60)]


@pytest.fixture
def model(tiny_config: Any) -> Any:
    torch.manual_seed(0)
    model = new_dense(tiny_config, Subnetwork.of([[2, 32], [4, 64], [1, 16]]))
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    return model


def write(path: Path, texts: list[str], labels: list[str], label: str = "label") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", label), *zip(texts, labels, strict=True)])
    return path


def evaluate(folder: Path, data: Path, **changes: Any) -> Any:
    values = {"text": ["text"], "label": "label", "metric": "accuracy", "max_length": 64}
    return evaluate_folder(folder, data, **(values | changes))


def test_every_format_gives_what_the_torch_model_says(
    model: Any, tiny_tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    batch = tiny_tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits
    guesses = logits.argmax(-1)
    truth = torch.where(torch.arange(60) < 45, guesses, (guesses + 1) % 3)
    data = write(tmp_path / "rows.csv", texts, [LABELS[i] for i in truth])
    loss = torch.nn.functional.cross_entropy(logits, truth).item()
    export_model(model, tiny_tokenizer, tmp_path / "out")

    for name in FORMATS:
        found = evaluate(tmp_path / "out" / name, data)
        assert found.value == pytest.approx(75.0)
        assert found.loss == pytest.approx(loss, abs=1e-4)
        assert (found.rows, found.metric, found.data) == (60, "accuracy", str(data))
    f1 = [evaluate(tmp_path / "out" / name, data, metric="f1_macro").value for name in FORMATS]
    assert len(set(f1)) == 1 and math.isfinite(f1[0])


@pytest.fixture
def folder(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    save_model(model, tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path, data: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        evaluate(folder, data, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_label_that_the_model_does_not_know(folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", ["a", "b", "c"], ["neutral", "positive", "sad"])
    assert refused(folder, data) == (
        f"{data}: line 4: label 'sad' is not one of: negative, neutral, positive"
    )


def test_columns(folder: Path, texts: list[str], tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", texts, ["neutral"] * 60, label="mood")
    assert "no column 'label'; it has: text, mood" in refused(folder, data)
    assert evaluate(folder, data, label="mood").rows == 60
    pair = evaluate(folder, data, label="mood", text=["text", "text"])
    assert pair.rows == 60
    assert "give one, or the two of a pair" in refused(folder, data, text=["text"] * 3)


def test_metrics_that_do_not_fit(folder: Path, texts: list[str], tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", texts, ["neutral"] * 60)
    assert "metric 'bleu': unknown; known: accuracy, f1," in refused(folder, data, metric="bleu")
    assert "metric f1 is for two classes" in refused(folder, data, metric="f1")
    assert "max_length 65: the model reads at most 64" in refused(folder, data, max_length=65)


def test_folders_and_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.csv", ["a"], ["neutral"])
    assert "nowhere: no such folder" in refused(tmp_path / "nowhere", data)
    assert "none.csv: no such file" in refused(folder, tmp_path / "none.csv")


@pytest.mark.slow  # SmolLM2's weights
def test_a_language_model_is_scored_on_choices_and_written_answers(tmp_path: Path) -> None:
    from hwnas.export.convert import export_openvino
    from hwnas.models import load_model

    model, tokenizer = load_model("demo:smollm2", task="text-generation")
    export_openvino(model, tokenizer, tmp_path / "smollm2")
    questions = tmp_path / "questions.jsonl"
    rows = [
        ("What do bees make?", ["honey", "a long wooden table"], "A"),
        ("What is the capital of France?", ["Paris", "Tuesday"], "A"),
        ("What falls from clouds?", ["bricks", "rain"], "B"),
    ]
    names = ("question", "choices", "answer")
    questions.write_text(
        "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    )
    found = evaluate_folder(tmp_path / "smollm2", questions, kind="choice")
    assert set(found.metrics) == {"accuracy", "accuracy_norm"}
    assert found.value == 100
    # what it writes is right, one more is wrong
    prompt = tokenizer("Question: 2 plus 2 is\nAnswer:", return_tensors="pt")
    written = load_exported(tmp_path / "smollm2").generate(
        **prompt, max_new_tokens=64, do_sample=False
    )
    begins = prompt["input_ids"].shape[1]
    number = last_number(tokenizer.decode(written[0, begins:], skip_special_tokens=True))
    assert number is not None
    answers = [f"{number + more:g}" for more in (0, 1)]
    sums = tmp_path / "sums.jsonl"
    rows_of_sums = [{"question": "2 plus 2 is", "answer": answer} for answer in answers]
    sums.write_text("".join(json.dumps(row) + "\n" for row in rows_of_sums))
    found = evaluate_folder(tmp_path / "smollm2", sums, kind="instruction", metric="exact_match")
    assert found.value == 50
    guessed = []
    for answer in answers:
        whole = f"Question: 2 plus 2 is\nAnswer: {answer}{tokenizer.eos_token}"
        ids = tokenizer(whole, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            best = model(ids).logits[0, begins - 1 : -1].argmax(-1)
        guessed += (best == ids[0, begins:]).tolist()
    assert found.metrics["token_accuracy"] == pytest.approx(100 * sum(guessed) / len(guessed))
    with pytest.raises(UserError, match="--kind spans: is not for models like"):
        evaluate_folder(tmp_path / "smollm2", questions, kind="spans")
