"""A trimmed model answers as the whole one on what it was trimmed for, and reads everything."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hwnas.errors import UserError
from hwnas.models import load, load_model, load_tokenizer, model_folder
from hwnas.vocabulary import (
    _needed,
    _stored,
    _trimmed_tokenizer,
    check_trimmable,
    count_tokens,
    kept_tokens,
    trim,
)

TEXTS = [
    "The flight was delayed for three hours, and nobody told us why.",
    "Great service! Thank you for the quick reply, really appreciated.",
    "Why is my bag still in Chicago? I have been waiting since Monday.",
]
UNSEEN = "A xylophone quartet's unforgettable pneumonoultramicroscopic café concert: 99€ ☃"


@torch.inference_mode()
def _logits(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    logits: torch.Tensor = model.eval()(**batch).logits
    return logits


def _check(model: Any, tokenizer: Any, folder: Path) -> Any:
    """Trim, compare, save and load; the report."""
    whole = copy.deepcopy(model)
    before = [tokenizer.tokenize(text) for text in TEXTS]
    kept = kept_tokens(tokenizer, TEXTS)
    trimmed, report = trim(model, tokenizer, kept), kept.report
    assert [trimmed.tokenize(text) for text in TEXTS] == before
    assert report.after == len(trimmed) == model.config.vocab_size < report.before
    assert model.get_input_embeddings().weight.shape[0] == report.after
    wanted = _logits(whole, tokenizer, TEXTS)
    assert (_logits(model, trimmed, TEXTS) - wanted).abs().max() <= 1e-5
    # whatever it has not seen is read in smaller pieces, which are all known
    ids = trimmed(UNSEEN)["input_ids"]
    assert max(ids) < report.after
    assert len(ids) >= len(tokenizer(UNSEEN)["input_ids"])
    before_unknown = tokenizer.tokenize(UNSEEN).count(tokenizer.unk_token)
    assert trimmed.tokenize(UNSEEN).count(trimmed.unk_token) == before_unknown
    assert torch.isfinite(_logits(model, trimmed, [UNSEEN])).all()
    for name in ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token"):
        mine = getattr(trimmed, name)
        assert mine == getattr(tokenizer, name)
        assert trimmed.convert_ids_to_tokens(getattr(trimmed, f"{name}_id")) == mine
    model.save_pretrained(folder)
    trimmed.save_pretrained(folder)
    again, its_tokenizer = load_model(str(folder))
    assert (_logits(again, its_tokenizer, TEXTS) - wanted).abs().max() <= 1e-5
    return report


def test_wordpieces_of_minilm(tmp_path: Path) -> None:
    model, tokenizer = load_model("demo:minilm", labels=["a", "b"])
    report = _check(model, tokenizer, tmp_path)
    assert report.before == 30522
    # the tokens of three sentences, and the pieces of one character
    assert report.after < 2500 and report.fallback > report.seen > 30


def test_a_token_must_occur_often_enough(minilm_dir: Path) -> None:
    model, tokenizer = load_model("demo:minilm", labels=["a", "b"])
    counts = count_tokens(tokenizer, TEXTS)
    assert counts[tokenizer.convert_tokens_to_ids("for")] == 2
    trimmed = trim(model, tokenizer, kept_tokens(tokenizer, TEXTS, least=2))
    assert "for" in trimmed.get_vocab() and "flight" not in trimmed.get_vocab()
    assert trimmed.tokenize("flight") == ["f", "##l", "##i", "##g", "##h", "##t"]


def _trained(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of its kind, trained on the spot."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    corpus = [*TEXTS, "other words that no text of the task will ever hold " * 3] * 4
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer: Any
    if kind == "BPE":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=alphabet
        )
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator(corpus, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = zip(
        ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **dict(names))


def test_byte_level_pairs_of_roberta(tmp_path: Path) -> None:
    tokenizer = _trained("BPE")
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=120,
        pad_token_id=1,
    )
    report = _check(RobertaForSequenceClassification(config).eval(), tokenizer, tmp_path)
    assert report.after >= 256, "all bytes stay"


def test_unigrams_of_deberta(tmp_path: Path) -> None:
    tokenizer = _trained("Unigram")
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=1,
    )
    _check(DebertaV2ForSequenceClassification(config).eval(), tokenizer, tmp_path)


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_common_tokens_stay_though_no_text_has_them(kind: str) -> None:
    tokenizer = _trained(kind)
    unseen = "other words that no text of the task will ever hold"  # most of what it was trained on
    whole = tokenizer.tokenize(unseen)
    lengths = []
    for common in (0, 10, 40, len(tokenizer)):
        kept = kept_tokens(tokenizer, TEXTS[:1], common=common)
        trimmed = _trimmed_tokenizer(tokenizer, _stored(tokenizer), kept.numbers)
        lengths.append(len(trimmed.tokenize(unseen)))
        assert kept.report.common == common
    assert lengths[0] > len(whole) == lengths[-1]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[2] < lengths[0], "of the commonest tokens, some are of the commonest words"


def test_word_pieces_are_numbered_by_how_common_they_are(minilm_dir: Path) -> None:
    tokenizer = load_tokenizer(minilm_dir)
    kept = kept_tokens(tokenizer, TEXTS, common=3000)
    words = {tokenizer.convert_ids_to_tokens(n) for n in kept.numbers}
    assert {"the", "was", "people"} <= words and "xylophone" not in words
    assert set(range(3000)) <= set(kept.numbers)


def test_what_cannot_be_trimmed(tiny_config: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="its output layer fills in words"):
        check_trimmable(BertForMaskedLM(tiny_config), tiny_tokenizer)
    from tokenizers import Tokenizer, models

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    )
    model, _ = load_model("demo:minilm", labels=["a", "b"])
    with pytest.raises(UserError, match="a tokenizer of kind WordLevel cannot be trimmed"):
        check_trimmable(model, words)


def _kept_of(tokenizer: Any, trimmed: Any) -> torch.Tensor:
    """The old numbers of the tokens that are left, in the order of their new ones."""
    numbers = tokenizer.get_vocab()
    left = sorted(trimmed.get_vocab().items(), key=lambda item: item[1])
    return torch.tensor([numbers[token] for token, _ in left])


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> Any:
    return load_tokenizer(model_folder("demo:smollm2"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_writes_with_what_is_kept(
    smollm2_tokenizer: Any, tmp_path: Path, tied: bool
) -> None:
    tokenizer = smollm2_tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=[2, 0],
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = [2, 0]
    whole = copy.deepcopy(model)
    asked = [{"role": "user", "content": TEXTS[0]}]
    rows = [tokenizer.apply_chat_template(asked, add_generation_prompt=True)]
    left = kept_tokens(tokenizer, rows=rows)
    trimmed, report = trim(model, tokenizer, left), left.report
    assert report.texts == 1
    assert report.after == len(trimmed) < 600 < report.before
    kept = _kept_of(tokenizer, trimmed)
    mine = trimmed.apply_chat_template(asked, add_generation_prompt=True)
    assert kept[torch.tensor(mine)].tolist() == rows[0]
    with torch.inference_mode():
        wanted = whole(input_ids=torch.tensor(rows)).logits[..., kept]
        found = model(input_ids=torch.tensor([mine])).logits
    assert found.shape[-1] == report.after
    assert (found - wanted).abs().max() <= 1e-5
    for settings in (model.config, model.generation_config):
        assert [kept[i] for i in settings.eos_token_id] == [2, 0]
        assert kept[settings.bos_token_id] == 1
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    again = load(tmp_path)
    with torch.inference_mode():
        same = again(input_ids=torch.tensor([mine])).logits
    assert (same - wanted).abs().max() <= 1e-5
    for whole_text in (True, False):  # in bytes, where there is no word
        read = [t(UNSEEN, add_special_tokens=whole_text) for t in (trimmed, tokenizer)]
        assert trimmed.decode(read[0]["input_ids"]) == tokenizer.decode(read[1]["input_ids"])


@pytest.mark.slow  # SmolLM2 is written and read
def test_smollm2_answers_with_few_of_its_words(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    model = load(model_folder("demo:smollm2"))
    tokenizer = smollm2_tokenizer
    asked = [{"role": "user", "content": "What is two plus two?"}]
    given = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        said = model.generate(given, max_new_tokens=16, do_sample=False)[0]
    before = sum(p.numel() for p in model.parameters())
    kept = kept_tokens(tokenizer, TEXTS, rows=[said.tolist()])
    trimmed, report = trim(model, tokenizer, kept), kept.report
    after = sum(p.numel() for p in model.parameters())
    assert before - after == (report.before - report.after) * model.config.hidden_size
    model.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    again, reads = load(tmp_path), load_tokenizer(tmp_path)
    mine = reads.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        answer = again.generate(mine, max_new_tokens=16, do_sample=False)[0]
    assert reads.decode(answer) == tokenizer.decode(said)


def test_bytes_that_rare_letters_fall_back_to_are_kept() -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "<0xFF>": 2, "▁hello": 3, "▁": 4, "<0xZZ>": 5}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"}
    stored = {"model": model | {"byte_fallback": True}, "added_tokens": []}
    assert _needed(stored, set()) == {0, 1, 2, 4}
