"""`hwnas ask`: what the language models of a run answer, and how many tokens a second they write.

The original is asked in torch, the baseline and every chosen model as the files that are served,
one after the other, each with the threads of the run's target. Answers are greedy. A first, unasked
token warms each of them up; what counts is the median time of a token after the first. For that,
all write on after their answer's end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError
from hwnas.files import read_model
from hwnas.latency.target import Target
from hwnas.recipe import load_recipe
from hwnas.summary import Record, Summary
from hwnas.tasks.prompts import asked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Reply(Record):
    """One model's answer."""

    name: str  # original, baseline, or the budget
    served: str  # runtime and precision
    text: str
    tokens: int  # of the text
    first_ms: float  # to read the prompt and write the first token
    tokens_per_s: float | None  # of those after the first; None if there are none


class Replies(Record):
    """`hwnas ask --json`."""

    prompt: str
    replies: list[Reply]


def ask(run: Path, prompt: str, *, most: int = 64, chat: bool = False) -> Replies:
    """Have every model of a finished run go on from a prompt.

    Args:
        most: tokens that each of them writes.
        chat: the prompt is a chat's first message, in the words of the model's chat template.

    Raises:
        UserError: `run` is no finished run of a language model.
    """
    from hwnas.export import load_exported, served_folder
    from hwnas.models import load_model, load_tokenizer

    summary = read_model(run / "summary.json", Summary)
    if summary.pipeline != "text-generation":
        raise UserError(f"{run}: its models are for {summary.pipeline}; language models are asked")
    target = Target.parse(summary.target)
    replies = []
    with _threads(target.threads):
        model, tokenizer = load_model(load_recipe(run / "recipe.yaml").model, task=summary.pipeline)
        replies.append(_reply("original", "torch fp32", model, tokenizer, prompt, most, chat))
        del model
        folders = {"baseline": (run / "baseline", target)}
        for chosen in summary.chosen:
            folders[chosen.budget] = (run / chosen.path, chosen.served_at(target))
        for name, (folder, at) in folders.items():
            loaded = load_exported(folder / served_folder(at), at.threads)
            reader = load_tokenizer(folder / "model")
            served = f"{at.runtime} {at.precision}"
            replies.append(_reply(name, served, loaded, reader, prompt, most, chat))
    return Replies(prompt=prompt, replies=replies)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch with so many threads, for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TokenClock:
    """Notes when each token comes; what transformers calls a streamer."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """The prompt first, then every token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


def _reply(
    name: str,
    served: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | Any,
    prompt: str,
    most: int,
    chat: bool,
) -> Reply:
    import torch

    text = asked(tokenizer, prompt, chat=chat)
    read = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    given = {"input_ids": read, "attention_mask": torch.ones_like(read)}
    fixed: dict[str, Any] = {"do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    clock = TokenClock()
    with torch.inference_mode():
        model.generate(**given, max_new_tokens=1, **fixed)
        model.generation_config.eos_token_id = None
        written = model.generate(**given, max_new_tokens=most, streamer=clock, **fixed)
    written = getattr(written, "sequences", written)
    found = torch.as_tensor(written)[0, read.shape[1] :].tolist()
    if tokenizer.eos_token_id in found:
        found = found[: found.index(tokenizer.eos_token_id)]
    # the streamer is told of the prompt when generating begins
    apart = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    each = apart[1:]
    return Reply(
        name=name,
        served=served,
        text=tokenizer.decode(found, skip_special_tokens=True).strip(),
        tokens=len(found),
        first_ms=1e3 * apart[0],
        tokens_per_s=1 / statistics.median(each) if each else None,
    )
