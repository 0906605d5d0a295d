"""What weights cost that do not fit the caches."""

import numpy as np
import pytest

from hwnas.latency.caches import AMPLE, CAPACITIES, PERCENTS, SQUARE, crowding, missed


@pytest.mark.parametrize("crowd", [1.001, 1.2, 2.0, 5.0])
def test_a_line_outlives_what_is_fetched_until_its_turn(crowd: float) -> None:
    share = float(missed(crowd, 1.0))
    assert 1 - share == pytest.approx(np.exp(-share * crowd), rel=1e-6)
    assert share > 0


def test_random_replacement_misses_as_many() -> None:
    """A cache of 1,000 lines that 2,000 are read through in turn, again and again."""
    rng = np.random.default_rng(0)
    lines, slots = 2000, 1000
    held = np.full(slots, -1)
    where = np.full(lines, -1)
    misses = 0
    for sweep in range(12):
        for line in range(lines):
            if where[line] >= 0:
                continue
            misses += sweep >= 8
            slot = rng.integers(slots)
            if held[slot] >= 0:
                where[held[slot]] = -1
            held[slot], where[line] = line, slot
    assert misses / (4 * lines) == pytest.approx(float(missed(2.0, 1.0)), abs=0.02)


def test_what_fits_costs_nothing_and_the_full_model_all() -> None:
    for capacity in CAPACITIES:
        cost = crowding(np.linspace(0, 1, 201), capacity)
        assert cost[0] == 0
        assert cost[-1] == pytest.approx(0 if capacity == AMPLE else 1)
        assert (np.diff(cost) >= -1e-12).all()
        if capacity not in (AMPLE, SQUARE):
            assert crowding(0.999 * capacity, capacity) == 0
            assert round(100 * capacity) in PERCENTS


def test_with_no_one_capacity_the_square_stands() -> None:
    assert crowding(0.5, SQUARE) == pytest.approx(0.25)
