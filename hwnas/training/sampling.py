"""Which subnetworks the super-network trains on at each step: the sandwich.

Every step trains the largest, the smallest and a few sampled subnetworks (the sandwich rule,
Yu & Huang 2019). The largest need not be the whole model: the fine-tuned original teaches, so
widths that no budget allows are not worth their steps, the dearest of all. Reordered widths are
inherited at once, while a subnetwork with fewer blocks needs training of its own (METHODS, the
prototype), so samples are mostly independent widths around one share of the full size, and a
stated part of them depth x width patterns.
A step's sample depends on the seed and the step's number only, so training can resume anywhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hwnas.space import SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork


@dataclass(frozen=True)
class Sandwich:
    """Draws the subnetworks of a step.

    Args:
        smallest, largest: shares of the full width, of each block, that these subnetworks have.
        samples: how many are drawn beside the largest and the smallest.
        depth_share: how many of the drawn ones are depth x width patterns, 0 to 1.
    """

    space: SearchSpace
    seed: int
    smallest: float = 0.25
    largest: float = 1.0
    samples: int = 1
    depth_share: float = 0.2

    def at(self, step: int) -> list[Subnetwork]:
        """The subnetworks to train at `step`, the largest first."""
        rng = random.Random(f"{self.seed}/{step}")
        drawn = [self._draw(rng) for _ in range(self.samples)]
        return [self.space.scaled(self.largest), self.space.scaled(self.smallest), *drawn]

    def _draw(self, rng: random.Random) -> Subnetwork:
        share = rng.uniform(self.smallest, self.largest)
        depth = len(self.space.blocks)
        kept = depth
        if rng.random() < self.depth_share and all(b.droppable for b in self.space.blocks):
            # fewer blocks, each the wider for it
            kept = rng.randint(max(1, round(share * depth)), depth)
            share = min(1.0, share * depth / kept)
        blocks = [
            Block(*(max(1, round(n * share * rng.uniform(0.6, 1.4))) for n in full))
            if i < kept
            else DROPPED
            for i, full in enumerate(self.space.largest.blocks)
        ]
        return self.space.snap(blocks)
