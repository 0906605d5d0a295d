"""The super-network: a Hugging Face model in which any subnetwork can be switched on.

`SuperNetwork` makes a model's blocks elastic in place. Switching costs no copies: widths are
numbers in `ElasticLinear`, and a block that is left out is not in the list that the model runs.
At full width the model is the untouched one, parameter names included. A subnetwork with a narrower
residual stream is another model on the same weights (`residual`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from hwnas.anatomy import find_family
from hwnas.anatomy.dense import check_hidden, layout, new_dense, take_apart
from hwnas.anatomy.heads import task_of
from hwnas.anatomy.modeling_hwnas import set_sizes
from hwnas.anatomy.modules import BlockModules, block_modules, blocks, layer, replace_blocks
from hwnas.elastic.layers import ElasticLinear
from hwnas.elastic.residual import name_of, narrow_view, prefix
from hwnas.errors import UserError
from hwnas.subnetwork import Block, Subnetwork

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
        take_apart(model)
        self._blocks = list(blocks(model))
        self._parts = [block_modules(self.family, block) for block in self._blocks]
        self._layout = layout(self.family, model.config)
        for part in self._parts:
            for holder, name in part.all:
                setattr(holder, name, ElasticLinear.sharing(getattr(holder, name)))
        self.active = self.full

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in order, also those that are left out now."""
        return self._blocks

    def set_subnetwork(self, subnetwork: Subnetwork) -> None:
        """Switch `subnetwork` on; one of a narrower residual stream is had by `as_subnetwork` only.

        Raises:
            UserError: it does not fit the model; the model stays as it was.
        """
        self._check(subnetwork)
        if subnetwork.hidden:
            raise TypeError("a subnetwork with its own residual width is a model of its own")
        for i, choice in subnetwork.kept:
            self._set_width(self._parts[i], choice)
            set_sizes(self._blocks[i], self._layout, choice.heads)
        if [i for i, _ in subnetwork.kept] != [i for i, _ in self.active.kept]:
            kept = nn.ModuleList([self._blocks[i] for i, _ in subnetwork.kept])
            kept.train(self.model.training)
            replace_blocks(self.model, kept)
        self.active = subnetwork

    @contextmanager
    def as_subnetwork(self, subnetwork: Subnetwork) -> Iterator[PreTrainedModel]:
        """`subnetwork` as a model for a while, then the one before is active again.

        Its weights are the shared ones.

        Raises:
            UserError: it does not fit the model.
        """
        before = self.active
        if subnetwork.hidden:
            self._check(subnetwork)
        self.set_subnetwork(self.full if subnetwork.hidden else subnetwork)
        try:
            yield narrow_view(self.model, subnetwork) if subnetwork.hidden else self.model
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
            dense = new_dense(self.model.config, subnetwork, task_of(type(self.model)))
            targets = list(blocks(dense))
            inside = f"{name_of(self.model, blocks(self.model))}."
            shapes = {name: tensor.shape for name, tensor in dense.state_dict().items()}
            outer = {
                name: prefix(tensor, shapes[name])
                for name, tensor in self.model.state_dict().items()
                if name in shapes and not name.startswith(inside)
            }
            dense.load_state_dict(outer, strict=False)
            for target, (i, _) in zip(targets, subnetwork.kept, strict=True):
                _copy_prefixes(self._blocks[i], target)
        return dense

    def _set_width(self, part: BlockModules, choice: Block) -> None:
        width = choice.heads * self.shape.head_size
        for slot in part.attention_in:
            cast(ElasticLinear, layer(slot)).active_out = width
        for slot in part.shared_in:
            cast(ElasticLinear, layer(slot)).active_out = width // self.shape.group
        cast(ElasticLinear, layer(part.attention_out)).active_in = width
        for slot in part.ffn_in:
            cast(ElasticLinear, layer(slot)).active_out = choice.ffn
        cast(ElasticLinear, layer(part.ffn_out)).active_in = choice.ffn

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
            if choice.heads % self.shape.group:
                raise UserError(
                    f"subnetwork {subnetwork}: block {i} has {choice.heads} heads; heads are kept "
                    f"in whole KV groups of {self.shape.group}"
                )
            if choice.present != (choice.ffn > 0):
                raise UserError(
                    f"subnetwork {subnetwork}: block {i} has {choice.heads} heads and FFN width "
                    f"{choice.ffn}; give both, or 0 and 0 to leave it out"
                )
        if not subnetwork.kept:
            raise UserError(f"subnetwork {subnetwork}: leaves out every block; keep one")
        if subnetwork.hidden:
            check_hidden(subnetwork.hidden, self.model.config, f"subnetwork {subnetwork}")


@torch.no_grad()
def _copy_prefixes(source: nn.Module, target: nn.Module) -> None:
    """Copy every parameter and buffer, cut to the target's shape from the front.

    Adapters become part of the weights that they stand beside.
    """
    tensors = source.state_dict()
    for name, module in source.named_modules():
        if isinstance(module, ElasticLinear):
            tensors[f"{name}.weight"] = module.merged()
    for name, tensor in target.state_dict().items():
        tensor.copy_(prefix(tensors[name], tensor.shape))
