"""Which networks a device is measured with, chosen before anything is timed.

Stacks of a few equal blocks show what each width costs; whole networks of mixed widths show what
blocks cost among others, in networks of the usual size. Which further widths are measured is
decided while measuring (`session`): where a curve bends. Networks to check the table on are chosen
apart.

Needs only numpy once it is made, for it travels in profiling kits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hwnas.anatomy import Shape
from hwnas.subnetwork import DROPPED, Block, Subnetwork, Weights, macs

# whole networks that the costs are fitted to, beside the full one; decoding is bound by memory that
# others use too, and its times wander by 3 % within minutes: twice as many, over a longer time
MIXED, MIXED_DECODE = 16, 32
_SHARES = (0.2, 1.0)  # of the full width, of each kept block of a whole network, on average
_LEAST = 0.2  # of the full model's operations, that a whole network has
_MIXED_SEED = 7919  # the mixed ones are not those that the table is checked on


@dataclass(frozen=True)
class Plan:
    """Networks of one model; all but the mixed and unseen ones are stacks of equal blocks."""

    full: Subnetwork
    depth: int  # blocks of a stack
    beside: int  # blocks of the reference
    heads: tuple[int, ...]  # widths that a block may have, ascending
    ffn: tuple[int, ...]
    mixed: tuple[Subnetwork, ...]
    unseen: tuple[Subnetwork, ...]  # to check the table on
    weights: Weights
    hidden: int = 0  # residual width of all of them; 0: the model's own

    @classmethod
    def of(
        cls,
        shape: Shape,
        unseen: int = 0,
        seed: int = 0,
        phase: str = "encode",
        hidden: int = 0,
    ) -> Plan:
        """The plan for a model of this shape, to be checked on up to so many networks.

        Decoding is bound by the weights that it reads. A short stack has few beside its output
        layer's, and whether they stay in a cache is luck; so decoders' stacks are long.

        Args:
            seed: chooses these.
            phase: of the target.
            hidden: residual width of the networks; 0: the model's own.
        """
        from hwnas.space import SearchSpace

        blocks = SearchSpace.whole(shape).blocks
        widest = max(blocks, key=lambda block: (block.heads[-1], block.ffn[-1]))
        half = max(2, shape.depth // 2)
        depth = min(shape.depth, half if phase == "decode" else min(4, half))
        mixed = MIXED_DECODE if phase == "decode" else MIXED
        plan = cls(
            full=Subnetwork.full(shape).narrowed(hidden),
            depth=depth,
            beside=shape.depth if phase == "decode" else depth,
            heads=widest.heads,
            ffn=widest.ffn,
            mixed=tuple(s.narrowed(hidden) for s in whole_networks(shape, mixed, _MIXED_SEED)),
            unseen=(),
            weights=Weights.of(shape, hidden),
            hidden=hidden,
        )
        seen = {plan.full, *plan.mixed, *plan.stacks()}
        others = (s.narrowed(hidden) for s in whole_networks(shape, unseen + len(seen), seed))
        found = [s for s in others if s not in seen]
        return cls(**(vars(plan) | {"unseen": tuple(found[:unseen])}))

    @property
    def reference(self) -> Subnetwork:
        """What every network is timed beside: half-wide blocks, for they are quick."""
        return self.stack(self.middle, self.beside)

    @property
    def whole(self) -> tuple[Subnetwork, ...]:
        """The whole networks that costs are fitted to, the full model first."""
        return (self.full, *self.mixed)

    @property
    def middle(self) -> Block:
        """Where one width stays while the other varies: half of each, a usual neighbourhood."""
        heads, ffn = (
            min(options, key=lambda width: (abs(width - options[-1] / 2), -width))
            for options in (self.heads, self.ffn)
        )
        return Block(heads, ffn)

    def stack(self, block: Block, depth: int | None = None) -> Subnetwork:
        """So many blocks alike, the others left out."""
        kept = self.depth if depth is None else depth
        dropped = (DROPPED,) * (len(self.full.blocks) - kept)
        return Subnetwork((block,) * kept + dropped, self.hidden)

    def stacks(self) -> list[Subnetwork]:
        """The stacks that are measured in any case: both ends and the middle, and two depths."""
        (low, high), (narrow, wide) = ((x[0], x[-1]) for x in (self.heads, self.ffn))
        heads, width = self.middle
        blocks = [Block(h, width) for h in (low, heads, high)]
        blocks += [Block(heads, w) for w in (narrow, wide)]
        blocks += [Block(h, w) for h in (low, high) for w in (narrow, wide)]
        found = [self.stack(block) for block in blocks]
        if self.depth > 1:
            found += [self.stack(self.middle, 1), self.stack(Block(high, wide), 1)]
        return list(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """For a kit."""
        return vars(self) | {
            "full": self.full.genome,
            "mixed": [s.genome for s in self.mixed],
            "unseen": [s.genome for s in self.unseen],
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Plan:
        """What `to_json` wrote."""
        return cls(
            full=Subnetwork.of(stored["full"]),
            depth=stored["depth"],
            beside=stored["beside"],
            heads=tuple(stored["heads"]),
            ffn=tuple(stored["ffn"]),
            mixed=tuple(Subnetwork.of(genome) for genome in stored["mixed"]),
            unseen=tuple(Subnetwork.of(genome) for genome in stored["unseen"]),
            weights=Weights(*stored["weights"]),
            hidden=stored["hidden"],
        )


def whole_networks(shape: Shape, n: int, seed: int) -> list[Subnetwork]:
    """Up to `n` different subnetworks of 20 to 100 % of the full model's operations.

    Four of ten lose blocks; one of five keeps its blocks at one width; the others mix widths.
    """
    from hwnas.space import SearchSpace

    rng = random.Random(seed)
    space = SearchSpace.whole(shape)
    full = Subnetwork.full(shape)
    least = _LEAST * macs(full, shape, 1)
    found: dict[Subnetwork, None] = {}
    for _ in range(100 * n):  # a small space may hold fewer
        if len(found) == n:
            break
        depth = shape.depth if rng.random() < 0.6 else rng.randint(1, shape.depth)
        kept = set(rng.sample(range(shape.depth), depth))
        share = rng.uniform(*_SHARES)
        mixed = rng.random() < 0.8
        subnetwork = space.snap(
            [share * width * (rng.uniform(0.5, 1.5) if mixed else 1.0) for width in widths]
            if i in kept
            else [0, 0]
            for i, widths in enumerate(zip(shape.heads, shape.ffn, strict=True))
        )
        if subnetwork != full and macs(subnetwork, shape, 1) >= least:
            found.setdefault(subnetwork)
    return list(found)


def between(options: Iterable[int], low: int, high: int) -> int | None:
    """The option nearest to the middle of `low` and `high`, between them; None if there is none."""
    inside = [width for width in options if low < width < high]
    return min(inside, key=lambda width: abs(2 * width - low - high), default=None)
