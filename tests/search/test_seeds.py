"""The seeds hold every rival's move, within the budget."""

from __future__ import annotations

import pytest
from problems import SteppedCost, loss_of, space_of

from hwnas.search.fitting import fit
from hwnas.search.problem import Tables
from hwnas.search.seeds import seeds
from hwnas.subnetwork import Subnetwork

COST = SteppedCost()
SPACE = space_of(6, 12, 1536, 32)
LOSS = loss_of(6, 12, 1536, 0)
FULL_MS = COST.predict(SPACE.largest)


@pytest.mark.parametrize("share", [0.2, 0.33, 0.5, 0.7])
def test_all_fit_and_are_distinct_and_in_the_space(share: float) -> None:
    found = seeds(SPACE, LOSS, COST, share * FULL_MS)
    assert all(COST.predict(s.subnetwork) <= share * FULL_MS for s in found)
    assert all(s.subnetwork in SPACE for s in found)
    assert len({s.subnetwork for s in found}) == len(found)
    assert {"uniform", "layers", "exact", "hybrid"} <= {s.kind for s in found}


def test_uniform_is_the_largest_uniform_that_fits() -> None:
    budget = 0.5 * FULL_MS
    uniform = next(s.subnetwork for s in seeds(SPACE, LOSS, COST, budget) if s.kind == "uniform")
    (heads, ffn) = uniform.blocks[0]
    assert set(uniform.blocks) == {(heads, ffn)}
    assert heads / 12 == pytest.approx(ffn / 1536, abs=1 / 12)
    wider = Subnetwork.of([[heads + 1, ffn + 128]] * 6)
    assert COST.predict(wider) > budget


def test_layers_are_the_first_ones_whole() -> None:
    layers = next(s for s in seeds(SPACE, LOSS, COST, 0.5 * FULL_MS) if s.kind == "layers")
    kept = layers.subnetwork.depth
    assert layers.subnetwork.genome == [[12, 1536]] * kept + [[0, 0]] * (6 - kept)
    assert COST.predict(Subnetwork.of([[12, 1536]] * (kept + 1))) > 0.5 * FULL_MS


def test_filled_layers_use_the_budget_up_with_one_layer_more() -> None:
    found = {s.kind: s.subnetwork for s in seeds(SPACE, LOSS, COST, 0.5 * FULL_MS)}
    whole, filled = found["layers"], found["layers-filled"]
    assert filled.blocks[: whole.depth] == whole.blocks[: whole.depth]
    assert filled.depth == whole.depth + 1
    assert COST.predict(whole) < COST.predict(filled) <= 0.5 * FULL_MS


def test_no_layers_where_none_may_be_left_out() -> None:
    space = space_of(6, 12, 1536, 32, droppable=False)
    found = seeds(space, LOSS, COST, 0.5 * FULL_MS)
    assert all(s.subnetwork.depth == 6 for s in found)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_fit_shrinks_or_widens_to_the_budget(share: float) -> None:
    tables = Tables.of(SPACE, LOSS, COST)
    budget = share * FULL_MS
    for start in (SPACE.largest, SPACE.smallest_width, SPACE.scaled(0.4)):
        choice = fit(tables, tables.choice(start), budget)
        assert tables.ms(choice) <= budget
        # no single step up of one block still fits
        for i, at in enumerate(choice):
            if at is not None and at[1] + 1 < len(SPACE.blocks[i].ffn):
                wider = list(choice)
                wider[i] = (at[0], at[1] + 1)
                free = tables.ms(wider) == tables.ms(choice)
                assert free or tables.ms(wider) > budget
