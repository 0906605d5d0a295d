"""Instructions with a written response, which is what is learned; the prompt is only read.

While models are compared, a response counts token by token. Where its last number is what matters
(arithmetic), `exact_match` has the model write a response of its own and compares that number: see
`generation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwnas.tasks.encoding import PlainTexts, check_length, in_chunks, texts_of
from hwnas.tasks.prompts import asked, default_template, fill
from hwnas.tasks.rows import Columns, text_of
from hwnas.tasks.written import IGNORED, WrittenTask, cut, joined_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1024  # rows tokenized at a time


@dataclass(frozen=True)
class Instruction(PlainTexts, WrittenTask):
    """See the module; a `Kind`.

    Attributes:
        template: of the prompt, see `prompts`; empty: the usual one.
        chat: the prompt is a chat's first message.
    """

    metrics: tuple[str, ...] = ("token_accuracy", "exact_match")
    columns: tuple[tuple[str, ...], str] = (("question",), "answer")
    template: str = ""
    chat: bool = False

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        """The prompt and the response."""
        asking = {name: text_of(record, name, where) for name in columns.texts}
        prompt = fill(self.template or default_template(columns.texts), asking)
        return (prompt, text_of(record, columns.label, where)), ""

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        return texts[:1]

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        from datasets import Dataset

        check_length(tokenizer, max_length)
        prompts, responses = texts_of(split)
        space = "" if self.chat else " "
        end = tokenizer.eos_token_id

        def encode(start: int, stop: int) -> Dataset:
            given = [asked(tokenizer, prompt, chat=self.chat) for prompt in prompts[start:stop]]
            said = [space + response for response in responses[start:stop]]
            rows = []
            for beginning, continuation in joined_ids(tokenizer, given, said):
                learned = [*continuation, *([] if end is None else [end])][: max_length - 1]
                kept = cut(beginning, max_length - len(learned))
                ids = kept + learned
                rows.append(
                    {
                        "input_ids": ids,
                        "attention_mask": [1] * len(ids),
                        "labels": [IGNORED] * len(kept) + learned,
                        "length": len(ids),
                    }
                )
            return Dataset.from_list(rows)

        return in_chunks(len(split), _CHUNK, encode)

    def encode_training(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        return self.encode(split, tokenizer, max_length)
