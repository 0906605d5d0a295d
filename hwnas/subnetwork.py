"""One choice of widths for every block of a model, and how many operations it takes.

A `Subnetwork` says for every block how many attention heads and FFN neurons are active; zero
heads and zero neurons mean that the block is left out. It may also have a narrower residual stream
than the model. Widths are prefixes: "6 heads" are the first six after reordering by importance.
Needs only numpy, for it travels in profiling kits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hwnas.anatomy import Shape

if TYPE_CHECKING:
    import numpy.typing as npt


class Block(NamedTuple):
    """The active width of one block; `Block(0, 0)` is left out."""

    heads: int
    ffn: int

    @property
    def present(self) -> bool:
        return self.heads > 0


DROPPED = Block(0, 0)


@dataclass(frozen=True)
class Subnetwork:
    """One choice for every block, hashable; its genome is `[[heads, ffn], ...]`.

    The genome of one with a residual stream of its own width ends with `[hidden]`.
    """

    blocks: tuple[Block, ...]
    hidden: int = 0  # residual width; 0: the model's own

    @classmethod
    def of(cls, genome: Iterable[Sequence[int]]) -> Subnetwork:
        rows = [[int(width) for width in row] for row in genome]
        hidden = rows.pop()[0] if rows and len(rows[-1]) == 1 else 0
        return cls(tuple(Block(heads, ffn) for heads, ffn in rows), hidden)

    @classmethod
    def full(cls, shape: Shape) -> Subnetwork:
        return cls.of(zip(shape.heads, shape.ffn, strict=True))

    @property
    def genome(self) -> list[list[int]]:
        residual = [[self.hidden]] if self.hidden else []
        return [[block.heads, block.ffn] for block in self.blocks] + residual

    def narrowed(self, hidden: int) -> Subnetwork:
        """The same blocks around a residual stream of this width; 0: the model's own."""
        return replace(self, hidden=hidden)

    @property
    def kept(self) -> list[tuple[int, Block]]:
        """Index and width of the blocks that are not left out."""
        return [(i, block) for i, block in enumerate(self.blocks) if block.present]

    @property
    def depth(self) -> int:
        return len(self.kept)

    def __str__(self) -> str:
        blocks = " ".join(f"{b.heads}x{b.ffn}" if b.present else "-" for b in self.blocks)
        return f"{blocks} @{self.hidden}" if self.hidden else blocks


class Weights(NamedTuple):
    """The weights of one head and of one FFN neuron, as shares of all blocks' of the full model."""

    head: float
    neuron: float

    @classmethod
    def of(cls, shape: Shape, hidden: int = 0) -> Weights:
        """Of a model of this shape, its residual stream as wide as said (0: its own)."""
        head = shape.head_size * 2 * (1 + 1 / shape.group)
        neuron = 3 if shape.gated else 2
        total = shape.hidden * (head * sum(shape.heads) + neuron * sum(shape.ffn))
        width = hidden or shape.hidden
        return cls(width * head / total, width * neuron / total)

    def share(self, subnetwork: Subnetwork) -> float:
        """Of a whole subnetwork; 1 for the full model."""
        return sum(b.heads * self.head + b.ffn * self.neuron for b in subnetwork.blocks)


def genomes(subnetworks: Sequence[Subnetwork]) -> npt.NDArray[np.int64]:
    """The subnetworks' blocks as an array of shape `(n, blocks, 2)`: heads and FFN width."""
    return np.array([s.blocks for s in subnetworks], dtype=np.int64)


def macs(subnetwork: Subnetwork, shape: Shape, seq: int, cache: int = 0) -> int:
    """Multiply-accumulates of `seq` tokens through the kept blocks, no embeddings or task head.

    Args:
        cache: tokens before them whose keys and values are kept.
    """
    total = 0
    hidden = subnetwork.hidden or shape.hidden
    for _, block in subnetwork.kept:
        width = block.heads * shape.head_size
        projections = 2 * hidden * (width + width // shape.group) * seq
        attention = 2 * width * seq * (cache + seq)
        matrices = 3 if shape.gated else 2
        total += projections + attention + matrices * hidden * block.ffn * seq
    return total
