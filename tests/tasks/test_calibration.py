"""Confidence does not count among finalists; answers do."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from hwnas.tasks.calibration import calibrated_loss
from hwnas.tasks.classification import Classification
from hwnas.tasks.regression import Regression


def _answers(seed: int, right: float) -> tuple[np.ndarray, Dataset]:
    """Logits of 200 rows in three classes, of which about so many are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 200)
    logits = rng.normal(0, 1, (200, 3))
    logits[np.arange(200), labels] += right
    return logits, Dataset.from_dict({"labels": labels.tolist()})


def test_neither_doubt_nor_overconfidence_changes_it() -> None:
    logits, rows = _answers(0, 2.0)
    kind = Classification()
    plain = calibrated_loss(kind, logits, rows)
    for factor in (0.2, 3.0, 8.0):
        assert calibrated_loss(kind, factor * logits, rows) == pytest.approx(plain, abs=1e-4)
        assert kind.loss(factor * logits, rows) > plain + 0.01
    assert plain <= kind.loss(logits, rows)


def test_better_answers_that_are_too_sure_win() -> None:
    kind = Classification()
    better, rows = _answers(0, 2.0)
    worse, _ = _answers(0, 1.5)
    sure = 8 * better
    assert kind.loss(sure, rows) > kind.loss(worse, rows)
    assert calibrated_loss(kind, sure, rows) < calibrated_loss(kind, worse, rows)


def test_answers_that_are_no_logits_are_left_alone() -> None:
    kind = Regression()
    answers = np.array([[1.0], [2.0], [4.0]])
    rows = Dataset.from_dict({"labels": [2.0, 4.0, 8.0]})
    assert calibrated_loss(kind, answers, rows) == kind.loss(answers, rows) > 0


def test_what_is_no_number_is_not_scaled() -> None:
    logits, rows = _answers(0, 2.0)
    logits[3, 1] = np.nan
    assert np.isnan(calibrated_loss(Classification(), logits, rows))
