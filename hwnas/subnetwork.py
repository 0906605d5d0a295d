"""One choice of widths for every block of a model, and how many operations it takes.

A `Subnetwork` says for every block how many attention heads and FFN neurons are active; zero
heads and zero neurons mean that the block is left out. Widths are prefixes: "6 heads" are the
first six after reordering by importance. Needs only numpy, for it travels in profiling kits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    """One choice for every block, hashable; its genome is `[[heads, ffn], ...]`."""

    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, genome: Iterable[Sequence[int]]) -> Subnetwork:
        return cls(tuple(Block(int(heads), int(ffn)) for heads, ffn in genome))

    @classmethod
    def full(cls, shape: Shape) -> Subnetwork:
        return cls.of(zip(shape.heads, shape.ffn, strict=True))

    @property
    def genome(self) -> list[list[int]]:
        return [[block.heads, block.ffn] for block in self.blocks]

    @property
    def kept(self) -> list[tuple[int, Block]]:
        """Index and width of the blocks that are not left out."""
        return [(i, block) for i, block in enumerate(self.blocks) if block.present]

    @property
    def depth(self) -> int:
        return len(self.kept)

    def __str__(self) -> str:
        return " ".join(f"{b.heads}x{b.ffn}" if b.present else "-" for b in self.blocks)


def genomes(subnetworks: Sequence[Subnetwork]) -> npt.NDArray[np.int64]:
    """The subnetworks as an array of shape `(n, blocks, 2)`: heads and FFN width."""
    return np.array([s.genome for s in subnetworks], dtype=np.int64)


def macs(subnetwork: Subnetwork, shape: Shape, seq: int, cache: int = 0) -> int:
    """Multiply-accumulates of `seq` tokens through the kept blocks, no embeddings or task head.

    Args:
        cache: tokens before them whose keys and values are kept.
    """
    total = 0
    for _, block in subnetwork.kept:
        width = block.heads * shape.head_size
        projections = 2 * shape.hidden * (width + width // shape.group) * seq
        attention = 2 * width * seq * (cache + seq)
        matrices = 3 if shape.gated else 2
        total += projections + attention + matrices * shape.hidden * block.ffn * seq
    return total
