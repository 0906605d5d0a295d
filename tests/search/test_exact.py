"""The exact solver against HiGHS, an independent witness, and against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from problems import SteppedCost, loss_of, space_of
from scipy.optimize import Bounds, LinearConstraint, milp

from hwnas.errors import BudgetError, UserError
from hwnas.search.exact import solve, solve_many
from hwnas.search.problem import Tables
from hwnas.subnetwork import Subnetwork

COST = SteppedCost()


def total_loss(subnetwork: Subnetwork, loss) -> float:  # type: ignore[no-untyped-def]
    return sum(loss.of(i, b) for i, b in enumerate(subnetwork.blocks))


def by_highs(tables: Tables, budget_ms: float) -> float:
    """The least loss, by mixed-integer programming."""
    losses, costs, owner = [], [], []
    for i, block in enumerate(tables.blocks):
        losses += [*block.loss.ravel(), block.dropped_loss]
        costs += [*block.ms.ravel(), 0.0]
        owner += [i] * (block.loss.size + 1)
    one_each = (np.array(owner) == np.arange(len(tables.blocks))[:, None]).astype(float)
    answer = milp(
        losses,
        integrality=np.ones(len(losses)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint([costs], -np.inf, budget_ms - tables.fixed_ms),
        ],
        options={"mip_rel_gap": 0},
    )
    assert answer.success
    return float(answer.fun)


@pytest.mark.parametrize("share", [0.2, 0.33, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_highs(share: float, seed: int) -> None:
    space = space_of(6, 12, 1536, 96)
    loss = loss_of(6, 12, 1536, seed)
    budget_ms = share * COST.predict(space.largest)
    found = solve(space, loss, COST, budget_ms)
    assert found.gap == 0
    assert found.latency_ms <= budget_ms
    assert found.subnetwork in space
    assert found.loss == pytest.approx(total_loss(found.subnetwork, loss))
    assert found.loss == pytest.approx(by_highs(Tables.of(space, loss, COST), budget_ms), rel=1e-6)


@pytest.mark.parametrize("share", [0.15, 0.3, 0.6, 0.99])
def test_agrees_with_brute_force(share: float) -> None:
    space = space_of(3, 2, 96, 32)
    loss = loss_of(3, 2, 96, seed=5)
    budget_ms = share * COST.predict(space.largest)
    every = (
        Subnetwork(blocks) for blocks in itertools.product(*(o.options() for o in space.blocks))
    )
    fitting = [s for s in every if s.depth and COST.predict(s) <= budget_ms]
    if not fitting:
        with pytest.raises(BudgetError):
            solve(space, loss, COST, budget_ms)
        return
    found = solve(space, loss, COST, budget_ms)
    assert found.loss == pytest.approx(min(total_loss(s, loss) for s in fitting))


def test_without_drops_all_blocks_stay() -> None:
    space = space_of(6, 12, 1536, 96)
    loss = loss_of(6, 12, 1536, 0)
    budget_ms = 0.4 * COST.predict(space.largest)
    assert solve(space, loss, COST, budget_ms, droppable=False).subnetwork.depth == 6


def test_a_larger_budget_never_loses_more() -> None:
    space = space_of(12, 12, 3072, 64)
    loss = loss_of(12, 12, 3072, 2)
    full = COST.predict(space.largest)
    found = solve_many(space, loss, COST, [full * s for s in np.linspace(0.1, 1, 15)])
    losses = [f.loss for f in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_impossible_budget_names_the_fastest() -> None:
    space = space_of(3, 4, 128, 32)
    with pytest.raises(BudgetError, match=r"fastest .* ms"):
        solve(space, loss_of(3, 4, 128, 0), COST, 0.01)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_none(budget: float) -> None:
    space = space_of(3, 4, 128, 32)
    with pytest.raises(UserError, match="positive"):
        solve(space, loss_of(3, 4, 128, 0), COST, budget)


def test_importance_of_another_model() -> None:
    with pytest.raises(UserError, match="2 blocks, the search space has 3"):
        solve(space_of(3, 4, 128, 32), loss_of(2, 4, 128, 0), COST, 5)
    with pytest.raises(UserError, match="same model"):
        solve(space_of(3, 8, 128, 32), loss_of(3, 4, 128, 0), COST, 5)
