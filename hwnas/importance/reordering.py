"""Sorting heads and FFN neurons by importance: no output changes, prefixes are the best parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hwnas.anatomy import find_family
from hwnas.anatomy.dense import take_apart
from hwnas.anatomy.modules import block_modules, blocks, layer
from hwnas.importance.scores import Importance

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Order:
    """Where each block's rows and columns came from: `new = old[order]`."""

    columns: tuple[torch.Tensor, ...]  # of all heads, (heads * head_size,)
    shared: tuple[torch.Tensor, ...]  # of KV heads
    neurons: tuple[torch.Tensor, ...]  # of the FFN


@torch.no_grad()
def reorder(model: PreTrainedModel, importance: Importance) -> Order:
    """Sort each block's heads and FFN neurons by importance, in place; the function stays.

    Heads that share a key-value head stay together, and the groups are sorted.
    """
    moved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    family = find_family(model.config)
    shape = family.shape(model.config)
    take_apart(model)
    for i, block in enumerate(blocks(model)):
        part = block_modules(family, block)
        groups = importance.heads[i].view(-1, shape.group).sum(1)
        order = groups.argsort(descending=True, stable=True)
        columns = _columns(order, shape.group * shape.head_size)
        shared = _columns(order, shape.head_size)
        neurons = importance.ffn[i].argsort(descending=True, stable=True)
        moved.append((columns, shared, neurons))
        for slot in part.attention_in:
            _permute_rows(layer(slot), columns)
        for slot in part.shared_in:
            _permute_rows(layer(slot), shared)
        _permute_columns(layer(part.attention_out), columns)
        for slot in part.ffn_in:
            _permute_rows(layer(slot), neurons)
        _permute_columns(layer(part.ffn_out), neurons)
        if family.head_bias:
            index: Any = block.get_submodule(family.head_bias).head_index
            index.copy_(index[order])
    return Order(*(tuple(each) for each in zip(*moved, strict=True)))


def _columns(order: torch.Tensor, size: int) -> torch.Tensor:
    """The columns of parts of so many columns each, in that order of the parts."""
    return (order[:, None] * size + torch.arange(size)).flatten()


def _permute_rows(linear: nn.Linear, order: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[order])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[order])


def _permute_columns(linear: nn.Linear, order: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[:, order])
