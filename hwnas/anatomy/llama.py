"""Llama-like decoders (`model_type: llama`): Llama, SmolLM2 and their descendants.

Heads are elastic in whole KV groups: the query heads that share a key-value head stay together.
Only what profiling needs stands here yet; elastic layers follow.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from hwnas.anatomy import Shape
from hwnas.anatomy.dense import stated_widths
from hwnas.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

task = "text-generation"


def shape(config: Any) -> Shape:
    """The sizes in a Llama config; per-block widths from `hwnas_blocks` if it has them."""
    widths = stated_widths(config)
    return Shape(
        family="llama",
        hidden=config.hidden_size,
        head_size=_head_size(config),
        heads=tuple(heads for heads, _ in widths),
        ffn=tuple(ffn for _, ffn in widths),
        vocab=config.vocab_size,
        group=config.num_attention_heads // config.num_key_value_heads,
        gated=True,
        decoder=True,
    )


def blocks(model: Any) -> nn.ModuleList:
    """The decoder's layers."""
    layers: nn.ModuleList = model.base_model.layers
    return layers


def dense_class(model_class: type) -> type[PreTrainedModel]:
    """The class of a dense model whose layers differ in width, for the task of `model_class`."""
    from hwnas.anatomy.modeling_hwnas_llama import HwnasLlamaForCausalLM

    if not model_class.__name__.endswith("ForCausalLM"):
        raise UserError(
            f"{model_class.__name__}: this kind of task is not supported for llama; "
            "supported: LlamaForCausalLM"
        )
    return HwnasLlamaForCausalLM


def dense_config(config: Any, widths: list[tuple[int, int]]) -> PretrainedConfig:
    """A copy of `config` for the kept layers with these `(heads, ffn)`."""
    result: PretrainedConfig = copy.deepcopy(config)
    result.num_hidden_layers = len(widths)
    result.head_dim = _head_size(config)
    result.hwnas_blocks = [list(width) for width in widths]
    heads = {heads for heads, _ in widths}
    if len(heads) == 1:  # exporters make example caches by these numbers
        group = config.num_attention_heads // config.num_key_value_heads
        result.num_attention_heads = heads.pop()
        result.num_key_value_heads = result.num_attention_heads // group
    return result


def _head_size(config: Any) -> int:
    size: int = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return size
