"""The part of the server's weights that a subnetwork has: what is sent, trained and sent back.

Widths are prefixes, so of every tensor a subnetwork has the front part (`hwnas.elastic`), and a
block that is left out is not sent at all. Word embeddings that no client trains are never sent:
every client has the original model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hwnas.anatomy.dense import new_dense
from hwnas.anatomy.modules import blocks
from hwnas.elastic.residual import name_of, prefix
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import HwnasError
from hwnas.federated.methods import Method
from hwnas.federated.prompts import SOFT, head_names
from hwnas.subnetwork import DROPPED, Block, Subnetwork

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Tensors = dict[str, torch.Tensor]


class UnfitError(HwnasError):
    """What a client sent is not the part it was asked for; the message says what is wrong."""


@dataclass(frozen=True)
class Piece:
    """The front of one tensor."""

    name: str  # in the whole model
    local: str  # in a dense model of the subnetwork
    shape: tuple[int, ...]
    trained: bool  # else it is sent, and not sent back

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Part:
    """What a subnetwork has of the whole model's tensors."""

    subnetwork: Subnetwork
    pieces: tuple[Piece, ...]

    @classmethod
    def of(
        cls,
        config: PretrainedConfig | Any,
        subnetwork: Subnetwork,
        task: str,
        method: Method,
    ) -> Part:
        """The part of a model with this config and a head for `task`; no weights are made."""
        with torch.device("meta"):
            dense = new_dense(config, subnetwork, task)
            method.attach(SuperNetwork(dense))
        if method.prompt:
            shapes = {SOFT: torch.Size([method.prompt, dense.config.hidden_size])}
            shapes |= head_names(dense)
            pieces = tuple(Piece(n, n, tuple(shape), True) for n, shape in shapes.items())
            return cls(subnetwork, pieces)
        inside = f"{name_of(dense, blocks(dense))}."
        kept = [i for i, _ in subnetwork.kept]
        frozen, trained = method.frozen(dense), method.trained(dense)
        found = []
        for local, tensor in dense.state_dict().items():
            name = local
            if local.startswith(inside):
                number, _, rest = local.removeprefix(inside).partition(".")
                name = f"{inside}{kept[int(number)]}.{rest}"
            if local not in frozen:
                found.append(Piece(name, local, tuple(tensor.shape), local in trained))
        return cls(subnetwork, tuple(found))

    @property
    def trained(self) -> tuple[Piece, ...]:
        return tuple(piece for piece in self.pieces if piece.trained)

    @property
    def numel(self) -> int:
        """Numbers that are trained."""
        return sum(piece.numel for piece in self.trained)

    def cut(self, state: Mapping[str, torch.Tensor]) -> Tensors:
        """Copies of the whole model's tensors as the dense model of the subnetwork names them."""
        return {
            piece.local: prefix(state[piece.name], torch.Size(piece.shape)).clone()
            for piece in self.pieces
        }

    def sent_back(self, arrays: Mapping[str, torch.Tensor]) -> Tensors:
        """What a client has trained, under the whole model's names.

        Raises:
            UnfitError: a tensor is missing, of another shape, or not finite.
        """
        unknown = arrays.keys() - {piece.local for piece in self.trained}
        if unknown:
            raise UnfitError(f"tensor {min(unknown)} is not part of what was asked for")
        found = {}
        for piece in self.trained:
            if piece.local not in arrays:
                raise UnfitError(f"tensor {piece.local} is missing")
            tensor = arrays[piece.local]
            if not tensor.is_floating_point():
                raise UnfitError(f"tensor {piece.local} is of {tensor.dtype}, not of numbers")
            tensor = tensor.float()  # in which the server adds it up
            if tuple(tensor.shape) != piece.shape:
                raise UnfitError(
                    f"tensor {piece.local} has shape {list(tensor.shape)}, {list(piece.shape)} "
                    "was asked for"
                )
            if not tensor.isfinite().all():
                raise UnfitError(f"tensor {piece.local} holds numbers that are not finite")
            found[piece.name] = tensor
        return found


def within(own: Subnetwork, other: Subnetwork) -> Subnetwork | None:
    """What both have, as a subnetwork of `own`'s dense model; None where that has no block."""
    found = []
    for mine, theirs in zip(own.blocks, other.blocks, strict=True):
        if not mine.present:
            continue
        both = Block(min(mine.heads, theirs.heads), min(mine.ffn, theirs.ffn))
        found.append(both if both.present and both.ffn else DROPPED)
    return Subnetwork(tuple(found)) if any(block.present for block in found) else None
