"""A narrower residual stream: which axes of the weights follow its width, and how to cut them.

The stream runs through every layer, so its width is not switched within the layers as heads and
neurons are. A subnetwork with a narrower one is a dense model of that width whose weights are views
of the super-network's: nothing is copied, and gradients reach the shared weights.

Which axes follow the width is found by comparing the shapes of two models that differ in nothing
else; no family has to say it. Among them are both axes of a pooler, whose dimensions are thereby
taken in the stream's order: what the model computes stays.

Assumptions: widths are multiples of the number of attention heads (transformers' configs demand
it), and layer norms over fewer dimensions are another function, which training has to make up for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hwnas.anatomy import find_family
from hwnas.anatomy.dense import new_dense
from hwnas.anatomy.heads import task_of
from hwnas.anatomy.modules import blocks
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Axes = dict[str, tuple[int, ...]]  # name of a parameter or buffer -> its axes


def residual_axes(model: PreTrainedModel) -> Axes:
    """The axes of parameters and buffers that follow the residual width."""
    config: Any = model.config
    full = Subnetwork.full(find_family(config).shape(config))
    narrower = full.narrowed(config.hidden_size - config.num_attention_heads)
    task = task_of(type(model))
    wide, narrow = (_shapes(_skeleton(config, s, task)) for s in (full, narrower))
    return {
        name: tuple(i for i, (a, b) in enumerate(zip(shape, narrow[name], strict=True)) if a != b)
        for name, shape in wide.items()
        if shape != narrow[name]
    }


@torch.no_grad()
def reorder_residual(model: PreTrainedModel, importance: torch.Tensor) -> None:
    """Sort the dimensions of the residual stream by importance, in place; logits stay.

    Hidden states come in the new order, so a student and its teacher are sorted alike.

    Args:
        importance: of each dimension, `(hidden,)`.
    """
    order = importance.argsort(descending=True, stable=True)
    tensors = _tensors(model)
    for name, axes in residual_axes(model).items():
        tensor = tensors[name]
        for axis in axes:
            tensor.copy_(tensor.index_select(axis, order.to(tensor.device)))


def narrow_view(model: PreTrainedModel, subnetwork: Subnetwork) -> PreTrainedModel:
    """A dense model of the subnetwork, residual width included, on views of the model's weights.

    Args:
        model: whole, all of its blocks in place.
    """
    view = _skeleton(model.config, subnetwork, task_of(type(model)))
    shared, modules = _tensors(model), dict(model.named_modules())
    inside = name_of(model, blocks(model))
    kept = [i for i, _ in subnetwork.kept]

    def theirs(name: str) -> str:
        """The name in the whole model, where blocks that are left out still count."""
        rest = name.removeprefix(f"{inside}.")
        if rest == name:
            return name
        number, dot, within = rest.partition(".")
        return f"{inside}.{kept[int(number)]}{dot}{within}"

    for path, module in view.named_modules():
        for held in (module._parameters, module._buffers):
            for name, own in list(held.items()):
                if own is None:
                    continue
                full_name = f"{path}.{name}" if path else name
                cut = prefix(shared[theirs(full_name)], own.shape)
                if held is module._parameters:
                    del module._parameters[name]
                    setattr(module, name, cut)  # a plain tensor: what autograd knows of it counts
                else:
                    module._buffers[name] = cut
        source = modules.get(theirs(path))
        for setting in ("p", "dropout_prob"):
            if isinstance(getattr(module, setting, None), float) and source is not None:
                setattr(module, setting, getattr(source, setting))
    view.train(model.training)
    return view


def prefix(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The part of the tensor from the front that has this shape."""
    return tensor[tuple(slice(0, size) for size in shape)]


def name_of(model: nn.Module, wanted: nn.Module) -> str:
    """The dotted name of a module within the model."""
    return str(next(name for name, module in model.named_modules() if module is wanted))


def _skeleton(config: PretrainedConfig | Any, subnetwork: Subnetwork, task: str) -> PreTrainedModel:
    """A dense model without memory for its weights."""
    with torch.device("meta"):
        return new_dense(config, subnetwork, task)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(_named(model))


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in _named(model)}


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers; shared ones once, by their first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()
