"""What a language model is asked: a template filled with a row's columns, perhaps as a chat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELD = re.compile(r"\{(\w+)\}")


def default_template(columns: Sequence[str]) -> str:
    """The prompt of one column is its text as a question; of several, each on a line."""
    if len(columns) == 1:
        return f"Question: {{{columns[0]}}}\nAnswer:"
    return "\n".join(f"{name}: {{{name}}}" for name in columns) + "\nAnswer:"


def check_template(template: str, columns: Sequence[str]) -> None:
    """Raise `ValueError` unless the template names columns, and only such as are given."""
    named = _FIELD.findall(template)
    unknown = next((name for name in named if name not in columns), None)
    if unknown is not None or not named:
        said = f"{{{unknown}}} is no column of text" if unknown else "it names no column"
        raise ValueError(f"{template!r}: {said}; it may name {', '.join(columns)}")


def fill(template: str, texts: Mapping[str, str]) -> str:
    """The template with each `{column}` replaced."""
    return _FIELD.sub(lambda found: texts[found[1]], template)


def asked(tokenizer: PreTrainedTokenizerBase | Any, prompt: str, *, chat: bool) -> str:
    """The whole text that a model is given for a prompt.

    Args:
        chat: as the first message of a chat, in the words of the model's own chat template.

    Raises:
        UserError: the model has no chat template.
    """
    if not chat:
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("task.chat: the model's tokenizer has no chat template; leave it out")
    said = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
