"""What tasks of language models have in common: some tokens of a row are predicted by those before.

`labels` says which tokens count; the others are -100, as transformers has it. Answers are two
numbers for each token: the logarithm of the probability that the model gave it, and whether it was
the model's first choice; both 0 where a token does not count. Logits of a whole vocabulary are made
for the tokens that count only: a split's would not fit into memory, and the output layer is a fifth
of a small model.

Rows may branch: several continuations of one beginning stand one after the other in a row, and each
sees the beginning and itself. `branch` says which one a token is of; -1: the beginning, which is
computed only once. Where a model has no such attention (exported files, ALiBi), rows are taken
apart.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hwnas.tasks.classification import softened

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Floats

IGNORED = -100  # label of a token that does not count
BEGINNING = -1  # branch of what all continuations share
_PADDING = -2  # branch of padding
_FLOAT_BYTES = 4
_TOGETHER = 512  # tokens whose logits are made at a time, where they are only looked at


class Said(NamedTuple):
    """What a model says to a batch.

    Attributes:
        logits: `(tokens that count, vocabulary)`, row by row.
        hidden_states: `(batch, seq, hidden)` of the embeddings and after each block, if asked for.
    """

    logits: torch.Tensor
    hidden_states: Sequence[torch.Tensor] | None


class Places(NamedTuple):
    """The tokens of a batch that count, and the places whose states predict them, each `(n,)`."""

    rows: torch.Tensor
    at: torch.Tensor
    before: torch.Tensor

    @classmethod
    def of(cls, labels: torch.Tensor, branch: torch.Tensor | None = None) -> Places:
        """Of labels, and branches if there are any, `(batch, seq)`."""
        import torch

        counted = labels != IGNORED
        counted[:, 0] = False  # nothing is before it
        rows, at = counted.nonzero(as_tuple=True)
        before = at - 1
        if branch is not None:
            # the first token of a continuation comes after the beginning
            begins = branch[rows, at] != branch[rows, before]
            last = (branch == BEGINNING).sum(1) - 1
            before = torch.where(begins, last[rows], before)
        return cls(rows, at, before)


def seen(mask: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Which tokens each one sees, `(batch, seq, seq)`; padding sees itself."""
    import torch

    seq = mask.shape[1]
    earlier = torch.ones(seq, seq, dtype=torch.bool, device=mask.device).tril()
    own = branch[:, :, None] == branch[:, None, :]
    shared = branch[:, None, :] == BEGINNING
    found = earlier & (own | shared) & mask.bool()[:, None, :]
    return found | torch.eye(seq, dtype=torch.bool, device=mask.device)


class States(NamedTuple):
    """What is inside a language model after a batch, each `(batch, seq, hidden)`.

    Attributes:
        last: before the output layer.
        every: of the embeddings and after each block, if asked for.
    """

    last: torch.Tensor
    every: Sequence[torch.Tensor] | None


def states_of(
    model: Any,
    inner: Any,
    inputs: Mapping[str, torch.Tensor],
    every: bool = False,
    *,
    packs: bool = True,
) -> States:
    """The base model's states for a batch.

    Args:
        model: perhaps wrapped for several processes; `inner` is what is wrapped.
        every: whether the states after each block are wanted.
        packs: whether rows may go through the model as one, without their padding, where that is
            less work; what padding says is 0 then.
    """
    import torch

    mask, branch = inputs["attention_mask"], inputs.get("branch")
    given: dict[str, Any] = {"input_ids": inputs["input_ids"], "attention_mask": mask}
    packed = packs and _packs(inner, mask)
    if packed:
        given["input_ids"] = inputs["input_ids"][mask.bool()][None]
        sees = seen(mask, torch.full_like(mask, BEGINNING) if branch is None else branch)
        positions = (sees.sum(-1) - 1)[mask.bool()][None]
        given["attention_mask"] = _added(_beside(sees, mask), inner)
    elif branch is None:
        positions = torch.arange(mask.shape[1], device=mask.device)[None].expand_as(mask)
    else:
        sees = seen(mask, branch)
        positions = sees.sum(-1) - 1
        given["attention_mask"] = _added(sees, inner)
    body = inner.base_model
    if "position_ids" in inspect.signature(body.forward).parameters:
        given["position_ids"] = positions
    if model is inner:
        output = body(**given, output_hidden_states=every, use_cache=False)
        last, states = output.last_hidden_state, output.hidden_states if every else None
    else:
        # a wrapper sees its own forward only; it is spared all logits but one, where that can be
        # said
        if "logits_to_keep" in inspect.signature(inner.forward).parameters:
            given["logits_to_keep"] = 1
        states = model(**given, output_hidden_states=True, use_cache=False).hidden_states
        last, states = states[-1], states if every else None
    if not packed:
        return States(last, states)
    return States(_unpacked(last, mask), states and [_unpacked(one, mask) for one in states])


def _packs(model: Any, mask: torch.Tensor) -> bool:
    """Whether rows as one sequence are less work than side by side, padded.

    A token's share of a block's layers is about 24 times the squared hidden size, in operations;
    beside each token that it is compared with, 4 times the hidden size.
    """
    if not branches(model):
        return False
    rows, seq = mask.shape
    window = getattr(model.config, "sliding_window", None)
    if window is not None and seq > window:
        return False  # a mask of ours would widen it
    tokens, layers = int(mask.sum()), 6 * int(model.config.hidden_size)
    return tokens * (layers + tokens) < rows * seq * (layers + seq)


def _beside(sees: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Which tokens each one sees where all rows are one, `(1, tokens, tokens)`."""
    rows, at = mask.bool().nonzero(as_tuple=True)
    same = rows[:, None] == rows[None, :]
    return (same & sees[rows, at][:, at])[None]


def _added(sees: torch.Tensor, model: Any) -> torch.Tensor:
    """What is added to attention's scores, `(batch, 1, seq, seq)`."""
    import torch

    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return torch.where(sees, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


def _unpacked(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """States `(1, tokens, hidden)` of rows as one, where they belong, `(batch, seq, hidden)`."""
    found = states.new_zeros(*mask.shape, states.shape[-1])
    found[mask.bool()] = states[0]
    return found


def say(
    model: Any,
    inner: PreTrainedModel | Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    states: bool = False,
    packs: bool = True,
) -> Said:
    """What a model of torch says of a batch's tokens that count; see `states_of`."""
    last, every = states_of(model, inner, inputs, states, packs=packs)
    rows, _, before = Places.of(inputs["labels"], inputs.get("branch"))
    return Said(inner.get_output_embeddings()(last[rows, before]), every)


def branches(model: PreTrainedModel | Any) -> bool:
    """Whether a model can be given rows that branch."""
    from transformers import PreTrainedModel

    from hwnas.anatomy import find_family

    return isinstance(model, PreTrainedModel) and not find_family(model.config).head_bias


def likelihoods(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What logits `(n, vocabulary)` say of the tokens `(n,)` that came, `(n, 2)`."""
    import torch

    said = logits.float()
    given = torch.log_softmax(said, dim=-1).gather(-1, tokens[:, None])[:, 0]
    return torch.stack([given, (said.argmax(-1) == tokens).float()], dim=-1)


def answers_of(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A batch's answers, `(batch, seq, 2)`; see the module.

    Args:
        model: of transformers or Optimum.
        inputs: `input_ids`, `attention_mask`, `labels`, and `branch` only if the model `branches`.
    """
    import torch
    from transformers import PreTrainedModel

    ids = inputs["input_ids"]
    rows, at, before = Places.of(inputs["labels"], inputs.get("branch"))
    answers = torch.zeros(*ids.shape, 2)
    if isinstance(model, PreTrainedModel):
        last = states_of(model, model, inputs).last[rows, before]
        head = model.get_output_embeddings()
    else:
        positions = torch.arange(ids.shape[1])[None].expand_as(ids)
        given = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
        output = model(**given, position_ids=positions)
        last, head = torch.as_tensor(output.logits)[rows, before], torch.nn.Identity()
    tokens = ids[rows, at]
    rows, at = rows.cpu(), at.cpu()  # where the answers are
    for start in range(0, len(rows), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        found = likelihoods(head(last[part]), tokens[part])
        answers[rows[part], at[part]] = found.to(answers)
    return answers


class Line(NamedTuple):
    """One continuation of a row that branches, as a row of its own.

    Attributes:
        at: where in the row its tokens stand.
    """

    row: int
    at: list[int]


def lines(branch: Sequence[Sequence[int]]) -> Iterator[Line]:
    """Every continuation of rows with these branches."""
    for number, of_tokens in enumerate(branch):
        beginning = [i for i, which in enumerate(of_tokens) if which == BEGINNING]
        for one in sorted({which for which in of_tokens if which >= 0}):
            own = [i for i, which in enumerate(of_tokens) if which == one]
            yield Line(number, beginning + own)


def counted(encoded: Dataset) -> npt.NDArray[np.bool_]:
    """Which answers are of a token that counts: `(tokens of all rows,)`."""
    lengths = np.asarray(encoded["length"])
    found = np.ones(int(lengths.sum()), dtype=bool)
    if "labels" in encoded.column_names:
        found = np.concatenate([np.asarray(row) for row in encoded["labels"]]) != IGNORED
    found[np.cumsum(lengths) - lengths] = False
    return found


def padded(rows: Sequence[Mapping[str, Sequence[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Rows of token ids, labels and branches as one batch, filled up on the right.

    Args:
        pad: what stands for no token; the mask hides it.
    """
    import torch

    fill = {"input_ids": pad, "labels": IGNORED, "branch": _PADDING}
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor(
            [[*row[name], *[fill.get(name, 0)] * (longest - len(row[name]))] for row in rows]
        )
        for name in rows[0]
    }


def wide(logits: torch.Tensor) -> torch.Tensor:
    """Half-precision logits in float32, for their sums over a vocabulary."""
    return logits.float() if logits.element_size() < _FLOAT_BYTES else logits


@dataclass(frozen=True)
class WrittenTask(ABC):
    """The part that kinds of written tasks share of a `Kind`: losses and the score by token."""

    task: str = "text-generation"
    metrics: tuple[str, ...] = ("token_accuracy",)
    columns: tuple[tuple[str, ...], str] = (("text",), "")
    logits: bool = False

    @abstractmethod
    def encode_training(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """The split as it is learned from: rows with labels."""

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean negative log-likelihood of the tokens that count, nats."""
        from torch.nn import functional as F

        rows, at, before = Places.of(inputs["labels"], inputs.get("branch"))
        logits = outputs.logits
        if logits.dim() > 2:  # of all places, as transformers' models say them
            logits = logits[rows, before]
        return F.cross_entropy(wide(logits), inputs["labels"][rows, at])

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        return softened(wide(outputs.logits), wide(teacher.logits), temperature)

    def size(self, inputs: Mapping[str, torch.Tensor]) -> int | torch.Tensor:
        return (inputs["labels"][:, 1:] != IGNORED).sum()

    def probe(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.hard_loss(outputs, inputs)

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        """The mean negative logarithm of a token's probability; its exponential: perplexity."""
        return -float(answers[counted(encoded), 0].mean())

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        """How far the logarithms of tokens' probabilities lie from the teacher's, on the mean."""
        which = counted(encoded)
        return float(np.abs(teacher[which, 0] - answers[which, 0]).mean())

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        """The share of tokens that were the first choice, times 100."""
        if not np.isfinite(answers).all():
            return math.nan
        return 100 * float(answers[counted(encoded), 1].mean())


class Joined(NamedTuple):
    """Token ids of a beginning, and of what follows it, as the two are read together."""

    beginning: list[int]
    continuation: list[int]


def joined_ids(
    tokenizer: PreTrainedTokenizerBase, beginnings: Sequence[str], continuations: Sequence[str]
) -> list[Joined]:
    """Token ids of beginnings with their continuations.

    No special tokens are added. White space at the end of a beginning that is read as one with what
    follows belongs to that (the protocol of lm-evaluation-harness for language models).
    """
    if not beginnings:
        return []

    def read(texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    different = list(dict.fromkeys(beginnings))
    alone = dict(zip(different, read(different), strict=True))
    whole = read([a + b for a, b in zip(beginnings, continuations, strict=True)])
    torn = dict.fromkeys(  # for all continuations of a beginning alike, which share it
        text
        for text, ids in zip(beginnings, whole, strict=True)
        if text != text.rstrip() != "" and ids[: len(alone[text])] != alone[text]
    )
    if torn:
        alone |= dict(zip(torn, read([text.rstrip() for text in torn]), strict=True))
    return [
        Joined(ids[: len(alone[text])], ids[len(alone[text]) :])
        for text, ids in zip(beginnings, whole, strict=True)
    ]


def cut(beginning: list[int], most: int) -> list[int]:
    """The last so many tokens of a beginning; at least one, from which the next is predicted."""
    return beginning[-max(1, most) :]
