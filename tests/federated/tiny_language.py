"""A recipe of a tiny Llama that reads letters, for federated pre-training."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_models import make_model

from hwnas.federated.recipe import FederatedRecipe
from hwnas.files import validate

TARGET = "openvino:cpu:threads=1,phase=decode,cache=8"


def letters(folder: Path) -> Path:
    """A tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz 0123456789.,"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", model_max_length=40
    ).save_pretrained(folder / "model")
    return folder / "model"


def llama(folder: Path, tokenizer: Path) -> FederatedRecipe:
    """Three rounds of four clients in two tiers."""
    from hwnas.latency.profiling import profile
    from hwnas.latency.target import Target

    model = make_model("llama")
    model.save_pretrained(tokenizer)
    table = folder / "table.json"
    profile(model.config, Target.parse(TARGET), validate=0, minutes=0.05).save(table)
    texts = folder / "texts.jsonl"
    lines = [
        {"text": f"the {i}th text is about {i % 7} things, and of those {i}"} for i in range(200)
    ]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    value = {
        "model": str(tokenizer),
        "task": {"data": str(texts), "kind": "language", "max_length": 32},
        "train": "adapters",
        "adapters": {"rank": 4, "alpha": 8, "dropout": 0.0},
        "rounds": 3,
        "clients": {"count": 4, "split": {"kind": "even"}},
        "tiers": [
            {"name": "large", "target": TARGET, "table": str(table)},
            {"name": "small", "target": TARGET, "table": str(table), "budget": "90%"},
        ],
        "local": {"steps": 6, "batch": 4, "rate": 0.01, "grow": 0, "reach": 0},
        "evaluation": {"every": 3, "rows": 10, "clients": False},
        "importance_rows": 8,
    }
    return validate(FederatedRecipe, value, where="test")
