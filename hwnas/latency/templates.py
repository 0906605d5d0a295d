"""What is elastic in an exported graph, found by comparing two exports of different widths.

The full model is exported, and so is a variant with every block's widths changed, heads and FFN
each by its own ratio. A constant's axis that changed by the heads' ratio follows the heads, one
that changed by the FFN's ratio the FFN; so do the entries of integer constants, which are the
targets of reshapes. No name of a layer is needed, and a graph that was quantized before the
comparison is resized just as well. `openvino_graphs` and `onnx_graphs` walk through the graphs.

Assumption: both exports have the same operations in the same order, and sizes are proportional to
the width that they follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hwnas.errors import HwnasError
from hwnas.subnetwork import Block

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

Width = Literal["heads", "ffn"]
_MOST_ENTRIES = 8  # of an integer constant that may be a shape


@dataclass(frozen=True)
class Rule:
    """One size that follows a width: `size` where the width is the full one."""

    at: int  # the axis of the constant, or the place of the entry in it
    width: Width
    size: int

    def for_block(self, block: Block, full: Block) -> int:
        """The size where the block has other widths.

        Raises:
            HwnasError: it would be no whole number.
        """
        new = Fraction(self.size * getattr(block, self.width), getattr(full, self.width))
        if new.denominator != 1:
            raise HwnasError(f"{self.width} {getattr(block, self.width)}: cuts a group of weights")
        return new.numerator


@dataclass(frozen=True)
class ElasticConstant:
    """A constant of which something follows a block's widths."""

    consumer: str  # the operation that takes it, by its name in the full graph
    port: int  # as which input
    block: int
    entries: bool  # whether the rules are of its entries, not of its axes
    rules: tuple[Rule, ...]

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ElasticConstant:
        """What `dataclasses.asdict` made of one."""
        return cls(**(stored | {"rules": tuple(Rule(**rule) for rule in stored["rules"])}))

    def resized(self, array: Array, block: Block, full: Block) -> Array:
        """The constant for a block of other widths; weights are repeated or cut."""
        for rule in self.rules:
            size = rule.for_block(block, full)
            if self.entries:
                array = array.copy()
                array.flat[rule.at] = size
            else:
                array = _with_axis(array, rule.at, size)
        return array


def variant_of(full: Block, group: int = 1) -> Block:
    """A block of other widths, each changed by its own ratio.

    Never of one KV group where the full one has more: converters write that in other operations.

    Args:
        group: query heads that share a key-value head.

    Raises:
        HwnasError: the block is too small to tell its widths apart.
    """
    groups = full.heads // group
    heads = group * {1: 1, 2: 4}.get(groups, groups - 1)
    for parts in (2, 4, 3):
        if full.ffn % parts == 0 and Fraction(1, parts) != Fraction(heads, full.heads):
            return Block(heads, full.ffn // parts)
    raise HwnasError(f"a block of {full.heads} heads and FFN {full.ffn} is too small to profile")


def same_size(ours: Array, theirs: Array) -> bool:
    """Whether a constant is of the same size in both graphs, or, if it may be one, the same shape.

    Weights are random, and differ in both.
    """
    if ours.shape != theirs.shape:
        return False
    return not _may_be_a_shape(ours) or np.array_equal(ours, theirs)


def rules_between(
    ours: Array, theirs: Array, full: Block, variant: Block
) -> tuple[bool, tuple[Rule, ...]]:
    """Whether entries (not axes) of a constant follow a width, and which follow which.

    Args:
        ours: the constant in the full graph, where its block is `full`.
        theirs: the same in the variant's.

    Raises:
        HwnasError: it changed by neither width's ratio.
    """
    if ours.ndim != theirs.ndim:
        raise HwnasError(f"constants of shapes {ours.shape} and {theirs.shape} do not correspond")
    entries = ours.shape == theirs.shape
    sizes = (ours.flat, theirs.flat) if entries else (ours.shape, theirs.shape)
    return entries, tuple(
        Rule(at, _width(int(a), int(b), full, variant), int(a))
        for at, (a, b) in enumerate(zip(*sizes, strict=True))
        if a != b
    )


def _may_be_a_shape(array: Array) -> bool:
    return array.size <= _MOST_ENTRIES and array.dtype == np.int64  # int32: quantized biases


def _width(ours: int, theirs: int, full: Block, variant: Block) -> Width:
    if ours * variant.heads == theirs * full.heads:
        return "heads"
    if ours * variant.ffn == theirs * full.ffn:
        return "ffn"
    raise HwnasError(f"a size of {ours} became {theirs}: it follows neither the heads nor the FFN")


def _with_axis(array: Array, axis: int, size: int) -> Array:
    """`array` with `size` entries along `axis`, repeated or cut: only times matter."""
    if size <= array.shape[axis]:
        return np.ascontiguousarray(array.take(range(size), axis))
    return np.resize(array, (*array.shape[:axis], size, *array.shape[axis + 1 :]))
