"""DeBERTa-v2 and -v3: BERT's blocks, and positions that are projected like keys and queries."""

from hwnas.anatomy import Family

family = Family(
    task="text-classification",
    blocks="encoder.layer",
    attention_in=(
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
        # of relative positions; v3 uses the projections of the tokens for them
        "attention.self.pos_key_proj",
        "attention.self.pos_query_proj",
    ),
    attention_out="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    sizes={
        "attention.self.num_attention_heads": "heads",
        "attention.self.all_head_size": "width",
        "attention.self.attention_head_size": "size",
    },
)
