"""What a loss looks at of a model: its outputs, and what goes on inside where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from accelerate.utils import convert_to_fp32

from hwnas.anatomy.heads import writes
from hwnas.tasks.written import Said, say
from hwnas.training.batches import questions
from hwnas.training.distillation import last_projections


class Observed(NamedTuple):
    """What a loss looks at of a model and a batch.

    Attributes:
        outputs: the model's.
        states: `(batch, seq, hidden)` after each block, if asked for.
        projections: the last block's queries, keys and values, likewise.
    """

    outputs: Any
    states: Sequence[torch.Tensor]
    projections: Sequence[torch.Tensor]


def observe(
    model: torch.nn.Module,
    inner: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    states: bool,
    relations: bool,
) -> Observed:
    """Run a model on a batch, and note what is asked for of what goes on inside.

    Args:
        model: perhaps wrapped for several processes; `inner` is what is wrapped.
    """
    with ExitStack() as stack:
        projections: list[torch.Tensor] = []
        if relations:
            projections = stack.enter_context(last_projections(inner))
        if writes(inner):
            outputs: Any = say(model, inner, inputs, states=states, packs=not relations)
        else:
            outputs = model(**questions(inputs), output_hidden_states=states)
        outputs = convert_to_fp32(outputs)
    # the first of the hidden states is the embeddings', before any block
    return Observed(
        outputs, outputs.hidden_states[1:] if states else (), convert_to_fp32(projections)
    )


def detached(outputs: Any) -> Any:
    """A model's outputs without their history, to learn from."""
    if isinstance(outputs, Said):
        return Said(outputs.logits.detach(), None)
    return type(outputs)(
        **{name: x.detach() for name, x in outputs.items() if isinstance(x, torch.Tensor)}
    )
