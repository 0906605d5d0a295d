"""The proven best choice of widths under a latency budget, with additive loss and latency.

One option for every block, least total loss, total milliseconds within the budget: a
multiple-choice knapsack. Solved by dynamic programming over the undominated partial choices,
pruned by Lagrangian bounds (Dyer, Riha, Walker, "A hybrid dynamic programming/branch-and-bound
algorithm for the multiple-choice knapsack problem", 1995; Pisinger 1995).

Why not a general solver: HiGHS (`scipy.optimize.milp`), which the tests use as a witness, compares
with absolute tolerances, and on 32 blocks whose costs come in steps it took up to 80 s for one
budget or stopped with a gap; this takes about 15 ms and sums the same numbers as its caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hwnas.errors import BudgetError, UserError
from hwnas.search.problem import ROUNDING, Choice, Predictor, Tables, limit
from hwnas.space import SearchSpace
from hwnas.subnetwork import Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


_STATES = 20_000  # partial choices kept at most; real problems need about a thousand


@dataclass(frozen=True)
class BlockLoss:
    """Additive loss of giving a block a width, from importance scores.

    `heads[i][h]` is the loss of keeping only the first h heads of block i, for h = 0 … all;
    `ffn[i][f]` likewise of f neurons. Keeping all loses 0; a block left out loses both in full.
    """

    heads: Sequence[Floats]
    ffn: Sequence[Floats]

    def of(self, index: int, block: Block) -> float:
        """The loss when block `index` is given this width."""
        return float(self.heads[index][block.heads]) + float(self.ffn[index][block.ffn])

    def check(self, space: SearchSpace) -> None:
        """Raise `UserError` unless there is a finite loss for every option of `space`."""
        if not len(self.heads) == len(self.ffn) == len(space.blocks):
            raise UserError(
                f"importance: {len(self.heads)} blocks, the search space has "
                f"{len(space.blocks)}; both must come from the same model"
            )
        for i, options in enumerate(space.blocks):
            for name, losses, widest in (
                ("heads", self.heads[i], options.heads[-1]),
                ("FFN neurons", self.ffn[i], options.ffn[-1]),
            ):
                if len(losses) <= widest:
                    raise UserError(
                        f"importance: block {i} has {len(losses) - 1} {name}, the search space "
                        f"goes up to {widest}; both must come from the same model"
                    )
                if not np.isfinite(losses).all():
                    raise UserError(
                        f"importance: block {i} has scores of {name} that are not finite; "
                        "compute the importance again from a model that has not diverged"
                    )


@dataclass(frozen=True)
class ExactSolution:
    """The best choice, its additive loss and its predicted latency.

    `gap` is the relative distance of its loss from the proven lower bound, 0 when proven optimal;
    it is above 0 only where the search for the proof was cut off for want of memory.
    """

    subnetwork: Subnetwork
    loss: float
    latency_ms: float
    gap: float


def solve(
    space: SearchSpace,
    loss: BlockLoss,
    predictor: Predictor,
    budget_ms: float,
    *,
    droppable: bool = True,
) -> ExactSolution:
    """The subnetwork of least additive loss whose predicted latency is within the budget.

    Args:
        droppable: False keeps every block and chooses widths only. At least one block stays.

    Raises:
        BudgetError: nothing fits; the message names the fastest possible latency.
        UserError: `loss` is of another model, or the budget is no positive number.
    """
    return solve_many(space, loss, predictor, [budget_ms], droppable=droppable)[0]


def solve_many(
    space: SearchSpace,
    loss: BlockLoss,
    predictor: Predictor,
    budgets_ms: Sequence[float],
    *,
    droppable: bool = True,
) -> list[ExactSolution]:
    """`solve` for several budgets, reading the options' losses and costs only once."""
    tables = Tables.of(space, loss, predictor)
    if not droppable:
        tables = tables.without_drops()
    for budget_ms in budgets_ms:
        tables.require(budget_ms)
    return [solve_tables(tables, budget_ms) for budget_ms in budgets_ms]


def solve_tables(tables: Tables, budget_ms: float, first: int | None = None) -> ExactSolution:
    """`solve` on tables.

    Args:
        first: keep exactly the first so many blocks and leave the others out.

    Raises:
        BudgetError: nothing fits.
    """
    blocks = [_Options.of(tables, i, first) for i in range(len(tables.blocks))]
    room_ms = limit(budget_ms) - tables.fixed_ms
    found = _best(blocks, room_ms)
    if found is not None and all(at is None for at in found.choice):
        # one block must stay: the best of the problems in which a given one does
        forced = ([*blocks[:i], b.kept(), *blocks[i + 1 :]] for i, b in enumerate(blocks))
        answers = [answer for one in forced if (answer := _best(one, room_ms)) is not None]
        found = min(answers, key=lambda answer: tables.loss(answer.choice), default=None)
    if found is None:
        raise BudgetError(f"budget {budget_ms:.3f} ms: no choice with these blocks meets it")
    choice = found.choice
    return ExactSolution(
        tables.subnetwork(choice), tables.loss(choice), tables.ms(choice), found.gap
    )


class _Answer(NamedTuple):
    choice: Choice
    gap: float


class _Options(NamedTuple):
    """Options of one block: ascending ms, descending loss; being left out comes last."""

    at: list[tuple[int, int] | None]
    loss: Floats
    ms: Floats

    @classmethod
    def of(cls, tables: Tables, index: int, first: int | None) -> _Options:
        """The widths that no other width beats in both, and being left out, as far as allowed."""
        table = tables.blocks[index]
        if first is not None and index >= first:
            return cls([None], np.array([table.dropped_loss]), np.zeros(1))
        loss, ms = table.loss.ravel(), table.ms.ravel()
        order = np.lexsort((loss, ms))
        efficient = order[_efficient(loss[order])]
        at: list[tuple[int, int] | None] = [divmod(int(i), len(table.ffn)) for i in efficient]
        loss, ms = loss[efficient], ms[efficient]
        if first is None and table.droppable:
            at.append(None)
            loss, ms = np.append(loss, table.dropped_loss), np.append(ms, 0.0)
        return cls(at, loss, ms)

    def kept(self) -> _Options:
        """The same without being left out."""
        return self.only(np.array([at is not None for at in self.at]))

    def only(self, keep: npt.NDArray[np.bool_]) -> _Options:
        return _Options([self.at[i] for i in np.flatnonzero(keep)], self.loss[keep], self.ms[keep])


def _efficient(loss: Floats) -> npt.NDArray[np.bool_]:
    """Which of the options, sorted by ascending ms, lose less than all cheaper ones."""
    return np.append(True, loss[1:] < np.minimum.accumulate(loss)[:-1])


def _best(blocks: list[_Options], room_ms: float) -> _Answer | None:
    """The choice of least loss within `room_ms`, or None if there is none.

    Block after block, the partial choices are kept that no other beats in loss and ms and that
    may still become better than the best choice known (`_Relaxed`).
    """
    if any(len(options.at) == 0 for options in blocks):
        return None
    relaxed = _Relaxed.of(blocks, room_ms)
    if relaxed is None:
        return None
    blocks = [
        options.only(keep[: len(options.at)])
        for options, keep in zip(blocks, relaxed.hopeful, strict=True)
    ]
    order = sorted(range(len(blocks)), key=lambda i: len(blocks[i].at))
    rest_bound = relaxed.bounds.sum()
    rest_ms = sum(float(options.ms.min()) for options in blocks)
    loss, ms = np.zeros(1), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    proven = np.inf  # the least bound among the partial choices given up for want of room
    for i in order:
        options = blocks[i]
        rest_bound -= relaxed.bounds[i]
        rest_ms -= float(options.ms.min())
        loss = (loss[:, None] + options.loss).ravel()
        ms = (ms[:, None] + options.ms).ravel()
        bound = loss + relaxed.price * (ms - room_ms) + rest_bound
        alive = np.flatnonzero(
            (ms + rest_ms <= room_ms + relaxed.slack_ms) & (bound <= relaxed.limit)
        )
        alive = alive[np.lexsort((loss[alive], ms[alive]))]
        alive = alive[_efficient(loss[alive])]
        if len(alive) > _STATES:
            ranked = alive[np.argsort(bound[alive], kind="stable")]
            proven = min(proven, float(bound[ranked[_STATES]]))
            alive = np.sort(ranked[:_STATES])
            alive = alive[np.argsort(ms[alive], kind="stable")]
        steps.append((alive // len(options.at), alive % len(options.at)))
        loss, ms = loss[alive], ms[alive]
    choice: Choice = [None] * len(blocks)
    state = len(loss) - 1  # the last has the least loss
    gap = max(0.0, float(loss[state]) - proven) / max(abs(float(loss[state])), 1e-300)
    for i, (parents, picks) in zip(reversed(order), reversed(steps), strict=True):
        choice[i] = blocks[i].at[int(picks[state])]
        state = int(parents[state])
    return _Answer(choice, gap)


class _Relaxed(NamedTuple):
    """A price on milliseconds turns the problem into one free choice a block.

    `bounds[i]` is block i's least loss + price · ms; their sum less price · room is a lower bound
    on the loss of any choice. `hopeful` (blocks, options) says which options do not lift it above
    `limit`, the loss of a choice already found (and a little, for rounding).
    """

    price: float
    bounds: Floats
    hopeful: npt.NDArray[np.bool_]
    limit: float
    slack_ms: float

    @classmethod
    def of(cls, blocks: list[_Options], room_ms: float) -> _Relaxed | None:
        loss = _padded([options.loss for options in blocks], np.inf)
        ms = _padded([options.ms for options in blocks], np.inf)
        fastest = np.argmin(ms, axis=1)
        ms[np.isinf(ms)] = 0.0  # harmless beside an infinite loss, and safe to multiply
        each = np.arange(len(blocks))
        if ms[each, fastest].sum() > room_ms:
            return None

        def over(price: float) -> bool:
            return bool(ms[each, np.argmin(loss + price * ms, axis=1)].sum() > room_ms)

        low, high = 0.0, 1.0
        while over(high) and high < 1e30:
            high *= 4
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if over(middle) else (low, middle)
        taken = fastest if over(high) else np.argmin(loss + high * ms, axis=1)
        taken = _improved(taken, loss, ms, room_ms)
        found = float(loss[each, taken].sum())
        priced = loss + high * ms
        bounds = priced.min(axis=1)
        limit = found + ROUNDING * (abs(found) + high * abs(room_ms))
        hopeful = bounds.sum() - high * room_ms + priced - bounds[:, None] <= limit
        return cls(high, bounds, hopeful, limit, 1e-12 * abs(room_ms))


def _padded(rows: Sequence[Floats], value: float) -> Floats:
    """Rows of unequal length as one array, filled up with `value`."""
    padded = np.full((len(rows), max(len(row) for row in rows)), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _improved(
    taken: npt.NDArray[np.intp], loss: Floats, ms: Floats, room_ms: float
) -> npt.NDArray[np.intp]:
    """Change one block at a time, the greatest gain that still fits first."""
    taken = taken.copy()
    each = np.arange(len(taken))
    while True:
        spare = room_ms - ms[each, taken].sum()
        gain = loss[each, taken][:, None] - loss
        gain[ms - ms[each, taken][:, None] > spare] = 0
        i, option = divmod(int(np.argmax(gain)), gain.shape[1])
        if gain[i, option] <= 0:
            return taken
        taken[i] = option
