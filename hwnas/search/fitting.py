"""Bringing any choice within the budget, and using up what is left of it.

Greedy moves on one block's heads or FFN width at a time: the least loss for the milliseconds
saved when shrinking, the most loss won back for the milliseconds spent when widening. A move may
skip options, so costs that come in steps (whole SIMD vectors) do not stop it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hwnas.search.problem import BlockTable, Choice, Tables, fits, limit

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

# (ms so far, loss added by each move, ms added by each move) -> worth of each move, -inf to forbid
Worth = Callable[[float, "Floats", "Floats"], "Floats"]


def fit(tables: Tables, choice: Choice, budget_ms: float, taste: Floats | None = None) -> Choice:
    """`choice` shrunk until it meets the budget, then widened until the budget is used up.

    Blocks are left out (the least loss per millisecond first) only where even the fastest widths
    are too slow and the space allows it; widening brings none back.

    Args:
        taste: factors `(blocks, 2)` on the loss of heads and of FFN widths. The additive loss is
            only a guess, and different tastes end in different structures of the same cost.
    """
    most = limit(budget_ms)

    def thrift(ms: float, loss: Floats, cost: Floats) -> Floats:
        return np.where((cost < 0) & (ms > most), loss / np.minimum(cost, -_LEAST_MS), -np.inf)

    choice = _walk(tables, choice, taste, thrift)
    if not fits(tables.ms(choice), budget_ms):
        choice = _without_blocks(tables, choice, budget_ms)
    return fill(tables, choice, budget_ms, taste)


def fill(tables: Tables, choice: Choice, budget_ms: float, taste: Floats | None = None) -> Choice:
    """`choice`, which meets the budget, widened greedily while something useful fits."""
    most = limit(budget_ms)

    def gain(ms: float, loss: Floats, cost: Floats) -> Floats:
        useful = (loss < 0) & (ms + cost <= most)
        return np.where(useful, -loss / np.maximum(cost, _LEAST_MS), -np.inf)

    return _walk(tables, choice, taste, gain)


_LEAST_MS = 1e-12  # what a move that costs nothing is taken to cost


def _walk(tables: Tables, choice: Choice, taste: Floats | None, worth: Worth) -> Choice:
    """Make the worthiest move until none is allowed."""
    choice = list(choice)
    if taste is None:
        taste = np.ones((len(tables.blocks), 2))
    moves = {
        i: _moves(tables.blocks[i], at, taste[i]) for i, at in enumerate(choice) if at is not None
    }
    while True:
        ms = tables.ms(choice)
        best, block, target = -np.inf, -1, (0, 0)
        for i, (targets, loss, cost) in moves.items():
            if targets:
                worths = worth(ms, loss, cost)
                pick = int(np.argmax(worths))
                if worths[pick] > best:
                    best, block, target = float(worths[pick]), i, targets[pick]
        if block < 0:
            return choice
        choice[block] = target
        moves[block] = _moves(tables.blocks[block], target, taste[block])


def _without_blocks(tables: Tables, choice: Choice, budget_ms: float) -> Choice:
    """The fastest widths of the kept blocks; if they are too slow, fewer of the blocks."""
    choice = [
        None if at is None else table.fastest()
        for table, at in zip(tables.blocks, choice, strict=True)
    ]
    prices = {
        i: (table.dropped_loss - float(table.loss[at])) / table.ms[at]
        for i, (table, at) in enumerate(zip(tables.blocks, choice, strict=True))
        if at is not None and table.droppable and table.ms[at] > 0
    }
    kept = sum(at is not None for at in choice)
    for i in sorted(prices, key=lambda i: float(prices[i])):
        if fits(tables.ms(choice), budget_ms) or kept == 1:
            break
        choice[i] = None
        kept -= 1
    return choice if fits(tables.ms(choice), budget_ms) else tables.fastest()


def _moves(
    table: BlockTable, at: tuple[int, int], taste: Floats
) -> tuple[list[tuple[int, int]], Floats, Floats]:
    """Every change of one of the two widths: its target, what it adds in loss and in ms."""
    heads, ffn = at
    other_heads = [h for h in range(len(table.heads)) if h != heads]
    other_ffn = [f for f in range(len(table.ffn)) if f != ffn]
    targets = [(h, ffn) for h in other_heads] + [(heads, f) for f in other_ffn]
    loss = np.concatenate(
        [
            (table.loss[other_heads, ffn] - table.loss[at]) * taste[0],
            (table.loss[heads, other_ffn] - table.loss[at]) * taste[1],
        ]
    )
    ms = np.concatenate([table.ms[other_heads, ffn], table.ms[heads, other_ffn]]) - table.ms[at]
    return targets, loss, ms
