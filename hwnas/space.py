"""The search space: which widths each block may have, and whether it may be left out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hwnas.anatomy import Shape
from hwnas.errors import UserError
from hwnas.subnetwork import DROPPED, Block, Subnetwork

FFN_STEP = 32  # FFN widths are multiples of this, a whole number of SIMD vectors and cache lines


class SpaceSpec(BaseModel):
    """How the recipe wants its search space to be made; see `boundaries`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # `whole`: every head and FFN step; `automatic`: what survives at a few complexities; `given`:
    # the same options in every block
    boundaries: Literal["whole", "automatic", "given"] = "whole"
    heads: tuple[int, ...] | None = Field(None, validate_default=True)  # of `given`
    ffn: tuple[int, ...] | None = Field(None, validate_default=True)
    # residual widths beside the model's own, multiples of its number of heads; the table must have
    # them
    hidden: tuple[int, ...] = ()
    targets: int = Field(5, ge=2)  # complexities between the smallest and the largest
    # of the full model's complexity; by default a little below the smallest budget, and all of it
    smallest: float | None = Field(None, gt=0, lt=1)
    largest: float | None = Field(None, gt=0, le=1)
    complexity: Literal["latency", "macs"] = "latency"
    snap: bool = False  # options to the steps at which the latency table says that time is saved

    @field_validator("heads", "ffn")
    @classmethod
    def _given(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        boundaries = info.data.get("boundaries")
        if (value is not None) != (boundaries == "given"):
            only = "are for boundaries: given only; leave them out"
            raise ValueError(only if value else "boundaries: given needs a list of widths here")
        if value is not None:
            _check_ascending(value)
        return value

    @field_validator("hidden")
    @classmethod
    def _residual(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value:
            _check_ascending(value)
        return value

    @field_validator("largest")
    @classmethod
    def _in_order(cls, value: float | None, info: ValidationInfo) -> float | None:
        smallest = info.data.get("smallest")
        if smallest is not None and value is not None and value <= smallest:
            raise ValueError(f"{value} is not above smallest, {smallest}; exchange the two")
        return value


def _check_ascending(widths: Sequence[int]) -> None:
    """Raise `ValueError` unless these are widths of a block, ascending."""
    if not widths or widths[0] <= 0 or list(widths) != sorted(set(widths)):
        raise ValueError(f"{list(widths)} must be ascending positive widths")


class BlockOptions(BaseModel):
    """What one block may be: ascending head counts and FFN widths, or (droppable) left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    droppable: bool = True

    @field_validator("heads", "ffn")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        _check_ascending(value)
        return value

    def options(self) -> list[Block]:
        """All choices for the block, the largest first."""
        wide = [Block(h, f) for h in reversed(self.heads) for f in reversed(self.ffn)]
        return wide + ([DROPPED] if self.droppable else [])


class SearchSpace(BaseModel):
    """All subnetworks that may be chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: tuple[BlockOptions, ...]
    hidden: tuple[int, ...] = ()  # narrower residual widths; the model's own is always one

    @classmethod
    def whole(cls, shape: Shape, ffn_step: int | None = None) -> SearchSpace:
        """Every number of whole KV groups, every FFN width in steps, every block droppable."""
        blocks = []
        for heads, ffn in zip(shape.heads, shape.ffn, strict=True):
            step = min(ffn_step or max(FFN_STEP, ffn // 48), ffn)
            widths = sorted(set(range(step, ffn, step)) | {ffn})
            groups = tuple(range(shape.group, heads + 1, shape.group))
            blocks.append(BlockOptions(heads=groups, ffn=tuple(widths)))
        return cls(blocks=tuple(blocks))

    @classmethod
    def given(cls, spec: SpaceSpec, shape: Shape) -> SearchSpace:
        """The options that a recipe gives, the same in every block.

        Raises:
            UserError: a block of the model has fewer heads or neurons, or its heads share
                key-value heads in groups that an option would part.
        """
        heads, ffn = spec.heads or (), spec.ffn or ()
        for name, widths, most in (("heads", heads, shape.heads), ("ffn", ffn, shape.ffn)):
            if widths[-1] > min(most):
                raise UserError(
                    f"space.{name}: {widths[-1]} is too many, the model has {min(most)}"
                )
        parted = next((h for h in heads if h % shape.group), None)
        if parted is not None:
            raise UserError(
                f"space.heads: {parted} is not a multiple of {shape.group}, as the "
                "model's heads share key-value heads"
            )
        block = BlockOptions(heads=heads, ffn=ffn)
        return cls(blocks=(block,) * shape.depth)

    def check(self, shape: Shape, where: str = "space.json") -> None:
        """Raise `UserError` unless every option exists in a model of `shape`."""
        if len(self.blocks) != shape.depth:
            raise UserError(f"{where}: {len(self.blocks)} blocks, the model has {shape.depth}")
        for i, block in enumerate(self.blocks):
            if block.heads[-1] > shape.heads[i]:
                raise UserError(
                    f"{where}: block {i} has {block.heads[-1]} heads, "
                    f"the model has {shape.heads[i]}"
                )
            if block.ffn[-1] > shape.ffn[i]:
                raise UserError(
                    f"{where}: block {i} has FFN width {block.ffn[-1]}, "
                    f"the model has {shape.ffn[i]}"
                )
        if self.hidden and self.hidden[-1] >= shape.hidden:
            raise UserError(
                f"{where}: residual width {self.hidden[-1]}, the model has {shape.hidden}"
            )

    @property
    def largest(self) -> Subnetwork:
        return Subnetwork(tuple(Block(b.heads[-1], b.ffn[-1]) for b in self.blocks))

    @property
    def smallest_width(self) -> Subnetwork:
        """All blocks present, each at its smallest."""
        return Subnetwork(tuple(Block(b.heads[0], b.ffn[0]) for b in self.blocks))

    def __contains__(self, subnetwork: object) -> bool:
        if not isinstance(subnetwork, Subnetwork) or len(subnetwork.blocks) != len(self.blocks):
            return False
        if subnetwork.hidden and subnetwork.hidden not in self.hidden:
            return False
        return all(
            (
                options.droppable
                if not b.present
                else b.heads in options.heads and b.ffn in options.ffn
            )
            for b, options in zip(subnetwork.blocks, self.blocks, strict=True)
        )

    def size(self) -> int:
        """How many subnetworks there are."""
        total = 1
        for block in self.blocks:
            total *= len(block.heads) * len(block.ffn) + block.droppable
        return total * (1 + len(self.hidden))

    def snap(self, genome: Iterable[Sequence[float]]) -> Subnetwork:
        """The subnetwork of the space nearest to these widths, block by block."""
        blocks = []
        for (heads, ffn), options in zip(genome, self.blocks, strict=True):
            if heads <= 0 and options.droppable:
                blocks.append(DROPPED)
            else:
                blocks.append(
                    Block(
                        min(options.heads, key=lambda o: abs(o - heads)),
                        min(options.ffn, key=lambda o: abs(o - ffn)),
                    )
                )
        return Subnetwork(tuple(blocks))

    def scaled(self, share: float, keep: Sequence[bool] | None = None) -> Subnetwork:
        """Every kept block at about `share` of its full heads and FFN ("uniform shrinking")."""
        kept = keep or [True] * len(self.blocks)
        return self.snap(
            (max(1.0, share * b.heads[-1]), max(1.0, share * b.ffn[-1])) if k else (0, 0)
            for k, b in zip(kept, self.blocks, strict=True)
        )

    def sample(self, rng: random.Random, drop: float = 0.0) -> Subnetwork:
        """Independent widths for every block, each droppable one left out at probability `drop`."""
        blocks = []
        for options in self.blocks:
            if options.droppable and rng.random() < drop:
                blocks.append(DROPPED)
            else:
                blocks.append(Block(rng.choice(options.heads), rng.choice(options.ffn)))
        if not any(b.present for b in blocks):
            return self.sample(rng, drop)
        return Subnetwork(tuple(blocks))
