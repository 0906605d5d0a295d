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


class Resized:
    """Comes before a class of transformers, and gives its layers the widths of the config."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layout = config.hwnas_layout
        layers = self.base_model.get_submodule(layout["blocks"])  # type: ignore[attr-defined]
        for layer, (heads, ffn) in zip(layers, config.hwnas_blocks, strict=True):
            resize(layer, layout, heads, ffn)
        self.post_init()  # type: ignore[attr-defined]


def resize(layer: nn.Module, layout: dict[str, Any], heads: int, ffn: int) -> None:
    """Give one layer `heads` attention heads and `ffn` FFN neurons, with new weights."""
    width = heads * layout["head_size"]
    for name in layout["attention_in"]:
        columns = width // layout["group"] if name in layout["shared"] else width
        _replace(layer, name, out_features=columns)
    _replace(layer, layout["attention_out"], in_features=width)
    for name in layout["ffn_in"]:
        _replace(layer, name, out_features=ffn)
    _replace(layer, layout["ffn_out"], in_features=ffn)
    if layout["head_bias"]:
        own_heads(layer.get_submodule(layout["head_bias"]), heads)
    set_sizes(layer, layout, heads)


def set_sizes(layer: nn.Module, layout: dict[str, Any], heads: int) -> None:
    """Tell a layer how many heads its projections now hold, and of what size."""
    size = layout["head_size"]
    sizes = {"heads": heads, "width": heads * size, "size": size, "scaling": size**-0.5}
    for name, size in layout["sizes"].items():
        holder, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(holder), attribute, sizes[size])


def own_heads(attention: nn.Module, heads: int) -> None:
    """Let a layer choose its heads' part of a bias that all layers share (MPNet's of positions).

    `head_index[i]` says which column of the bias is that of the layer's head `i`.
    """
    attention.register_buffer("head_index", torch.arange(heads))
    attention.register_forward_pre_hook(_choose_bias)


def _choose_bias(attention: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    states, mask, head_mask, bias, *rest = arguments
    if bias is not None:
        bias = bias[:, attention.head_index[: attention.num_attention_heads]]
    return (states, mask, head_mask, bias, *rest)


def _replace(layer: nn.Module, name: str, **sizes: int) -> None:
    """Put a linear layer of other sizes in the place of the one of that name, if there is one."""
    holder_name, _, attribute = name.rpartition(".")
    holder = layer.get_submodule(holder_name)
    old = getattr(holder, attribute, None)
    if old is not None:
        wanted = {"in_features": old.in_features, "out_features": old.out_features} | sizes
        setattr(holder, attribute, nn.Linear(**wanted, bias=old.bias is not None))


def __getattr__(name: str) -> Any:
    """`HwnasX` for a class `X` of transformers, made when it is first asked for."""
    base = getattr(transformers, name.removeprefix("Hwnas"), None)
    if not name.startswith("Hwnas") or not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = type(name, (Resized, base), {"__module__": __name__, "__doc__": Resized.__doc__})
    globals()[name] = found
    return found
