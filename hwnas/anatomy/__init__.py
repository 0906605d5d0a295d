"""Where a model's elastic parts are: its blocks, attention heads, FFNs, widths, task head.

Each family of models has one file here that names its modules; everything else in hwnas works
on the `Anatomy` found. A new family is one new file, listed in `_FAMILIES`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from hwnas.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

# model_type of the config -> the module that knows the family
_FAMILIES = {"bert": "hwnas.anatomy.bert", "llama": "hwnas.anatomy.llama"}


@dataclass(frozen=True)
class Shape:
    """What decides a model's cost: enough to build a model of the same sizes, without weights."""

    family: str
    hidden: int
    head_size: int
    heads: tuple[int, ...]  # per block
    ffn: tuple[int, ...]  # per block
    vocab: int
    group: int = 1  # query heads that share a key-value head (a KV group)
    gated: bool = False  # the FFN has a gate beside its way in: three matrices instead of two
    decoder: bool = False  # it writes token by token, with a cache of keys and values

    @property
    def depth(self) -> int:
        return len(self.heads)


# a linear layer as the module that holds it and its attribute's name there
Slot = tuple["nn.Module", str]


@dataclass(frozen=True)
class BlockModules:
    """The linear layers of one block whose widths are elastic, each as a `Slot`.

    Attention projections yield (`attention_in`) or take (`attention_out`) `heads * head_size`
    columns, a head's columns side by side; the FFN's likewise one column a neuron.
    """

    attention_in: tuple[Slot, ...]  # query, key, value: (heads * head_size, hidden)
    attention_out: Slot  # (hidden, heads * head_size)
    ffn_in: tuple[Slot, ...]  # (ffn, hidden)
    ffn_out: Slot  # (hidden, ffn)


class Family(Protocol):
    """What one family's file provides."""

    task: str  # what its models are mostly for, as Optimum names it

    def shape(self, config: PretrainedConfig) -> Shape:
        """The sizes that the config states (per-block widths included, if it has them)."""

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """The stack of blocks, in order, as it stands in the model."""

    def replace_blocks(self, model: PreTrainedModel, kept: nn.ModuleList) -> None:
        """Make the model run exactly these blocks."""

    def block_modules(self, block: nn.Module) -> BlockModules:
        """The elastic linear layers of one block."""

    def set_heads(self, block: nn.Module, heads: int) -> None:
        """Tell a block's attention how many heads its projections now yield."""

    def dense_class(self, model_class: type) -> type[PreTrainedModel]:
        """The class of a plain model of the same task whose blocks differ in width."""

    def dense_config(
        self, config: PretrainedConfig, widths: list[tuple[int, int]]
    ) -> PretrainedConfig:
        """A copy of `config` with these `(heads, ffn)` for each block that is kept."""

    def task_head(self, model: PreTrainedModel) -> list[nn.Module]:
        """The modules between the last block and the logits."""


def find_family(config: PretrainedConfig | Any) -> Family:
    """The family that knows models of this config.

    Raises:
        UserError: the family is unknown; the message names the known ones.
    """
    kind = getattr(config, "model_type", None)
    if kind not in _FAMILIES:
        raise UserError(
            f"model family {kind!r} is not supported; supported: {', '.join(sorted(_FAMILIES))} "
            "(CONTRIBUTING.md says how to add one)"
        )
    return cast(Family, importlib.import_module(_FAMILIES[kind]))


def find_shape(config: PretrainedConfig | Any) -> Shape:
    """The `Shape` of a model with this config.

    Raises:
        UserError: the family is unknown.
    """
    return find_family(config).shape(config)
