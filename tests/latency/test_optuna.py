"""The README's example of a study that a latency table guides runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readmes_study_stays_within_its_budget() -> None:
    optuna = pytest.importorskip("optuna", reason="the example needs optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (example,) = re.findall(r"```python\n(import optuna\n.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    study, budget, predictor = names["study"], names["budget"], names["predictor"]
    best = study.best_trial  # type: ignore[attr-defined]
    assert predictor.predict(names["structure"](best)) <= budget  # type: ignore[attr-defined, operator]
    assert len(study.trials) == 100  # type: ignore[attr-defined]
