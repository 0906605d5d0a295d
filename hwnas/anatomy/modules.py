"""The modules of a torch model that a `Family` names: its blocks, their layers, its head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from hwnas.anatomy import Family, find_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# a layer as the module that holds it and its attribute's name there
Slot = tuple[nn.Module, str]


@dataclass(frozen=True)
class BlockModules:
    """The linear layers of one block whose widths are elastic, each as a `Slot`."""

    attention_in: tuple[Slot, ...]  # (heads * head_size, hidden), one for each query head
    shared_in: tuple[Slot, ...]  # (heads / group * head_size, hidden), one for each KV group
    attention_out: Slot  # (hidden, heads * head_size)
    ffn_in: tuple[Slot, ...]  # (ffn, hidden)
    ffn_out: Slot  # (hidden, ffn)

    @property
    def all(self) -> tuple[Slot, ...]:
        """Every one of them."""
        inside = (*self.attention_in, *self.shared_in, self.attention_out)
        return (*inside, *self.ffn_in, self.ffn_out)


def layer(slot: Slot) -> nn.Linear:
    """The layer that stands in a slot now."""
    holder, name = slot
    return cast(nn.Linear, getattr(holder, name))


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of blocks, in order, as it stands in the model."""
    stack = model.base_model.get_submodule(find_family(model.config).blocks)
    return cast(nn.ModuleList, stack)


def replace_blocks(model: PreTrainedModel, kept: nn.ModuleList) -> None:
    """Make the model run exactly these blocks."""
    holder, name = _slot(model.base_model, find_family(model.config).blocks)
    setattr(holder, name, kept)


def block_modules(family: Family, block: nn.Module) -> BlockModules:
    """The elastic linear layers of one block."""

    def present(names: tuple[str, ...]) -> tuple[Slot, ...]:
        slots = (_slot(block, name) for name in names)
        return tuple((holder, name) for holder, name in slots if hasattr(holder, name))

    own = tuple(name for name in family.attention_in if name not in family.shared)
    return BlockModules(
        attention_in=present(own),
        shared_in=present(family.shared),
        attention_out=_slot(block, family.attention_out),
        ffn_in=present(family.ffn_in),
        ffn_out=_slot(block, family.ffn_out),
    )


def task_head(model: PreTrainedModel) -> list[nn.Module]:
    """The modules between the last block and the logits, in order; the last yields the logits.

    A model without a head may have a pooler, and nothing else.
    """
    body = model.base_model
    pooler = getattr(body, "pooler", None)
    if body is model:
        return [pooler] if pooler is not None else []
    outside = [m for m in model.children() if m is not body and any(True for _ in m.parameters())]
    return [pooler, *outside] if pooler is not None else outside


def _slot(module: nn.Module, name: str) -> Slot:
    holder, _, attribute = name.rpartition(".")
    return module.get_submodule(holder), attribute
