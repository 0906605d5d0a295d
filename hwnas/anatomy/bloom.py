"""BLOOM: a head's query, key and value side by side, and ALiBi: one slope of distance a head."""

from hwnas.anatomy import Family

family = Family(
    task="text-generation",
    blocks="h",
    attention_in=tuple(
        f"self_attention.query_key_value.{part}" for part in ("query", "key", "value")
    ),
    attention_out="self_attention.dense",
    ffn_in=("mlp.dense_h_to_4h",),
    ffn_out="mlp.dense_4h_to_h",
    sizes={
        "self_attention.num_heads": "heads",
        "self_attention.split_size": "width",
        "self_attention.hidden_size": "width",
        "self_attention.head_dim": "size",
    },
    head_bias="self_attention",
    bias_argument="alibi",
    joined={"self_attention.query_key_value": ("query", "key", "value")},
    by_head=True,
    ffn_width="",
    decoder=True,
)
