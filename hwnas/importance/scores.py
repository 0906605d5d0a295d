"""Scores of a model's heads, FFN neurons, layers, residual dimensions and vocabulary rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwnas.files import read_tensors, replacing

if TYPE_CHECKING:
    from hwnas.search.exact import BlockLoss

Tensors = tuple[torch.Tensor, ...]
_OF_BLOCKS = ("heads", "ffn", "head_weights", "ffn_weights", "head_losses", "ffn_losses")


@dataclass(frozen=True)
class Importance:
    """Scores for every block: `heads[i]` of shape `(heads,)`, `ffn[i]` of shape `(ffn,)`.

    The more, the worse it is to lose the part. None of them is negative.
    """

    heads: Tensors
    ffn: Tensors
    # the mean score of single weights of each head and neuron: with it, one threshold for the whole
    # model says what survives of each (`boundaries`)
    head_weights: Tensors = ()
    ffn_weights: Tensors = ()
    layers: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # (blocks,)
    residual: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # (hidden,)
    vocabulary: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # (vocab,)
    # measured losses of keeping a prefix of so many parts of a model reordered by these scores,
    # `(heads + 1,)` and `(ffn + 1,)` for each block; see `sensitivity`. Empty: by the scores
    head_losses: Tensors = ()
    ffn_losses: Tensors = ()

    def save(self, path: Path) -> None:
        """Write the scores as safetensors."""
        from safetensors.torch import save_file

        with replacing(path) as partial:
            save_file({name: t.contiguous() for name, t in self._named()}, partial)

    @classmethod
    def load(cls, path: Path) -> Importance:
        """Read what `save` wrote."""
        stored = read_tensors(path)

        def blocks(name: str) -> Tensors:
            count = sum(key.startswith(f"{name}.") for key in stored)
            return tuple(stored[f"{name}.{i}"] for i in range(count))

        return cls(
            heads=blocks("heads"),
            ffn=blocks("ffn"),
            head_weights=blocks("head_weights"),
            ffn_weights=blocks("ffn_weights"),
            head_losses=blocks("head_losses"),
            ffn_losses=blocks("ffn_losses"),
            layers=stored["layers"],
            residual=stored["residual"],
            vocabulary=stored["vocabulary"],
        )

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in _OF_BLOCKS:
            for i, tensor in enumerate(getattr(self, name)):
                yield f"{name}.{i}", tensor
        for name in ("layers", "residual", "vocabulary"):
            yield name, getattr(self, name)

    def sorted(self, group: int = 1) -> Importance:
        """The scores of a model reordered by them: each block's in descending order.

        Args:
            group: heads that stay together, see `reordering`.
        """
        return replace(
            self,
            heads=tuple(_grouped(t, group) for t in self.heads),
            ffn=tuple(t.sort(descending=True).values for t in self.ffn),
        )

    def loss(self, group: int = 1) -> BlockLoss:
        """Additive loss of keeping only a prefix, for a model reordered by these scores.

        The measured one where there is one.
        """
        from hwnas.search.exact import BlockLoss

        if self.head_losses:
            return BlockLoss(
                heads=[losses.numpy() for losses in self.head_losses],
                ffn=[losses.numpy() for losses in self.ffn_losses],
            )
        ordered = self.sorted(group)
        return BlockLoss(
            heads=[_loss_of_prefix(t) for t in ordered.heads],
            ffn=[_loss_of_prefix(t) for t in ordered.ffn],
        )


def _grouped(scores: torch.Tensor, group: int) -> torch.Tensor:
    """The heads' scores with the groups of largest sum first."""
    parts = scores.view(-1, group)
    return parts[parts.sum(1).argsort(descending=True, stable=True)].flatten()


def _loss_of_prefix(scores: torch.Tensor) -> np.ndarray:
    """`loss[k]`: the sum of the scores that a prefix of k leaves out, k = 0 … n."""
    ordered = scores.double().numpy()
    return np.concatenate([ordered[::-1].cumsum()[::-1], [0.0]])
