"""Plain text, of which a language model predicts every next token.

Each text is scored by itself, cut to `max_length` tokens; its first token is not. For training,
texts are put one after the other, an end-of-text between them, and divided into blocks of that
length (packing), so that nothing is padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError
from hwnas.tasks.encoding import PlainTexts, texts_of
from hwnas.tasks.rows import Columns
from hwnas.tasks.written import WrittenTask

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Language(PlainTexts, WrittenTask):
    """See the module; a `Kind`."""

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        text = record.get(columns.texts[0])
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: column {columns.texts[0]!r} holds {text!r}, expected text")
        # blank rows, as between the paragraphs of WikiText, are passed over
        return ((text,) if text and text.strip() else ()), ""

    def encode_training(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """All texts as blocks of `max_length` tokens, each of them a label."""
        from datasets import Dataset

        (texts,) = texts_of(split)
        end = tokenizer.eos_token_id
        stream: list[int] = []
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            stream += ids if end is None else [*ids, end]
        blocks = [stream[at : at + max_length] for at in range(0, len(stream), max_length)]
        if len(blocks) > 1 and len(blocks[-1]) < 2:
            blocks.pop()
        return Dataset.from_dict(
            {
                "input_ids": blocks,
                "attention_mask": [[1] * len(block) for block in blocks],
                "labels": blocks,
                "length": [len(block) for block in blocks],
            }
        )
