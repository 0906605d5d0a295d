"""DistilBERT: BERT's blocks under names of its own."""

from hwnas.anatomy import Family

family = Family(
    task="text-classification",
    blocks="transformer.layer",
    attention_in=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_out="attention.out_lin",
    ffn_in=("ffn.lin1",),
    ffn_out="ffn.lin2",
    sizes={"attention.n_heads": "heads", "attention.dim": "width"},
    ffn_width="hidden_dim",
)
