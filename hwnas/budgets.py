"""Budgets before and while they are met: which are hopeless, and what share of the model they are.

Assumption: tables of the run's target and of the deployments that compete are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hwnas.errors import BudgetError
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget
from hwnas.space import SearchSpace
from hwnas.subnetwork import Block
from hwnas.timing import vocabulary_ratio

if TYPE_CHECKING:
    from hwnas.inputs import Inputs


def check_budgets(
    inputs: Inputs, table: LatencyTable, space: SearchSpace, others: Iterable[LatencyTable] = ()
) -> None:
    """Raise `BudgetError`, before anything is trained, if a budget is hopeless by the tables.

    Args:
        table: of the run's target, which shares are of.
        others: of the deployments that compete.
    """
    fastest = min(
        here.fixed_ms
        + min(here.block_ms(Block(options.heads[0], options.ffn[0])) for options in space.blocks)
        for one in (table, *others)
        for here in map(one.predictor().at_hidden, (0, *space.hidden))
    )
    for text in inputs.recipe.budgets:
        if Budget.parse(text).in_ms(table.reference_ms) < fastest:
            raise BudgetError(
                f"budget {text} cannot be met: the fastest subnetwork is predicted at "
                f"{fastest:.3g} ms, the whole model takes {table.reference_ms:.3g} ms"
            )


def check_limits(inputs: Inputs, space: SearchSpace) -> None:
    """Raise `BudgetError` if nothing keeps the recipe's other limits, however it is served."""
    from hwnas.deployments import targets_of
    from hwnas.limits import limits_at

    refused: list[BudgetError] = []
    targets = [inputs.target, *targets_of(inputs.recipe)]
    for target in targets:
        try:
            for limit in limits_at(inputs, target):
                limit.check(space)
        except BudgetError as error:
            refused.append(error)
    if len(refused) == len(targets):
        raise refused[-1]


def budget_share(inputs: Inputs, text: str) -> float:
    """A budget as a share of the full model's latency, by the table."""
    table = LatencyTable.load(inputs.path / "table.json")
    return Budget.parse(text).in_ms(table.reference_ms) / table.reference_ms


def budget_shares(inputs: Inputs) -> list[float]:
    """All budgets as shares of the full model's latency."""
    return [budget_share(inputs, budget) for budget in inputs.recipe.budgets]


def structure_shares(inputs: Inputs) -> list[float]:
    """The shares that structures have which fill the budgets, at all deployments; at most 1.

    A network that is served twice as fast may be twice as large, and one that knows fewer tokens
    has what these took.
    """
    from hwnas.deployments import read_anchors

    ratios = (1.0, *(anchor.ratio for anchor in read_anchors(inputs.path)))
    table = LatencyTable.load(inputs.path / "table.json")
    saved = 1 - vocabulary_ratio(inputs, inputs.target, table.reference_ms)
    return [min(1.0, share / ratio + saved) for share in budget_shares(inputs) for ratio in ratios]
