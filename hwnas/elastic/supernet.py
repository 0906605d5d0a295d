"""The super-network: a Hugging Face model in which any subnetwork can be switched on.

`SuperNetwork` makes a model's blocks elastic in place. Switching costs no copies: widths are
numbers in `ElasticLinear`, and a block that is left out is not in the list that the model runs.
At full width the model is the untouched one, parameter names included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from hwnas.anatomy import BlockModules, find_family
from hwnas.anatomy.dense import new_dense
from hwnas.elastic.layers import ElasticLinear
from hwnas.errors import UserError
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SuperNetwork:
    """All subnetworks of one model, one of them active.

    Args:
        model: made elastic in place; at full width its results do not change.

    Raises:
        UserError: the model's family is unknown.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.family = find_family(model.config)
        self.shape = self.family.shape(model.config)
        self.full = Subnetwork.full(self.shape)
        self._blocks = list(self.family.blocks(model))
        self._parts = [self.family.block_modules(block) for block in self._blocks]
        for part in self._parts:
            for holder, name in (
                *part.attention_in,
                part.attention_out,
                *part.ffn_in,
                part.ffn_out,
            ):
                setattr(holder, name, ElasticLinear.sharing(getattr(holder, name)))
        self.active = self.full

    def set_subnetwork(self, subnetwork: Subnetwork) -> None:
        """Switch `subnetwork` on.

        Raises:
            UserError: it does not fit the model; the model stays as it was.
        """
        self._check(subnetwork)
        for i, choice in subnetwork.kept:
            _set_width(self._parts[i], choice.heads * self.shape.head_size, choice.ffn)
            self.family.set_heads(self._blocks[i], choice.heads)
        if [i for i, _ in subnetwork.kept] != [i for i, _ in self.active.kept]:
            kept = nn.ModuleList([self._blocks[i] for i, _ in subnetwork.kept])
            kept.train(self.model.training)
            self.family.replace_blocks(self.model, kept)
        self.active = subnetwork

    @contextmanager
    def as_subnetwork(self, subnetwork: Subnetwork) -> Iterator[PreTrainedModel]:
        """Switch `subnetwork` on for a while, then back to the one before."""
        before = self.active
        self.set_subnetwork(subnetwork)
        try:
            yield self.model
        finally:
            self.set_subnetwork(before)

    def extract(self, subnetwork: Subnetwork) -> PreTrainedModel:
        """A plain dense model equal to `subnetwork`, with its own weights, in eval mode.

        Its config states the width of each block, and it reloads with `hwnas.load`.

        Raises:
            UserError: the subnetwork does not fit the model.
        """
        with self.as_subnetwork(self.full):
            self._check(subnetwork)
            dense = new_dense(self.model.config, subnetwork, type(self.model))
            targets = list(self.family.blocks(dense))
            inside = f"{_name_of(self.model, self.family.blocks(self.model))}."
            outer = {
                name: tensor
                for name, tensor in self.model.state_dict().items()
                if not name.startswith(inside)
            }
            dense.load_state_dict(outer, strict=False)
            for target, (i, _) in zip(targets, subnetwork.kept, strict=True):
                _copy_prefixes(self._blocks[i], target)
        return dense

    def _check(self, subnetwork: Subnetwork) -> None:
        depth = len(self._blocks)
        if len(subnetwork.blocks) != depth:
            raise UserError(
                f"subnetwork {subnetwork}: {len(subnetwork.blocks)} blocks, the model has {depth}"
            )
        for i, choice in enumerate(subnetwork.blocks):
            most = self.full.blocks[i]
            if choice.heads > most.heads or choice.ffn > most.ffn or min(choice) < 0:
                raise UserError(
                    f"subnetwork {subnetwork}: block {i} is {choice.heads}x{choice.ffn}, "
                    f"the model has {most.heads}x{most.ffn}"
                )
            if choice.present != (choice.ffn > 0):
                raise UserError(
                    f"subnetwork {subnetwork}: block {i} has {choice.heads} heads and FFN width "
                    f"{choice.ffn}; give both, or 0 and 0 to leave it out"
                )
        if not subnetwork.kept:
            raise UserError(f"subnetwork {subnetwork}: leaves out every block; keep one")


def _set_width(part: BlockModules, attention: int, ffn: int) -> None:
    for holder, name in part.attention_in:
        cast(ElasticLinear, getattr(holder, name)).active_out = attention
    for holder, name in part.ffn_in:
        cast(ElasticLinear, getattr(holder, name)).active_out = ffn
    cast(ElasticLinear, getattr(*part.attention_out)).active_in = attention
    cast(ElasticLinear, getattr(*part.ffn_out)).active_in = ffn


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    names = (name for name, module in model.named_modules() if module is wanted)
    return str(next(names))


@torch.no_grad()
def _copy_prefixes(source: nn.Module, target: nn.Module) -> None:
    """Copy every parameter and buffer, cut to the target's shape from the front."""
    tensors = source.state_dict()
    for name, tensor in target.state_dict().items():
        tensor.copy_(tensors[name][tuple(slice(0, n) for n in tensor.shape)])
