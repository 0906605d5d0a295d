"""BERT-like encoders: BERT, MiniLM, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA."""

from hwnas.anatomy import Family

family = Family(
    task="text-classification",
    blocks="encoder.layer",
    attention_in=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    sizes={
        "attention.self.num_attention_heads": "heads",
        "attention.self.all_head_size": "width",
        "attention.self.attention_head_size": "size",
    },
)
