"""Where the search starts: the moves of every rival, each brought up to the budget.

Shrinking all layers alike, keeping the first layers whole, fewer layers of less width, and the
proven best widths under the additive loss: none of them can beat a search that begins with all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from hwnas.errors import BudgetError
from hwnas.search.exact import BlockLoss, solve_tables
from hwnas.search.fitting import fill
from hwnas.search.problem import Choice, Predictor, Tables, fits
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork


@dataclass(frozen=True)
class Seed:
    """A starting point of the search; `kind` as in `candidates.jsonl`.

    - `uniform`: all layers keep the same share of their heads and FFN
    - `layers`: the first layers whole, the others left out
    - `layers-filled`: the same, and one layer more, as wide as then fits
    - `exact`: the proven best widths under the additive loss, with or without layers left out
    - `uniform-heads`, `uniform-ffn`: all layers alike, one head option more, or less, than the
      uniform one's and as much FFN as then fits
    - `hybrid`: the first layers at less than full width
    """

    kind: str
    subnetwork: Subnetwork


def seeds(
    space: SearchSpace, loss: BlockLoss, predictor: Predictor, budget_ms: float
) -> list[Seed]:
    """The distinct starting points within the budget, the pure kinds first.

    A kind is missing where the budget or the space leaves no room for it: `uniform` if even the
    smallest widths are too slow, `layers` if one whole layer is, or if layers may not be left out.
    All but `uniform` and `layers` use the budget up. Hybrids keep at least as many layers as fit
    whole, since fewer could not fill the budget.

    Raises:
        BudgetError: nothing fits; the message names the fastest possible latency.
        UserError: `loss` is of another model, or the budget is no positive number.
    """
    tables = Tables.of(space, loss, predictor)
    tables.require(budget_ms)
    distinct: dict[Subnetwork, Seed] = {}
    for kind, choice in _starts(space, tables, budget_ms):
        subnetwork = tables.subnetwork(choice)
        distinct.setdefault(subnetwork, Seed(kind, subnetwork))
    return list(distinct.values())


def _starts(space: SearchSpace, tables: Tables, budget_ms: float) -> Iterator[tuple[str, Choice]]:
    depth = len(space.blocks)
    alike = uniform(space, tables, budget_ms)
    if alike is not None:
        yield "uniform", alike
    whole = _whole_layers(space, tables, budget_ms)
    if whole > 0:
        yield "layers", _first(tables.choice(space.largest), whole)
    if fits(tables.ms(tables.without_drops().fastest()), budget_ms):
        best = solve_tables(tables.without_drops(), budget_ms)
        yield "exact", fill(tables, tables.choice(best.subnetwork), budget_ms)
    best = solve_tables(tables, budget_ms)
    yield "exact", fill(tables, tables.choice(best.subnetwork), budget_ms)
    if alike is not None:
        for kind, step in (("uniform-heads", 1), ("uniform-ffn", -1)):
            variant = _other_ratio(tables, alike, step, budget_ms)
            if variant is not None:
                yield kind, variant
    if whole > 0:
        yield from _partly_whole(space, tables, budget_ms, whole)
    for first in range(depth - 1, max(whole, 1) - 1, -1):
        yield from _hybrids(space, tables, budget_ms, first)


def _first(choice: Choice, first: int) -> Choice:
    return [at if i < first else None for i, at in enumerate(choice)]


def _may_keep_only(space: SearchSpace, first: int) -> bool:
    return all(options.droppable for options in space.blocks[first:])


def uniform(
    space: SearchSpace, tables: Tables, budget_ms: float, first: int | None = None
) -> Choice | None:
    """The first blocks, or all, at the largest common share of their widths within the budget."""
    keep = [first is None or i < first for i in range(len(space.blocks))]
    for share in _shares(space):
        choice = tables.choice(space.scaled(share, keep))
        if fits(tables.ms(choice), budget_ms):
            return choice
    return None


def _shares(space: SearchSpace) -> list[float]:
    """Every share at which `SearchSpace.scaled` chooses something else, the largest first."""
    shares = {
        Fraction(width, widths[-1])
        for options in space.blocks
        for widths in (options.heads, options.ffn)
        for width in widths
    }
    ordered = sorted(shares, reverse=True)
    # between two exact shares, heads and FFN snap to their nearest one after the other
    middles = [(a + b) / 2 for a, b in pairwise(ordered)]
    return [float(share) for share in sorted({*ordered, *middles}, reverse=True)]


def _whole_layers(space: SearchSpace, tables: Tables, budget_ms: float) -> int:
    """How many of the first layers fit whole; 0 if none do or the others may not be left out."""
    largest = tables.choice(space.largest)
    for first in range(len(space.blocks), 0, -1):
        if _may_keep_only(space, first) and fits(tables.ms(_first(largest, first)), budget_ms):
            return first
    return 0


def _other_ratio(tables: Tables, uniform: Choice, step: int, budget_ms: float) -> Choice | None:
    """All blocks `step` head options up, and the most FFN, the same share in all, that fits."""
    heads = [at[0] + step for at in uniform if at is not None]
    if any(not 0 <= h < len(b.heads) for h, b in zip(heads, tables.blocks, strict=True)):
        return None
    shares = sorted({f / table.ffn[-1] for table in tables.blocks for f in table.ffn}, reverse=True)
    for share in shares:
        choice: Choice = [
            (h, int(np.argmin(np.abs(np.array(b.ffn) - share * b.ffn[-1]))))
            for h, b in zip(heads, tables.blocks, strict=True)
        ]
        if fits(tables.ms(choice), budget_ms):
            return choice
    return None


def _partly_whole(
    space: SearchSpace, tables: Tables, budget_ms: float, whole: int
) -> Iterator[tuple[str, Choice]]:
    """The first layers whole and the next one as wide as still fits."""
    if whole == len(space.blocks) or not _may_keep_only(space, whole + 1):
        return
    choice = _first(tables.choice(space.largest), whole)
    choice[whole] = tables.blocks[whole].fastest()
    if fits(tables.ms(choice), budget_ms):
        yield "layers-filled", fill(tables, choice, budget_ms)


def _hybrids(
    space: SearchSpace, tables: Tables, budget_ms: float, first: int
) -> Iterator[tuple[str, Choice]]:
    """The first layers, all alike or at their proven best widths, the budget used up."""
    if not _may_keep_only(space, first):
        return
    alike = uniform(space, tables, budget_ms, first)
    if alike is not None:
        yield "hybrid", fill(tables, alike, budget_ms)
    try:
        best = solve_tables(tables, budget_ms, first)
    except BudgetError:
        return
    yield "hybrid", fill(tables, tables.choice(best.subnetwork), budget_ms)
