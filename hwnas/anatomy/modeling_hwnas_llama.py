"""Llama whose layers differ in width, as written by hwnas (Apache-2.0).

This file is saved beside the weights, so that transformers loads the model without hwnas:
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``.
It needs torch and transformers only. ``config.hwnas_blocks`` lists ``[heads, ffn]`` for each layer;
heads are whole KV groups, of ``num_attention_heads / num_key_value_heads`` query heads each.
"""

from typing import Any

from torch import nn
from transformers import LlamaForCausalLM


def resize_layer(layer: Any, heads: int, ffn: int) -> None:
    """Give one layer `heads` query heads, their KV heads and `ffn` neurons, with new weights."""
    attention, mlp = layer.self_attn, layer.mlp
    width = heads * attention.head_dim
    shared = width // attention.num_key_value_groups
    sizes = {
        (attention, "q_proj"): (None, width),
        (attention, "k_proj"): (None, shared),
        (attention, "v_proj"): (None, shared),
        (attention, "o_proj"): (width, None),
        (mlp, "gate_proj"): (None, ffn),
        (mlp, "up_proj"): (None, ffn),
        (mlp, "down_proj"): (ffn, None),
    }
    for (module, name), (rows, columns) in sizes.items():
        old = getattr(module, name)
        new = nn.Linear(
            rows or old.in_features, columns or old.out_features, bias=old.bias is not None
        )
        setattr(module, name, new)
    mlp.intermediate_size = ffn


class HwnasLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` with the widths of ``config.hwnas_blocks``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        for layer, (heads, ffn) in zip(self.model.layers, config.hwnas_blocks, strict=True):
            resize_layer(layer, heads, ffn)
        self.post_init()  # type: ignore[no-untyped-call]
