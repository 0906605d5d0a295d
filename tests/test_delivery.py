"""Whether a budget is met: by what was measured, and by every limit beside it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hwnas.delivery import Served, _chosen
from hwnas.finalists import Winner
from hwnas.latency.target import Target
from hwnas.recipe import Recipe
from hwnas.selection import TimedStructure
from hwnas.summary import Baseline, Chosen, KeptLimit

TOLERANCE = 0.1


def _summed_up(ratio: float, size_mb: float, cache: float) -> Chosen:
    """For a budget of half the baseline's 8 ms, 20 MB and a cache of 4."""
    recipe = Recipe.model_validate({"measure": {"tolerance": TOLERANCE}, "max_size_mb": 20})
    structure = TimedStructure(
        kind="exact", genome=[[2, 64]], signal=0.1, predicted_ms=3.9, measured_ms=3.9, round=1
    )
    baseline = Baseline(
        metric=80, latency_ms=8.0, size_mb=40, params=9, flops=9, steps=9, converged=True
    )
    inputs: Any = SimpleNamespace(recipe=recipe, path=Path("run"))
    return _chosen(
        inputs,
        "50%",
        Winner("50%", structure, "teacher", Path("weights"), 5, 1, []),
        Served(Path("run/chosen/50pct"), Target(), 76, size_mb, 5, 5),
        {"ratio": ratio},
        {},
        [KeptLimit(name="cache", unit="MB", most=4, value=cache)],
        baseline,
    )


@pytest.mark.parametrize(
    ("ratio", "size_mb", "cache", "met"),
    [
        (0.4, 19, 3, True),
        (0.54, 20, 4.3, True),  # within what a measurement may be off by
        (0.56, 19, 3, False),
        (0.4, 20.1, 3, False),  # sizes are counted, not measured
        (0.4, 19, 4.5, False),
    ],
)
def test_a_budget_is_met_by_what_was_measured(
    ratio: float, size_mb: float, cache: float, met: bool
) -> None:
    found = _summed_up(ratio, size_mb, cache)
    assert found.met == met
    assert (found.budget_ms, found.measured_ms) == (4.0, pytest.approx(8 * ratio))
    assert found.kept == pytest.approx(0.95) and found.path == "chosen/50pct"
