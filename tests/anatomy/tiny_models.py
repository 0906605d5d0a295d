"""A small random model of every family, with whatever head, and its answers."""

from __future__ import annotations

import torch
import transformers

from hwnas import anatomy
from hwnas.anatomy.heads import class_for

EXACT = 1e-5
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}
DISTIL = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
LLAMA = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
BLOOM = {"vocab_size": 99, "hidden_size": 32, "n_layer": 3, "n_head": 4}
GPT2 = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
CONFIGS = {
    "bert": ("BertConfig", SIZES),
    "roberta": ("RobertaConfig", SIZES),
    "xlm-roberta": ("XLMRobertaConfig", SIZES),
    "camembert": ("CamembertConfig", SIZES),
    "electra": ("ElectraConfig", SIZES | {"embedding_size": 8}),
    "distilbert": ("DistilBertConfig", DISTIL),
    "mpnet": ("MPNetConfig", SIZES),
    "deberta-v2": ("DebertaV2Config", SIZES | {"relative_attention": True}),
    "deberta-v3": ("DebertaV2Config", SIZES | DEBERTA_V3),
    "vit": ("ViTConfig", SIZES | {"image_size": 16, "patch_size": 4}),
    "llama": ("LlamaConfig", LLAMA),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA),
    "gemma": ("GemmaConfig", LLAMA),
    "gpt2": ("GPT2Config", GPT2),
    "bloom": ("BloomConfig", BLOOM),
}
DECODERS = tuple(
    name for name, (_, sizes) in CONFIGS.items() if "head_dim" in sizes or "n_head" in sizes
)


def make_model(name: str, task: str | None = None):
    kind, sizes = CONFIGS[name]
    config = getattr(transformers, kind)(**sizes)
    task = task or anatomy.find_family(config).task
    if task == "question-answering":
        config.num_labels = 2
    torch.manual_seed(0)
    model = class_for(config, task)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at zeros and ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs_of(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[1, 9:] = 0
    return {
        "input_ids": torch.randint(5, 99, (3, 17), generator=generator),
        "attention_mask": mask,
    }


@torch.inference_mode()
def answer_of(model) -> torch.Tensor:
    inputs = inputs_of(model)
    outputs = model.eval()(**inputs)
    logits = outputs[0]
    real = inputs.get("attention_mask")
    if real is not None and logits.shape[:2] == real.shape:
        logits = logits[real.bool()]  # what stands at padding is nobody's
    return logits


def gap(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).abs().max())
