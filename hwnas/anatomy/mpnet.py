"""MPNet: BERT's blocks, all of which add one bias by relative position, another for each head."""

from hwnas.anatomy import Family

family = Family(
    task="text-classification",
    blocks="encoder.layer",
    attention_in=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    attention_out="attention.attn.o",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    sizes={
        "attention.attn.num_attention_heads": "heads",
        "attention.attn.all_head_size": "width",
        "attention.attn.attention_head_size": "size",
    },
    head_bias="attention.attn",
)
