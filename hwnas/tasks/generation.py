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
    import torch

    prompts, references = texts_of(split)
    written = []
    with bar("answers", len(prompts)) as advance, torch.inference_mode():
        for prompt in prompts:
            text = asked(tokenizer, prompt, chat=kind.chat)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][-max_length:]
            read = torch.tensor([ids], device=getattr(model, "device", "cpu"))
            found = model.generate(
                input_ids=read,
                attention_mask=torch.ones_like(read),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
            # a runtime alone says more than the tokens, and does not stop at the end
            tokens = torch.as_tensor(getattr(found, "sequences", found))[0, len(ids) :].tolist()
            if tokenizer.eos_token_id in tokens:
                tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
            written.append(tokenizer.decode(tokens, skip_special_tokens=True))
            advance(1)
    return exact_match(written, references)
