"""GPT-2: one transposed layer for queries, keys and values, all queries first."""

from hwnas.anatomy import Family

family = Family(
    task="text-generation",
    blocks="h",
    attention_in=("attn.c_attn.query", "attn.c_attn.key", "attn.c_attn.value"),
    attention_out="attn.c_proj",
    ffn_in=("mlp.c_fc",),
    ffn_out="mlp.c_proj",
    sizes={"attn.num_heads": "heads", "attn.split_size": "width", "attn.head_dim": "size"},
    joined={"attn.c_attn": ("query", "key", "value")},
    ffn_width="n_inner",
    decoder=True,
)
