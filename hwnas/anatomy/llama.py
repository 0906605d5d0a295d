"""Llama-like decoders: Llama, SmolLM2, Mistral, Qwen 2 and 3, Gemma.

Heads are elastic in whole KV groups: the query heads that share a key-value head stay together.
Biases of the projections (Qwen 2) follow their columns; norms of queries and keys (Qwen 3) are over
one head and stay as they are.
"""

from hwnas.anatomy import Family

family = Family(
    task="text-generation",
    blocks="layers",
    attention_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    shared=("self_attn.k_proj", "self_attn.v_proj"),
    attention_out="self_attn.o_proj",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
    gated=True,
    decoder=True,
)
