"""The search problem in numbers: what each option of each block loses and costs.

Everything in `hwnas.search` works on these tables. Assumption: latency is additive, a fixed part
plus one term a block (`Predictor`), and so is the first guess at the loss (`BlockLoss`); the
guess only starts and steers the search, whose own quality signal is measured on real inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hwnas.errors import BudgetError, UserError
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    from hwnas.search.exact import BlockLoss

    Floats = npt.NDArray[np.float64]

# two orders of summing the same milliseconds may differ by rounding; nothing else is forgiven
ROUNDING = 1e-9

# one choice as option indices: (heads, ffn) for a kept block, None for one left out
Choice = list[tuple[int, int] | None]


class Predictor(Protocol):
    """Additive latency: `predict(s) = fixed_ms + sum of block_ms over the blocks`, milliseconds."""

    @property
    def fixed_ms(self) -> float:
        """What every subnetwork costs (embeddings, head of the task, the call itself)."""

    def block_ms(self, block: Block) -> float:
        """The cost of one block; 0 for `Block(0, 0)`."""

    def predict(self, subnetwork: Subnetwork) -> float:
        """The latency of one subnetwork."""

    def predict_many(self, genomes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Latencies `(n,)` of genomes `(n, blocks, 2)`."""


def limit(budget_ms: float) -> float:
    """The most milliseconds that count as within the budget."""
    return budget_ms * (1 + ROUNDING)


def fits(ms: float, budget_ms: float) -> bool:
    """Whether `ms` meets the budget, up to rounding."""
    return ms <= limit(budget_ms)


@dataclass(frozen=True)
class BlockTable:
    """One block's options: `loss` and `ms` of shape `(head options, FFN options)`."""

    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    droppable: bool
    loss: Floats
    ms: Floats
    dropped_loss: float

    def fastest(self) -> tuple[int, int]:
        """The cheapest width; the widest of them where several cost the same."""
        flat = self.ms.size - 1 - int(np.argmin(self.ms.ravel()[::-1]))
        row, column = divmod(flat, self.ms.shape[1])
        return row, column


@dataclass(frozen=True)
class Tables:
    """The whole problem: one `BlockTable` a block, and what does not depend on the choice."""

    blocks: tuple[BlockTable, ...]
    fixed_ms: float

    @classmethod
    def of(cls, space: SearchSpace, loss: BlockLoss, predictor: Predictor) -> Tables:
        """Ask `loss` and `predictor` for every option of `space`.

        Raises:
            UserError: `loss` is of another model.
        """
        loss.check(space)
        known: dict[Block, float] = {}  # blocks share most of their options

        def ms(block: Block) -> float:
            if block not in known:
                known[block] = predictor.block_ms(block)
            return known[block]

        blocks = (_block_table(i, o, loss, ms) for i, o in enumerate(space.blocks))
        return cls(tuple(blocks), predictor.fixed_ms)

    def without_drops(self) -> Tables:
        """The same problem where every block stays."""
        return Tables(tuple(replace(b, droppable=False) for b in self.blocks), self.fixed_ms)

    def ms(self, choice: Choice) -> float:
        """Predicted latency of a choice."""
        kept = zip(self.blocks, choice, strict=True)
        return self.fixed_ms + sum(float(table.ms[at]) for table, at in kept if at is not None)

    def loss(self, choice: Choice) -> float:
        """Additive loss of a choice."""
        return sum(
            table.dropped_loss if at is None else float(table.loss[at])
            for table, at in zip(self.blocks, choice, strict=True)
        )

    def subnetwork(self, choice: Choice) -> Subnetwork:
        """The subnetwork that these option indices mean."""
        return Subnetwork(
            tuple(
                DROPPED if at is None else Block(table.heads[at[0]], table.ffn[at[1]])
                for table, at in zip(self.blocks, choice, strict=True)
            )
        )

    def choice(self, subnetwork: Subnetwork) -> Choice:
        """The option indices of a subnetwork of the space."""
        return [
            (table.heads.index(block.heads), table.ffn.index(block.ffn)) if block.present else None
            for table, block in zip(self.blocks, subnetwork.blocks, strict=True)
        ]

    def fastest(self) -> Choice:
        """The choice of least predicted latency, at least one block kept."""
        widths = [table.fastest() for table in self.blocks]
        cost = [float(table.ms[at]) for table, at in zip(self.blocks, widths, strict=True)]
        choice: Choice = [
            None if table.droppable and ms >= 0 else at
            for table, at, ms in zip(self.blocks, widths, cost, strict=True)
        ]
        if all(at is None for at in choice):
            cheapest = int(np.argmin(cost))
            choice[cheapest] = widths[cheapest]
        return choice

    def require(self, budget_ms: float) -> None:
        """Raise unless something fits the budget.

        Raises:
            UserError: the budget is no positive number.
            BudgetError: nothing fits; the message names the least predicted latency.
        """
        if not (math.isfinite(budget_ms) and budget_ms > 0):
            raise UserError(f"budget {budget_ms} ms: must be a positive number of milliseconds")
        fastest = self.fastest()
        if not fits(self.ms(fastest), budget_ms):
            raise BudgetError(
                f"budget {budget_ms:.3f} ms cannot be met: the fastest choice of the search space "
                f"is predicted at {self.ms(fastest):.3f} ms; raise the budget or widen the space"
            )


def _block_table(
    index: int, options: BlockOptions, loss: BlockLoss, ms: Callable[[Block], float]
) -> BlockTable:
    widths = [[Block(h, f) for f in options.ffn] for h in options.heads]
    return BlockTable(
        heads=options.heads,
        ffn=options.ffn,
        droppable=options.droppable,
        loss=_array(widths, lambda block: loss.of(index, block)),
        ms=_array(widths, ms),
        dropped_loss=loss.of(index, DROPPED),
    )


def _array(widths: Sequence[Sequence[Block]], value: Callable[[Block], float]) -> Floats:
    return np.array([[value(block) for block in row] for row in widths], dtype=np.float64)
