"""Distillation of what goes on inside a teacher, beside its answers (`Kind.soft_loss`).

- What its blocks put out: hidden states, as in TinyBERT (Jiao et al. 2020, section 3). A student
  has the first of its teacher's dimensions, or all of them, so states are compared as they are.
- How its last block relates tokens: queries with queries, keys with keys, values with values, as in
  MiniLMv2 (Wang et al. 2021). The columns are divided into relation heads that have nothing to do
  with attention heads, so the student may have fewer of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from hwnas.anatomy import find_family
from hwnas.anatomy.modules import block_modules, blocks, layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RELATION_HEADS = 12  # at most


def states_loss(
    states: Sequence[torch.Tensor],
    teacher_states: Sequence[torch.Tensor],
    mask: torch.Tensor,
    variances: torch.Tensor,
) -> torch.Tensor:
    """Squared distance of the blocks' outputs from the teacher's, as a share of their variance.

    A student of fewer blocks is compared with evenly spread ones of the teacher, the last with the
    last (TinyBERT's uniform mapping).

    Args:
        states: of the student, `(batch, seq, hidden)` after each of its blocks.
        teacher_states: likewise of the teacher, at least as many, at least as wide.
        mask: `(batch, seq)`, 0 where a token is padding.
        variances: of each of the teacher's, as `state_variances` finds them. Those of the batch at
            hand would make the loss of a batch differ from the mean of its parts'.
    """
    real = mask.to(states[0].dtype)
    losses = []
    for position, state in enumerate(states, start=1):
        match = round(position * len(teacher_states) / len(states)) - 1
        wanted = teacher_states[match][..., : state.shape[-1]]
        apart = ((state - wanted).square().sum(dim=-1) * real).sum() / real.sum()
        losses.append(apart / variances[match])
    return torch.stack(losses).mean()


def state_variances(states: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """How far tokens' states lie from their mean, squared, of each block: `(blocks,)`.

    Args:
        states: `(batch, seq, hidden)` after each block.
        mask: `(batch, seq)`, 0 where a token is padding.
    """
    tokens = [state[mask.bool()] for state in states]
    return torch.stack([(x - x.mean(dim=0)).square().sum(dim=-1).mean() for x in tokens])


@contextmanager
def last_projections(model: PreTrainedModel | Any) -> Iterator[list[torch.Tensor]]:
    """Collects queries, keys and values `(batch, seq, columns)` of the last block while it runs."""
    found: list[torch.Tensor] = []
    seen: set[int] = set()

    def keep(at: int, output: torch.Tensor) -> None:
        if at not in seen:  # DeBERTa's layers are then asked of relative positions as well
            seen.add(at)
            found.append(output)

    last = blocks(model)[-1]
    part = block_modules(find_family(model.config), last)
    slots = (*part.attention_in, *part.shared_in)[:3]
    hooks = [
        layer(slot).register_forward_hook(lambda _m, _i, output, at=at: keep(at, output))
        for at, slot in enumerate(slots)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def relations_loss(
    projections: Sequence[torch.Tensor],
    teacher_projections: Sequence[torch.Tensor],
    mask: torch.Tensor,
) -> torch.Tensor:
    """KL of how tokens relate from how they do in the teacher (MiniLMv2, section 3).

    Args:
        projections: queries, keys and values `(batch, seq, columns)` of the student.
        teacher_projections: likewise of the teacher, of as many columns or more.
        mask: `(batch, seq)`, 0 where a token is padding.
    """
    real = mask.bool()
    losses = []
    for mine, theirs in zip(projections, teacher_projections, strict=True):
        heads = _relation_heads(mine.shape[-1], theirs.shape[-1])
        student, teacher = (_relations(x, heads, real) for x in (mine, theirs))
        apart = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        losses.append(apart.transpose(1, 2)[real].mean())
    return torch.stack(losses).mean()


def _relation_heads(columns: int, others: int) -> int:
    """The most heads into which both can be divided, up to a dozen."""
    common = math.gcd(columns, others)
    return max(heads for heads in range(1, _RELATION_HEADS + 1) if common % heads == 0)


def _relations(x: torch.Tensor, heads: int, real: torch.Tensor) -> torch.Tensor:
    """The logarithm of each token's relation to the others, `(batch, heads, seq, seq)`."""
    batch, seq, columns = x.shape
    size = columns // heads
    parts = x.view(batch, seq, heads, size).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / math.sqrt(size)
    return F.log_softmax(scores.masked_fill(~real[:, None, None], -1e4), dim=-1)
