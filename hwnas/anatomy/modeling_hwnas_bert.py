"""BERT whose layers differ in width, as written by hwnas (Apache-2.0).

This file is saved beside the weights, so that transformers loads the model without hwnas:
``AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)``.
It needs torch and transformers only. ``config.hwnas_blocks`` lists ``[heads, ffn]`` for each layer.
"""

from typing import Any

from torch import nn
from transformers import BertForSequenceClassification


def set_heads(layer: Any, heads: int) -> None:
    """Tell a layer's attention how many heads its projections now hold."""
    attention = layer.attention.self
    attention.num_attention_heads = heads
    attention.all_head_size = heads * attention.attention_head_size


def resize_layer(layer: Any, heads: int, ffn: int) -> None:
    """Give one BERT layer `heads` attention heads and `ffn` FFN neurons, with new weights."""
    attention = layer.attention.self
    hidden = attention.query.in_features
    width = heads * attention.attention_head_size
    for name in ("query", "key", "value"):
        setattr(attention, name, nn.Linear(hidden, width))
    layer.attention.output.dense = nn.Linear(width, hidden)
    layer.intermediate.dense = nn.Linear(hidden, ffn)
    layer.output.dense = nn.Linear(ffn, hidden)
    set_heads(layer, heads)


class HwnasBertForSequenceClassification(BertForSequenceClassification):
    """`BertForSequenceClassification` with the widths of ``config.hwnas_blocks``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        for layer, (heads, ffn) in zip(self.bert.encoder.layer, config.hwnas_blocks, strict=True):
            resize_layer(layer, heads, ffn)
        self.post_init()  # type: ignore[no-untyped-call]
