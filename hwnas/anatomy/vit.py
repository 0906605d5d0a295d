"""Vision transformers (ViT): BERT's blocks on the patches of an image."""

from hwnas.anatomy import Family

family = Family(
    task="image-classification",
    blocks="encoder.layer",
    attention_in=(
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ),
    attention_out="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    sizes={
        "attention.attention.num_attention_heads": "heads",
        "attention.attention.all_head_size": "width",
        "attention.attention.attention_head_size": "size",
        "attention.attention.scaling": "scaling",
    },
)
