"""Choosing structures: what was measured decides, misses correct the predictor, failure is said."""

import json
import math

import pytest

from hwnas.errors import BudgetError
from hwnas.search.evolution import Evaluated
from hwnas.selection import Allowance, select
from hwnas.subnetwork import Subnetwork

ALLOWANCE = Allowance("50%", ms=10.0, margin=0.01, tolerance=0.02)


class Line:
    """A predictor that is one number times the width, and can be scaled."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def scaled(self, factor: float) -> "Line":
        return Line(self.factor * factor)

    def predict(self, subnetwork: Subnetwork) -> float:
        return self.factor * sum(b.ffn for b in subnetwork.blocks)


def _widest(predictor: Line, budget_ms: float, number: int) -> list[Evaluated]:
    width = math.floor(budget_ms / predictor.factor)
    if width < 1:
        raise BudgetError("nothing predicted to fit")
    subnetwork = Subnetwork.of([[1, width]])
    return [Evaluated("uniform", subnetwork, 0.1, predictor.predict(subnetwork))]


def test_a_right_prediction_takes_one_round():
    selection = select(_widest, Line().predict, Line(), ALLOWANCE, rounds=3)
    assert selection.rounds == 1
    assert selection.structures[0].measured_ms == 9


def test_a_miss_corrects_the_scale_and_searches_again():
    selection = select(_widest, Line(1.5).predict, Line(), ALLOWANCE, rounds=3)
    assert selection.rounds == 2
    assert selection.scales["widths"] == pytest.approx(1.5)
    assert [s.measured_ms <= 10 for s in selection.structures] == [True]
    assert len(selection.timed) == 2


def test_nothing_fits_names_the_fastest():
    with pytest.raises(BudgetError, match=r"the fastest was 40.00 ms"):
        select(_widest, lambda s: 40.0, Line(), ALLOWANCE, rounds=3)


def test_structures_that_missed_do_not_go_on():
    def two(predictor, budget_ms, number):
        return [
            Evaluated("uniform", Subnetwork.of([[1, 4], [1, 4]]), 0.2, 8.0),
            Evaluated("hybrid", Subnetwork.of([[1, 9], [0, 0]]), 0.1, 9.0),
        ]

    measured = {4: 9.5, 9: 11.0}
    selection = select(two, lambda s: measured[s.blocks[0].ffn], Line(), ALLOWANCE, rounds=2)
    assert [s.kind for s in selection.structures] == ["uniform"]
    assert {t.kind for t in selection.timed} == {"uniform", "hybrid"}


def test_a_signal_that_was_not_looked_at_is_null_in_json():
    def rule(predictor, budget_ms, number):
        return [Evaluated("layers", Subnetwork.of([[1, 8]]), math.nan, 8.0)]

    selection = select(rule, lambda s: 8.0, Line(), ALLOWANCE, rounds=1)
    assert json.loads(selection.model_dump_json())["structures"][0]["signal"] is None


def test_what_leaves_budget_unused_is_searched_again():
    selection = select(_widest, Line(0.8).predict, Line(), ALLOWANCE, rounds=3)
    assert [t.measured_ms for t in selection.timed] == pytest.approx([7.2, 9.6])
    assert selection.structures[0].measured_ms == pytest.approx(9.6)


def test_the_miss_of_one_kind_does_not_correct_the_others():
    def kinds(predictor, budget_ms, number):
        (uniform,) = _widest(predictor, budget_ms, number)
        shallow = Subnetwork.of([[1, uniform.subnetwork.blocks[0].ffn], [0, 0]])
        return [uniform, Evaluated("hybrid", shallow, 0.2, uniform.predicted_ms)]

    def measure(subnetwork):
        return subnetwork.blocks[0].ffn * (1.5 if subnetwork.depth < len(subnetwork.blocks) else 1)

    selection = select(kinds, measure, Line(), ALLOWANCE, rounds=3)
    assert {s.kind: s.measured_ms for s in selection.structures} == {"uniform": 9, "hybrid": 9}
    assert selection.scales == {"widths": 1, "depth": pytest.approx(1.5), "residual": 1}


def test_of_several_alike_the_one_nearest_to_the_budget_goes_on():
    def alike(predictor, budget_ms, number):
        found = [Subnetwork.of([[heads, 8], [heads, 8]]) for heads in (1, 2, 3)]
        return [Evaluated("uniform", s, math.nan, 9.9) for s in found]

    measured = {1: 9.0, 2: 9.8, 3: 10.4}
    selection = select(alike, lambda s: measured[s.blocks[0].heads], Line(), ALLOWANCE, rounds=3)
    assert [s.measured_ms for s in selection.structures] == [9.8]
    assert selection.rounds == 1
    assert selection.scales["widths"] == 1
