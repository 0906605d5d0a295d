"""How large a subnetwork's served folder will be, and searching under a limit on that.

A folder is a fixed part (embeddings, graph, tokenizer) and so much for every head and FFN neuron.
The fixed part is found by writing the unshrunk model as it will be served. What came out is looked
at again in the end: the limit is on the folder that is handed over.

Latency and size together are two knapsacks at once. They are made one by a surrogate constraint
(Glover 1968): a mixture of the two, as shares of what is allowed, may be 1 at most. Whatever meets
both meets the mixture; the share of size in it is the smallest with which the best choice meets
both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import BudgetError
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.target import Target
from hwnas.search.exact import solve_tables
from hwnas.search.problem import Tables
from hwnas.space import SearchSpace
from hwnas.subnetwork import Block, Subnetwork

if TYPE_CHECKING:
    from hwnas.search.exact import BlockLoss
    from hwnas.stages import Inputs

# of a weight of a block in the served folder
_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "int8-static": 1.0,
    "int8-dynamic": 1.0,
    "int8-weights": 1.0,
    "int4-weights": 0.55,
}
_HALVINGS = 12  # of the interval that size's share in the mixture is sought in


@dataclass(frozen=True)
class Sizes:
    """Megabytes (10^6 bytes) of served folders of one model's subnetworks, at one target."""

    fixed_mb: float  # of all but the blocks
    head_mb: float
    neuron_mb: float
    narrower: Mapping[int, Sizes] = field(default_factory=dict)  # by residual width

    def of(self, subnetwork: Subnetwork) -> float:
        """The size of a subnetwork's folder."""
        here = self.narrower[subnetwork.hidden] if subnetwork.hidden else self
        blocks = subnetwork.blocks
        heads, neurons = sum(b.heads for b in blocks), sum(b.ffn for b in blocks)
        return here.fixed_mb + here.head_mb * heads + here.neuron_mb * neurons

    def smallest(self, space: SearchSpace) -> Subnetwork:
        """The subnetwork of the space that takes the least room."""
        least = [(b.heads[0], b.ffn[0], b.droppable) for b in space.blocks]
        dropped = [i for i, (_, _, droppable) in enumerate(least) if droppable]
        if len(dropped) == len(least):
            dropped.remove(min(dropped, key=lambda i: least[i][:2]))
        blocks = [
            Block(0, 0) if i in dropped else Block(heads, ffn)
            for i, (heads, ffn, _) in enumerate(least)
        ]
        every = [Subnetwork(tuple(blocks), hidden) for hidden in (0, *space.hidden)]
        return min(every, key=self.of)

    def check(self, space: SearchSpace, most_mb: float) -> None:
        """Raise `BudgetError` if nothing in the space is as small as that."""
        smallest = self.of(self.smallest(space))
        if smallest > most_mb:
            raise BudgetError(
                f"max_size_mb: {most_mb:g} cannot be met: the smallest subnetwork is predicted at "
                f"{smallest:.1f} MB, {self.fixed_mb:.1f} MB of the model are not in its blocks; "
                "vocabulary.trim and int8 make that smaller"
            )


def sizes_at(inputs: Inputs, target: Target) -> Sizes:
    """The sizes at one target, from the baseline's folder there, written and weighed once a run."""

    def weigh() -> dict[str, float]:
        from hwnas.delivery import write_exact, write_quantized
        from hwnas.export import folder_size_mb, served_folder

        with tempfile.TemporaryDirectory(prefix="hwnas-") as temporary:
            folder = Path(temporary) / "whole"
            trim = inputs.recipe.vocabulary.trim
            write_exact(inputs, inputs.path / "baseline" / "model", folder, trim=trim)
            write_quantized(inputs, folder, target)
            return {"mb": folder_size_mb(folder / served_folder(target))}

    whole_mb = inputs.directory.measured(f"size at {target}", weigh)["mb"]
    shape = inputs.shape
    each = _BYTES[target.precision] / 1e6
    head = shape.head_size * 2 * (1 + 1 / shape.group) * each
    neuron = (3 if shape.gated else 2) * each

    def at(hidden: int) -> Sizes:
        return Sizes(0.0, head * hidden, neuron * hidden)

    full = Subnetwork.full(shape)
    fixed_mb = whole_mb - at(shape.hidden).of(full)
    narrower = {
        # nearly all of the rest are rows as wide as the residual stream
        hidden: replace(at(hidden), fixed_mb=fixed_mb * hidden / shape.hidden)
        for hidden in inputs.recipe.space.hidden
    }
    return replace(at(shape.hidden), fixed_mb=fixed_mb, narrower=narrower)


@dataclass(frozen=True)
class SizeLimit:
    """What is allowed, and how large subnetworks are at the target that is looked at."""

    most_mb: float
    sizes: Sizes

    def allows(self, subnetwork: Subnetwork) -> bool:
        """Whether the subnetwork's folder is predicted to be small enough."""
        return self.sizes.of(subnetwork) <= self.most_mb

    def mixed(
        self,
        predictor: LatencyPredictor,
        space: SearchSpace,
        loss: BlockLoss,
        budget_ms: float,
        hidden: int = 0,
    ) -> LatencyPredictor:
        """An additive predictor of a mixture of latency and size, to be kept within `budget_ms`.

        Args:
            predictor: additive, at the residual width `hidden` (0: the model's own).

        Raises:
            BudgetError: nothing is within both.
        """
        low, high = 0.0, 1.0
        if self._best_fits(predictor, space, loss, budget_ms, hidden):
            return predictor
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            blend = self._blend(predictor, middle, budget_ms, hidden)
            if self._best_fits(blend, space, loss, budget_ms, hidden):
                high = middle
            else:
                low = middle
        return self._blend(predictor, high, budget_ms, hidden)

    def _best_fits(
        self,
        predictor: LatencyPredictor,
        space: SearchSpace,
        loss: BlockLoss,
        budget_ms: float,
        hidden: int,
    ) -> bool:
        tables = Tables.of(space, loss, predictor)
        tables.require(budget_ms)
        best = solve_tables(tables, budget_ms).subnetwork
        return self.allows(best.narrowed(hidden))

    def _blend(
        self, predictor: LatencyPredictor, share: float, budget_ms: float, hidden: int
    ) -> LatencyPredictor:
        """So much of size, in milliseconds that are as large a part of what is allowed."""
        here = self.sizes.narrower[hidden] if hidden else self.sizes
        factor = share * budget_ms / self.most_mb

        def mixed(curve: Curve, each_mb: float) -> Curve:
            return replace(curve, ms=(1 - share) * curve.ms + factor * each_mb * curve.widths)

        return replace(
            predictor,
            fixed_ms=(1 - share) * predictor.fixed_ms + factor * here.fixed_mb,
            attention=mixed(predictor.attention, here.head_mb),
            ffn=mixed(predictor.ffn, here.neuron_mb),
        )
