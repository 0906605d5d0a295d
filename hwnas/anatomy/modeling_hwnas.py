"""Models whose layers differ in width, as written by hwnas (Apache-2.0).

This file is saved beside the weights, so that transformers loads the model without hwnas:
``AutoModelFor….from_pretrained(folder, trust_remote_code=True)``.
It needs torch and transformers only. ``config.hwnas_blocks`` lists ``[heads, ffn]`` for each layer,
``config.hwnas_layout`` says where heads and FFN neurons stand in a layer of this family.

``HwnasX`` is transformers' class ``X`` with these widths, for any ``X``; see the end.
"""

from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D


class Resized:
    """Comes before a class of transformers, and gives its layers the widths of the config."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layout = config.hwnas_layout
        layers = self.base_model.get_submodule(layout["blocks"])  # type: ignore[attr-defined]
        for layer, (heads, ffn) in zip(layers, config.hwnas_blocks, strict=True):
            resize(layer, layout, heads, ffn)
        self.post_init()  # type: ignore[attr-defined]


class Joined(nn.Module):
    """Projections that transformers keeps in one layer, each in a layer of its own.

    The output is that of the one layer: all queries, then all keys, then all values, or (`by_head`)
    a head's query, key and value side by side.
    """

    def __init__(self, parts: dict[str, nn.Linear], head_size: int, by_head: bool) -> None:
        super().__init__()
        for name, linear in parts.items():
            setattr(self, name, linear)
        self.names = list(parts)
        self.head_size = head_size
        self.by_head = by_head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [getattr(self, name)(x) for name in self.names]
        if not self.by_head:
            return torch.cat(parts, dim=-1)
        # shapes as they come, for the exporters' tracers
        heads = [part.view(*part.shape[:-1], -1, self.head_size) for part in parts]
        joined = torch.stack(heads, dim=-2)
        return joined.view(*joined.shape[:-3], -1)


def part(layer: nn.Module, layout: dict[str, Any]) -> None:
    """Make plain linear layers of a layer's projections, joined or transposed; weights stay."""
    for name, parts in layout.get("joined", {}).items():
        holder, attribute = _holder(layer, name)
        whole = _linear(getattr(holder, attribute))
        joined = _parted(whole, parts, layout["head_size"], layout["by_head"])
        setattr(holder, attribute, joined)
    for name in (layout["attention_out"], *layout["ffn_in"], layout["ffn_out"]):
        holder, attribute = _holder(layer, name)
        if isinstance(getattr(holder, attribute, None), Conv1D):
            setattr(holder, attribute, _linear(getattr(holder, attribute)))


def _linear(old: Any) -> nn.Linear:
    """A linear layer, or GPT-2's transposed one, as a linear layer."""
    if isinstance(old, nn.Linear):
        return old
    inputs, outputs = old.weight.shape
    with torch.device("meta"):
        linear = nn.Linear(inputs, outputs, bias=old.bias is not None)
    linear.weight = nn.Parameter(old.weight.detach().T.contiguous())
    linear.bias = old.bias
    return linear


def _parted(whole: nn.Linear, names: list[str], head_size: int, by_head: bool) -> Joined:
    """The rows of a layer that are each projection's, as layers of their own."""
    count = len(names)
    rows = torch.arange(whole.out_features)
    if by_head:
        each = rows.view(-1, count, head_size).transpose(0, 1).reshape(count, -1)
    else:
        each = rows.view(count, -1)
    parts = {}
    for name, mine in zip(names, each, strict=True):
        with torch.device("meta"):
            linear = nn.Linear(whole.in_features, len(mine), bias=whole.bias is not None)
        linear.weight = nn.Parameter(whole.weight.detach()[mine])
        if whole.bias is not None:
            linear.bias = nn.Parameter(whole.bias.detach()[mine])
        parts[name] = linear
    return Joined(parts, head_size, by_head)


def resize(layer: nn.Module, layout: dict[str, Any], heads: int, ffn: int) -> None:
    """Give one layer `heads` attention heads and `ffn` FFN neurons, with new weights."""
    part(layer, layout)
    width = heads * layout["head_size"]
    for name in layout["attention_in"]:
        columns = width // layout["group"] if name in layout["shared"] else width
        _replace(layer, name, out_features=columns)
    _replace(layer, layout["attention_out"], in_features=width)
    for name in layout["ffn_in"]:
        _replace(layer, name, out_features=ffn)
    _replace(layer, layout["ffn_out"], in_features=ffn)
    if layout["head_bias"]:
        attention = layer.get_submodule(layout["head_bias"])
        own_heads(attention, heads, layout.get("bias_argument", ""))
    set_sizes(layer, layout, heads)


def set_sizes(layer: nn.Module, layout: dict[str, Any], heads: int) -> None:
    """Tell a layer how many heads its projections now hold, and of what size."""
    size = layout["head_size"]
    sizes = {"heads": heads, "width": heads * size, "size": size, "scaling": size**-0.5}
    for name, size in layout["sizes"].items():
        holder, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(holder), attribute, sizes[size])


def own_heads(attention: nn.Module, heads: int, argument: str = "") -> None:
    """Let a layer choose its heads' part of a bias that all layers share.

    MPNet's is of positions; BLOOM's, the `argument` of that name, of distances (ALiBi).
    `head_index[i]` says which column of the bias is that of the layer's head `i`.
    """
    attention.register_buffer("head_index", torch.arange(heads))
    if not argument:
        attention.register_forward_pre_hook(_choose_bias)
        return

    def choose(attention: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        bias = named[argument]  # (batch * heads, 1, keys)
        batch = arguments[0].shape[0]
        mine = attention.head_index[: attention.num_heads]
        chosen = bias.reshape(batch, -1, *bias.shape[1:])[:, mine].flatten(0, 1)
        return arguments, {**named, argument: chosen}

    attention.register_forward_pre_hook(choose, with_kwargs=True)


def _choose_bias(attention: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    states, mask, head_mask, bias, *rest = arguments
    if bias is not None:
        bias = bias[:, attention.head_index[: attention.num_attention_heads]]
    return (states, mask, head_mask, bias, *rest)


def _replace(layer: nn.Module, name: str, **sizes: int) -> None:
    """Put a linear layer of other sizes in the place of the one of that name, if there is one."""
    holder, attribute = _holder(layer, name)
    old = getattr(holder, attribute, None)
    if old is not None:
        wanted = {"in_features": old.in_features, "out_features": old.out_features} | sizes
        setattr(holder, attribute, nn.Linear(**wanted, bias=old.bias is not None))


def _holder(layer: nn.Module, name: str) -> tuple[Any, str]:
    """The module that holds what has this name in a layer, and its attribute's name there."""
    holder_name, _, attribute = name.rpartition(".")
    return layer.get_submodule(holder_name), attribute


def __getattr__(name: str) -> Any:
    """`HwnasX` for a class `X` of transformers, made when it is first asked for."""
    base = getattr(transformers, name.removeprefix("Hwnas"), None)
    if not name.startswith("Hwnas") or not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = type(name, (Resized, base), {"__module__": __name__, "__doc__": Resized.__doc__})
    globals()[name] = found
    return found
