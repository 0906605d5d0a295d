"""Answers that a model writes by itself, of which the last number counts: arithmetic.

The protocol: greedy decoding after the prompt, up to a stated number of tokens or the end of the
text; the last number of what was written is compared with the last of the reference (after `####`,
where GSM8K has that). Commas within numbers and trailing zeros do not matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hwnas.progress import bar
from hwnas.tasks.encoding import texts_of
from hwnas.tasks.prompts import asked

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hwnas.tasks.instruction import Instruction

EXACT_MATCH = "exact_match"
MOST = 96  # tokens that are written
_AT_ONCE = 32  # prompts, where a GPU writes
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_MARK = "####"


def last_number(text: str) -> float | None:
    """The last number of a text, after the mark if there is one; None if there is none."""
    found = _NUMBER.findall(text.rpartition(_MARK)[2])
    return float(found[-1].replace(",", "")) if found else None


def exact_match(written: Sequence[str], references: Sequence[str]) -> float:
    """The share of texts whose last number is the reference's, times 100."""
    right = 0
    for text, reference in zip(written, references, strict=True):
        mine, theirs = last_number(text), last_number(reference)
        right += mine is not None and theirs is not None and math.isclose(mine, theirs)
    return 100 * right / len(written)


def score_written(
    kind: Instruction,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | Any,
    split: Dataset,
    max_length: int,
    most: int = MOST,
) -> float:
    """The exact matches of a model of transformers or Optimum on a split of instructions.

    Args:
        max_length: tokens of a prompt; of longer ones the end is read.
        most: tokens that are written.
    """
    prompts, references = texts_of(split)
    texts = [asked(tokenizer, prompt, chat=kind.chat) for prompt in prompts]
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"][-max_length:] for t in texts]
    on_gpu = getattr(getattr(model, "device", None), "type", "cpu") == "cuda"
    each = _AT_ONCE if on_gpu else 1  # a processor gains nothing by padding
    written: list[str] = []
    with bar("answers", len(prompts)) as advance:
        for at in range(0, len(ids), each):
            some = ids[at : at + each]
            written += [
                tokenizer.decode(t, skip_special_tokens=True)
                for t in go_on(model, some, tokenizer.eos_token_id, most)
            ]
            advance(len(some))
    return exact_match(written, references)


def go_on(model: Any, prompts: Sequence[list[int]], end: int, most: int) -> list[list[int]]:
    """The tokens that a model writes after each of some prompts, up to its `end`."""
    import torch

    longest = max(map(len, prompts))
    device = getattr(model, "device", "cpu")
    read = torch.tensor([[end] * (longest - len(ids)) + ids for ids in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in prompts], device=device)
    with torch.inference_mode():
        found = model.generate(
            input_ids=read,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
    # a runtime alone says more than the tokens, and does not stop at the end
    rows = torch.as_tensor(getattr(found, "sequences", found))[:, longest:].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
