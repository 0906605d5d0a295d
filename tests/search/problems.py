"""Search problems for the tests: additive tables with the steps of SIMD widths, and importances."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hwnas.search.exact import BlockLoss
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import Block, Subnetwork


@dataclass(frozen=True)
class SteppedCost:
    """Milliseconds that grow with width in whole vectors, and a fixed part for every kept block."""

    fixed_ms: float = 0.3
    block_base_ms: float = 0.05
    ms_per_head: float = 0.08
    ms_per_vector: float = 0.02
    vector: int = 64
    called: list[Block] = field(default_factory=list, compare=False)

    def block_ms(self, block: Block) -> float:
        if not block.present:
            return 0.0
        heads = 2 * math.ceil(block.heads / 2)  # an odd head costs as much as the next even one
        vectors = math.ceil(block.ffn / self.vector)
        return self.block_base_ms + heads * self.ms_per_head + vectors * self.ms_per_vector

    def predict(self, subnetwork: Subnetwork) -> float:
        return self.fixed_ms + sum(self.block_ms(block) for block in subnetwork.blocks)

    def predict_many(self, genomes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.array([self.predict(Subnetwork.of(genome)) for genome in genomes])


def space_of(depth: int, heads: int, ffn: int, step: int, droppable: bool = True) -> SearchSpace:
    options = BlockOptions(
        heads=tuple(range(1, heads + 1)),
        ffn=tuple(range(step, ffn + 1, step)),
        droppable=droppable,
    )
    return SearchSpace(blocks=(options,) * depth)


def loss_of(depth: int, heads: int, ffn: int, seed: int) -> BlockLoss:
    """Importances of a reordered model: descending within a block, unequal between blocks."""
    rng = np.random.default_rng(seed)

    def prefix_losses(n: int, scale: float) -> npt.NDArray[np.float64]:
        scores = np.sort(rng.pareto(2.0, n))[::-1] * scale * rng.lognormal(0, 0.7) / n
        return np.append(scores[::-1].cumsum()[::-1], 0.0)

    return BlockLoss(
        heads=[prefix_losses(heads, 1.0) for _ in range(depth)],
        ffn=[prefix_losses(ffn, 2.0) for _ in range(depth)],
    )
