"""Distillation: what a student learns from its teacher beside the labels.

Two things: the teacher's answers (softened logits, Hinton et al. 2015) and what its blocks put out
(hidden states, as in TinyBERT, Jiao et al. 2020, section 3). Students keep the residual width of
their teacher, so states are compared as they are. The teacher answers each batch on the spot: its
states for all rows would fill gigabytes, and students see few rows twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def distillation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor,
    weight: float,
    temperature: float,
) -> torch.Tensor:
    """`weight` x KL from the teacher (softened) + the rest x cross-entropy.

    Args:
        logits, teacher_logits: `(batch, classes)`.
        labels: `(batch,)`.
    """
    hard = F.cross_entropy(logits, labels)
    soft = F.kl_div(
        F.log_softmax(logits / temperature, dim=-1),
        F.log_softmax(teacher_logits / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return weight * temperature**2 * soft + (1 - weight) * hard


def states_loss(
    states: Sequence[torch.Tensor],
    teacher_states: Sequence[torch.Tensor],
    mask: torch.Tensor,
) -> torch.Tensor:
    """Squared distance of the blocks' outputs from the teacher's, as a share of their variance.

    A student of fewer blocks is compared with evenly spread ones of the teacher, the last with the
    last (TinyBERT's uniform mapping).

    Args:
        states: of the student, `(batch, seq, hidden)` after each of its blocks.
        teacher_states: likewise of the teacher, at least as many.
        mask: `(batch, seq)`, 0 where a token is padding.
    """
    real = mask.bool()
    losses = []
    for position, state in enumerate(states, start=1):
        match = round(position * len(teacher_states) / len(states)) - 1
        wanted = teacher_states[match][real]
        variance = (wanted - wanted.mean(dim=0)).square().sum(dim=-1).mean()
        losses.append((state[real] - wanted).square().sum(dim=-1).mean() / variance)
    return torch.stack(losses).mean()
