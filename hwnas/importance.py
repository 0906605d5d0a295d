"""First-order importance of attention heads and FFN neurons, and the reordering that follows it.

The loss changes by about w·∂L/∂w when a weight is removed (EFTNAS, section 3; Molchanov et al.
2019). Summed over the weights through which a head or a neuron acts on the rest of the network
(its columns of the output projection) this is its gate's gradient; its absolute value, averaged
over small batches, is the score. Sorting heads within their block and neurons within their FFN
changes no output, and makes every prefix the best part of its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hwnas.anatomy import find_family
from hwnas.files import replacing
from hwnas.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwnas.search.exact import BlockLoss


@dataclass(frozen=True)
class Importance:
    """Scores for every block: `heads[i]` of shape `(heads,)`, `ffn[i]` of shape `(ffn,)`."""

    heads: tuple[torch.Tensor, ...]
    ffn: tuple[torch.Tensor, ...]

    def save(self, path: Path) -> None:
        """Write the scores as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"heads.{i}": t for i, t in enumerate(self.heads)}
        tensors |= {f"ffn.{i}": t for i, t in enumerate(self.ffn)}
        with replacing(path) as partial:
            save_file(tensors, partial)

    @classmethod
    def load(cls, path: Path) -> Importance:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        tensors = load_file(path)
        depth = sum(name.startswith("heads.") for name in tensors)
        return cls(
            tuple(tensors[f"heads.{i}"] for i in range(depth)),
            tuple(tensors[f"ffn.{i}"] for i in range(depth)),
        )

    def sorted(self) -> Importance:
        """The scores of a model reordered by them: each block's in descending order."""
        return Importance(
            tuple(t.sort(descending=True).values for t in self.heads),
            tuple(t.sort(descending=True).values for t in self.ffn),
        )

    def loss(self) -> BlockLoss:
        """Additive loss of keeping only a prefix, for a model reordered by these scores."""
        from hwnas.search.exact import BlockLoss

        ordered = self.sorted()
        return BlockLoss(
            heads=[_loss_of_prefix(t) for t in ordered.heads],
            ffn=[_loss_of_prefix(t) for t in ordered.ffn],
        )


def _loss_of_prefix(scores: torch.Tensor) -> np.ndarray:
    """`loss[k]`: the sum of the scores that a prefix of k leaves out, k = 0 … n."""
    descending = scores.double().numpy()
    return np.concatenate([descending[::-1].cumsum()[::-1], [0.0]])


def first_order(model: PreTrainedModel, batches: Sequence[dict[str, torch.Tensor]]) -> Importance:
    """Score heads and FFN neurons of `model` on `batches` of inputs with labels.

    Args:
        batches: each with `input_ids`, `attention_mask`, `labels` …; small ones (8 to 16
            examples) tell more than large ones, since the absolute value is taken per batch.
    """
    family = find_family(model.config)
    shape = family.shape(model.config)
    parts = [family.block_modules(block) for block in family.blocks(model)]
    attention = [getattr(*part.attention_out) for part in parts]
    ffn = [getattr(*part.ffn_out) for part in parts]
    heads_total = [torch.zeros(n) for n in shape.heads]
    ffn_total = [torch.zeros(n) for n in shape.ffn]
    weights = [linear.weight for linear in (*attention, *ffn)]
    was_training = model.training
    model.eval()
    with bar("importance", len(batches)) as advance:
        for batch in batches:
            loss = model(**{k: v.to(model.device) for k, v in batch.items()}).loss
            gradients = torch.autograd.grad(loss, weights)
            gates = [(w.detach() * g).sum(0).cpu() for w, g in zip(weights, gradients, strict=True)]
            for i, gate in enumerate(gates[: len(parts)]):
                heads_total[i] += gate.view(-1, shape.head_size).sum(1).abs()
            for i, gate in enumerate(gates[len(parts) :]):
                ffn_total[i] += gate.abs()
            advance(1)
    model.train(was_training)
    n = len(batches)
    return Importance(tuple(t / n for t in heads_total), tuple(t / n for t in ffn_total))


@torch.no_grad()
def reorder(model: PreTrainedModel, importance: Importance) -> None:
    """Sort each block's heads and FFN neurons by importance, in place; the function stays."""
    family = find_family(model.config)
    head_size = family.shape(model.config).head_size
    for i, block in enumerate(family.blocks(model)):
        part = family.block_modules(block)
        heads = importance.heads[i].argsort(descending=True, stable=True)
        columns = (heads[:, None] * head_size + torch.arange(head_size)).flatten()
        neurons = importance.ffn[i].argsort(descending=True, stable=True)
        for slot in part.attention_in:
            _permute_rows(getattr(*slot), columns)
        _permute_columns(getattr(*part.attention_out), columns)
        for slot in part.ffn_in:
            _permute_rows(getattr(*slot), neurons)
        _permute_columns(getattr(*part.ffn_out), neurons)


def _permute_rows(linear: nn.Linear, order: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[order])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[order])


def _permute_columns(linear: nn.Linear, order: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[:, order])
