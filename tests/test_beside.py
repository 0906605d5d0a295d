"""What a model is scored on beside its task: perplexities that can be compared."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hwnas.beside import Beside, BesideSpec
from hwnas.models import load_tokenizer, model_folder
from hwnas.vocabulary import kept_tokens, trim

KNOWN = ["The flight was delayed for three hours.", "Nobody told us why it was late."]
UNKNOWN = "Xylophone quartets rehearse pneumatic choreography in Reykjavik."


def _texts(folder: Path, texts: list[str]) -> Beside:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Beside.load("texts", BesideSpec(kind="language", data=str(path)), 64)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(model_folder("demo:smollm2"))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def test_perplexity_is_of_the_originals_tokens(tokenizer: Any, model: Any, tmp_path: Path) -> None:
    trimmed = copy.deepcopy(model)
    its_own = trim(trimmed, tokenizer, kept_tokens(tokenizer, KNOWN))
    # of texts whose tokens it all has, it is that of its tokens
    known = _texts(tmp_path, KNOWN)
    assert known.score(trimmed, its_own, tokenizer) == known.score(trimmed, its_own)
    # a text in more and shorter pieces is as unlikely as a whole, and has as many tokens as before
    unknown = _texts(tmp_path, [UNKNOWN])
    ids, before = (t(UNKNOWN, return_tensors="pt")["input_ids"][0] for t in (its_own, tokenizer))
    assert len(ids) > 2 * len(before)
    with torch.inference_mode():
        said = trimmed(ids[None]).logits[0].log_softmax(-1)
    unlikely = -float(said[:-1].gather(1, ids[1:, None]).sum())
    bytes_read, bytes_before = (
        len(t.decode(i[1:]).encode()) for t, i in ((its_own, ids), (tokenizer, before))
    )
    of_text = unlikely / bytes_read * bytes_before / (len(before) - 1)
    assert unknown.score(trimmed, its_own, tokenizer) == pytest.approx(math.exp(of_text), rel=1e-4)
    assert unknown.score(trimmed, its_own) < unknown.score(trimmed, its_own, tokenizer)
