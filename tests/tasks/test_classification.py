"""Scores against values worked out by hand, and logits that depend on neither order nor padding."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hwnas.tasks.classification import cross_entropy, divergence
from hwnas.tasks.classification import score_classes as score
from hwnas.tasks.predict import predict

# of class 1: two found, one missed, one false alarm; of class 0: one of each
TRUTH = [0, 1, 1, 0, 1]
LOGITS = np.array([[2, 1], [0, 3], [5, 4], [0.5, 0.6], [-2, -1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("accuracy", 100 * 3 / 5),
        ("f1", 100 * 2 / 3),
        ("f1_macro", 100 * (2 / 3 + 1 / 2) / 2),
        ("accuracy_f1", 100 * (3 / 5 + 2 / 3) / 2),
        ("matthews", 100 * (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
    ],
)
def test_metrics(metric: str, value: float) -> None:
    assert score(metric, LOGITS, TRUTH) == pytest.approx(value)
    assert score(metric, LOGITS, np.array(TRUTH)) == pytest.approx(value)
    assert score(metric, 10 * np.eye(2)[TRUTH], TRUTH) == pytest.approx(100.0)


def test_macro_f1_counts_classes_that_never_occur() -> None:
    logits = np.eye(3)[[0, 1]]
    assert score("f1_macro", logits, [0, 1]) == pytest.approx(100 * 2 / 3)


def test_scores_of_what_cannot_be_scored() -> None:
    assert math.isnan(score("accuracy", np.array([[np.nan, 1.0]]), [0]))
    assert math.isnan(score("f1", np.array([[np.inf, 1.0]]), [0]))
    assert score("matthews", np.eye(2)[[0, 0]], [0, 1]) == 0.0
    with pytest.raises(ValueError, match="unknown metric 'bleu'"):
        score("bleu", LOGITS, TRUTH)


def test_cross_entropy() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    shifted = np.log(probabilities) + np.array([[3.0], [-700.0]])  # logits are free to shift
    wanted = -(math.log(0.25) + math.log(0.7)) / 2
    assert cross_entropy(shifted, [1, 2]) == pytest.approx(wanted)
    assert cross_entropy(np.array([[1000.0, 0.0]]), [1]) == pytest.approx(1000.0)


def test_divergence() -> None:
    teacher = np.log([[0.5, 0.5], [0.5, 0.5]])
    student = np.log([[0.25, 0.75], [0.5, 0.5]]) + 5.0
    # 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75), and nothing for the second row
    wanted = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert divergence(teacher, student) == pytest.approx(wanted)
    assert divergence(teacher, teacher) == 0.0
    assert divergence(student, teacher) != pytest.approx(wanted), "it is not symmetric"


@pytest.fixture
def model(tiny_config: Any) -> Any:
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    tiny_config.hidden_dropout_prob = 0.5
    return BertForSequenceClassification(tiny_config).eval()


@pytest.fixture
def encoded() -> Dataset:
    rng = random.Random(0)
    ids = [[rng.randrange(1, 120) for _ in range(rng.randint(1, 30))] for _ in range(41)]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(r) for r in ids]})


def test_logits_are_those_of_each_row_alone(model: Any, encoded: Dataset) -> None:
    found = predict(model, encoded, batch_size=7)
    with torch.inference_mode():
        alone = [model(torch.tensor([ids])).logits[0].numpy() for ids in encoded["input_ids"]]
    assert found.shape == (41, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack(alone), atol=1e-5)


def test_training_mode_is_left_and_found_again(model: Any, encoded: Dataset) -> None:
    wanted = predict(model, encoded)
    model.train()
    np.testing.assert_array_equal(predict(model, encoded), wanted)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_rows(model: Any, encoded: Dataset) -> None:
    assert predict(model, encoded.select([])).shape == (0, 3)
