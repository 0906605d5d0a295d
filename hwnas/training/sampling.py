"""Which subnetworks the super-network trains on at each step: the sandwich.

Every step trains the largest, the smallest and a few sampled subnetworks (the sandwich rule,
Yu & Huang 2019). The largest need not be the whole model: the fine-tuned original teaches, so
widths that no budget allows are not worth their steps, the dearest of all. Reordered widths are
inherited at once, while a subnetwork with fewer blocks needs training of its own (METHODS, the
prototype), so a stated part of the samples are depth x width patterns.

Independent widths all cost about the same, the middle of the range. So a sample's cost is drawn
first, evenly between the smallest's and the largest's, in milliseconds where a latency table says
them, and a structure of some kind is then scaled to it.
A step's sample depends on the seed and the step's number only, so training can resume anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from hwnas.space import SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork

Cost = Callable[[Subnetwork], float]
# `independent`: each width for itself, whatever it costs together; `even`: evenly in cost, widths
# mixed; `structured`: evenly in cost, mixed and uniform widths, and depth x width patterns
Sampling = Literal["independent", "even", "structured"]

_UNIFORM = 0.2  # of the structured samples that have one width in all blocks
_MIX = 0.4  # by which a block's width may lie off the others'
_HALVINGS = 12  # of the interval in which a share is sought


class Sampler(Protocol):
    """Says which subnetworks are trained at a step."""

    @property
    def seed(self) -> int:
        """Of what is drawn for a step beside its subnetworks."""

    @property
    def samples(self) -> int:
        """How many of a step's subnetworks, the last ones, are drawn."""

    def at(self, step: int) -> list[Subnetwork]:
        """The subnetworks to train at `step`, the largest first."""


@dataclass(frozen=True)
class _Pattern:
    """Which blocks stay, and how wide heads and FFN of each are beside the others'."""

    kept: tuple[bool, ...]
    factors: tuple[tuple[float, float], ...]

    def at(self, space: SearchSpace, share: float) -> Subnetwork:
        """The structure at about this share of the full width."""

        def width(full: int, factor: float) -> int:
            return max(1, round(full * min(1.0, share * factor)))

        return space.snap(
            Block(width(full.heads, heads), width(full.ffn, ffn)) if stays else DROPPED
            for full, (heads, ffn), stays in zip(
                space.largest.blocks, self.factors, self.kept, strict=True
            )
        )


@dataclass(frozen=True)
class Sandwich:
    """Draws the subnetworks of a step.

    Args:
        smallest, largest: shares of the full width, of each block, that these subnetworks have.
        samples: how many are drawn beside the largest and the smallest.
        sampling: how.
        depth_share: how many of the structured ones are depth x width patterns, 0 to 1.
        cost: of a subnetwork; by default the sum of its widths' shares.
    """

    space: SearchSpace
    seed: int
    smallest: float = 0.25
    largest: float = 1.0
    samples: int = 1
    sampling: Sampling = "structured"
    depth_share: float = 0.2
    cost: Cost | None = None

    def at(self, step: int) -> list[Subnetwork]:
        """The subnetworks to train at `step`, the largest first."""
        rng = random.Random(f"{self.seed}/{step}")
        drawn = [self._draw(rng) for _ in range(self.samples)]
        return [self.space.scaled(self.largest), self.space.scaled(self.smallest), *drawn]

    @cached_property
    def _costs(self) -> tuple[float, float]:
        """Of the smallest and the largest."""
        small, large = (self.space.scaled(share) for share in (self.smallest, self.largest))
        return self._cost(small), self._cost(large)

    def _cost(self, subnetwork: Subnetwork) -> float:
        if self.cost is not None:
            return self.cost(subnetwork)
        pairs = zip(subnetwork.blocks, self.space.largest.blocks, strict=True)
        return sum(a.heads / b.heads + a.ffn / b.ffn for a, b in pairs)

    def _draw(self, rng: random.Random) -> Subnetwork:
        if self.sampling == "independent":
            return self.space.sample(rng).narrowed(self._hidden(rng))
        hidden = self._hidden(rng)
        wanted = rng.uniform(*self._costs)
        structured = self.sampling == "structured"
        kept = [True] * len(self.space.blocks)
        mix = _MIX
        kind = rng.random()
        droppable = all(block.droppable for block in self.space.blocks)
        if structured and kind < self.depth_share and droppable:
            kept = self._fewer(rng, wanted)
        elif structured and kind > 1 - _UNIFORM:
            mix = 0.0
        pattern = _Pattern(
            tuple(kept),
            tuple((rng.uniform(1 - mix, 1 + mix), rng.uniform(1 - mix, 1 + mix)) for _ in kept),
        )
        low, high = 0.0, 1 / (1 - mix)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            too_little = self._cost(pattern.at(self.space, middle).narrowed(hidden)) < wanted
            low, high = (middle, high) if too_little else (low, middle)
        return pattern.at(self.space, (low + high) / 2).narrowed(hidden)

    def _hidden(self, rng: random.Random) -> int:
        """A residual width: 0, the model's own, as often as each of the others."""
        return rng.choice((0, *self.space.hidden)) if self.space.hidden else 0

    def _fewer(self, rng: random.Random, wanted: float) -> list[bool]:
        """The first so many blocks, at least as many as can cost what is wanted."""
        depth = len(self.space.blocks)
        least = next(
            (
                first
                for first in range(1, depth)
                if self._cost(self.space.scaled(self.largest, _first(first, depth))) >= wanted
            ),
            depth,
        )
        return _first(rng.randint(least, depth), depth)


def _first(count: int, depth: int) -> list[bool]:
    return [i < count for i in range(depth)]
