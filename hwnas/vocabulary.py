"""Trimming a model's vocabulary to the tokens of the user's data.

Half of a small encoder is its word embeddings, most of which a task never reads. Rows of tokens
that occur too seldom in given texts are cut out, of embeddings and tokenizer alike. Nothing else
changes: a text whose tokens are all kept is read as before and gives the very same answer.

What becomes of a word that needs a token that is gone: it is split into smaller pieces that are
kept. For this all pieces of one character stay (of byte-level tokenizers: all bytes), so that only
a character which the original did not know either becomes the unknown token. A model understands
words in such pieces worse, and what the given texts do not hold, later ones may: the commonest
tokens of the language can be kept as well, those that the tokenizer itself learned first.

A language model also writes with what is kept, and nothing else: the logits of kept tokens are as
before, their probabilities have the others' divided among them, and a word that is gone is written
in pieces, which the model has hardly learned to do. Its output layer is quicker, a fifth of a small
model's time for each token, which a search under a latency budget counts (`timing.profiled`).
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from hwnas.errors import UserError
from hwnas.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHUNK = 4096  # texts tokenized at a time
_MODELS = ("WordPiece", "BPE", "Unigram")
_PREFIXES = ("##", "▁", "Ġ")  # of pieces: inside a word, or at its beginning
_BYTE = re.compile(r"<0x[0-9A-F]{2}>$")  # what no other token has falls back to these


class TrimReport(BaseModel):
    """What trimming did."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: int  # tokens
    after: int
    texts: int  # that were read
    seen: int  # distinct tokens that occur in them
    common: int = 0  # that are kept whether they occur or not
    fallback: int = Field(
        description="tokens that do not occur: common ones, and those that words can be split into"
    )


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Counter[int]:
    """How often each token occurs in the texts."""
    found: Counter[int] = Counter()
    with bar("count tokens", len(texts)) as advance:
        for start in range(0, len(texts), _CHUNK):
            part = list(texts[start : start + _CHUNK])
            for ids in tokenizer(part, add_special_tokens=False)["input_ids"]:
                found.update(ids)
            advance(len(part))
    return found


class Kept(NamedTuple):
    """The tokens that stay, ascending by their old numbers, which are their order in the new."""

    numbers: tuple[int, ...]
    report: TrimReport


def trim(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kept: Kept
) -> PreTrainedTokenizerBase:
    """Cut the vocabulary down to the tokens that stay; the model's embeddings in place.

    Args:
        model: its other weights stay as they are.
        kept: what `kept_tokens` found for the tokenizer.

    Returns:
        The tokenizer for the model.

    Raises:
        UserError: as `check_trimmable`.
    """
    check_trimmable(model, tokenizer)
    trimmed = _trimmed_tokenizer(tokenizer, _stored(tokenizer), kept.numbers)
    _trim_embeddings(model, kept.numbers, trimmed)
    return trimmed


def check_trimmable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` unless the two can be trimmed.

    The tokenizer may be of a kind that cannot be, or the model one that fills in masked words.
    """
    if model.get_output_embeddings() is not None and not model.can_generate():
        raise UserError(
            f"{type(model).__name__}: its output layer fills in words; only encoders without one "
            "and language models are trimmed"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{type(tokenizer).__name__}: only fast tokenizers can be trimmed")
    kind = _stored(tokenizer)["model"].get("type")
    if kind not in _MODELS:
        raise UserError(
            f"{type(tokenizer).__name__}: a tokenizer of kind {kind} cannot be trimmed; "
            f"those of {', '.join(_MODELS)} can"
        )


def kept_tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] = (),
    *,
    least: int = 1,
    common: int = 0,
    rows: Iterable[Sequence[int]] = (),
) -> Kept:
    """Which tokens a vocabulary keeps that is trimmed for these texts.

    Args:
        tokenizer: one that `check_trimmable` takes.
        texts: of the task.
        least: how often a token must occur to be kept for its own sake.
        common: tokens that are kept whether they occur or not, see `commonest`.
        rows: token ids that count as well, of texts that are tokenized already.
    """
    stored = _stored(tokenizer)
    counts = count_tokens(tokenizer, texts)
    read = 0
    for ids in rows:
        counts.update(ids)
        read += 1
    seen = {token for token, count in counts.items() if count >= least}
    numbers = tuple(sorted(_needed(stored, seen | set(commonest(stored, common)))))
    report = TrimReport(
        before=len(_tokens(stored)),
        after=len(numbers),
        texts=len(texts) or read,
        seen=len(counts),
        common=common,
        fallback=len(set(numbers) - seen),
    )
    return Kept(numbers, report)


def commonest(stored: dict[str, Any], count: int) -> list[int]:
    """The tokens that a tokenizer learned first, the commonest of the texts that it is of.

    Byte pairs are merged in that order; of unigrams the likeliest come first; word pieces are
    numbered in it.

    Args:
        stored: a fast tokenizer as its file has it.
        count: of tokens, at most.
    """
    model = stored["model"]
    tokens = _tokens(stored)
    if model["type"] == "BPE":
        names = (first + second for first, second in _merges(model))
        return [tokens[name] for name in itertools.islice(dict.fromkeys(names), count)]
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        return sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    return sorted(model["vocab"].values())[:count]


def _stored(tokenizer: PreTrainedTokenizerBase | Any) -> dict[str, Any]:
    """The tokenizer as its file has it."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def _tokens(stored: dict[str, Any]) -> dict[str, int]:
    """Every token of a stored tokenizer and its number."""
    vocabulary = stored["model"]["vocab"]
    if isinstance(vocabulary, dict):
        found = dict(vocabulary)
    else:
        found = {token: i for i, (token, _) in enumerate(vocabulary)}
    return found | {token["content"]: token["id"] for token in stored["added_tokens"]}


def _needed(stored: dict[str, Any], seen: Collection[int]) -> set[int]:
    """The tokens that are seen, the special ones, and those that others can be split into."""
    tokens = _tokens(stored)
    names = {number: token for token, number in tokens.items()}
    needed = {number for number in seen if number in names}
    needed |= {token["id"] for token in stored["added_tokens"]}
    model = stored["model"]
    if model["type"] == "Unigram":
        needed.add(model["unk_id"])
    elif model.get("unk_token") in tokens:
        needed.add(tokens[model["unk_token"]])
    needed |= {n for token, n in tokens.items() if len(_bare(token)) <= 1 or _BYTE.match(token)}
    if model["type"] == "BPE":
        needed |= {tokens[part] for part in _parts(model, [names[n] for n in needed])}
    return needed


def _bare(token: str) -> str:
    """A piece without the sign of where in a word it stands."""
    for prefix in _PREFIXES:
        if token.startswith(prefix):
            return token[len(prefix) :]
    return token


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """A BPE model's merges, which older files write as one text each."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(first, second) for first, second in pairs]


def _parts(model: dict[str, Any], tokens: Iterable[str]) -> set[str]:
    """What BPE tokens are merged of, down to single characters."""
    made_of: dict[str, set[str]] = {}
    for first, second in _merges(model):
        made_of.setdefault(first + second, set()).update((first, second))
    found: set[str] = set()
    waiting = list(tokens)
    while waiting:
        for part in made_of.get(waiting.pop(), set()) - found:
            found.add(part)
            waiting.append(part)
    return found


def _trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerBase, stored: dict[str, Any], kept: Sequence[int]
) -> PreTrainedTokenizerBase:
    """The tokenizer with only these tokens, numbered anew in their order."""
    from transformers import AutoTokenizer

    number = {old: new for new, old in enumerate(kept)}
    model = stored["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {t: number[i] for t, i in model["vocab"].items() if i in number}
    else:
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in number]
        model["unk_id"] = number[model["unk_id"]]
    if model["type"] == "BPE":
        here = model["vocab"]
        model["merges"] = [
            [a, b] for a, b in _merges(model) if a in here and b in here and a + b in here
        ]
    for token in stored["added_tokens"]:
        token["id"] = number[token["id"]]
    stored["post_processor"] = _renumbered(stored["post_processor"], number)
    stored["padding"] = stored["truncation"] = None
    auto_tokenizer: Any = AutoTokenizer
    with tempfile.TemporaryDirectory(prefix="hwnas-") as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for other in folder.iterdir():  # files of the slow tokenizer, and of the old numbers
            if other.suffix not in (".json", ".jinja") or other.name in (
                "vocab.json",
                "added_tokens.json",
            ):
                other.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        decoder = config.get("added_tokens_decoder", {})
        config["added_tokens_decoder"] = {
            str(number[int(old)]): token for old, token in decoder.items() if int(old) in number
        }
        path.write_text(json.dumps(config), encoding="utf-8")
        found: PreTrainedTokenizerBase = auto_tokenizer.from_pretrained(folder)
    found.model_max_length = tokenizer.model_max_length
    return found


def _renumbered(processor: Any, number: dict[int, int]) -> Any:
    """What puts special tokens around a text, with their new numbers."""
    if isinstance(processor, list):
        return [_renumbered(one, number) for one in processor]
    if not isinstance(processor, dict):
        return processor
    changed: dict[str, Any] = {}
    for key, value in processor.items():
        if key in ("sep", "cls") and isinstance(value, list):
            changed[key] = [value[0], number[value[1]]]
        elif key == "special_tokens" and isinstance(value, dict):
            changed[key] = {
                name: token | {"ids": [number[old] for old in token["ids"]]}
                for name, token in value.items()
            }
        else:
            changed[key] = _renumbered(value, number)
    return changed


@torch.no_grad()
def _trim_embeddings(
    model: Any, kept: Sequence[int], tokenizer: PreTrainedTokenizerBase | Any
) -> None:
    old = model.get_input_embeddings()
    new = nn.Embedding(
        len(kept), old.embedding_dim, padding_idx=tokenizer.pad_token_id, dtype=old.weight.dtype
    )
    index = torch.tensor(kept, device=old.weight.device)
    new.weight.copy_(old.weight[index])
    new.to(old.weight.device)
    new.train(old.training)
    model.set_input_embeddings(new)
    _trim_output(model, old, new, index)
    model.config.vocab_size = len(kept)
    number = {before: after for after, before in enumerate(kept)}
    configs = [model.config, getattr(model, "generation_config", None)]
    for config in (one for one in configs if one is not None):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            before = getattr(config, name, None)
            if isinstance(before, list):
                setattr(config, name, [number[i] for i in before if i in number])
            elif before is not None:
                setattr(config, name, number.get(before, getattr(tokenizer, name)))
    for module in model.modules():  # RoBERTa counts positions from the padding's number on
        if hasattr(module, "padding_idx") and hasattr(module, "word_embeddings"):
            module.padding_idx = tokenizer.pad_token_id


def _trim_output(model: Any, old: nn.Embedding, new: nn.Embedding, index: torch.Tensor) -> None:
    """The layer that yields a language model's logits, where it has one."""
    output = model.get_output_embeddings()
    if output is None:
        return
    tied = output.weight is old.weight
    trimmed = nn.Linear(output.in_features, len(index), bias=output.bias is not None)
    trimmed.weight = new.weight if tied else nn.Parameter(output.weight[index].clone())
    if output.bias is not None:
        trimmed.bias = nn.Parameter(output.bias[index].clone())
    trimmed.train(output.training)
    model.set_output_embeddings(trimmed)
