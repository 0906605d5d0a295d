"""How weights are trained: the settings of one training, and a model made ready for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from hwnas.elastic.spec import AdapterSpec
from hwnas.errors import UserError
from hwnas.processes import count
from hwnas.training.compute import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Optimization:
    """How weights are trained; what concerns distillation counts only where there is a teacher."""

    steps: int
    learning_rate: float
    batch: int = 32
    warmup: float = 0.06  # share of the steps
    weight_decay: float = 0.01
    distill_weight: float = 0.7  # of the teacher's logits; the labels have the rest
    temperature: float = 2.0
    states_weight: float = 1.0  # of the blocks' outputs, beside both
    relations_weight: float = 0.0  # of the last block's relations of tokens, likewise
    dropout: bool = True  # the model's own; without it, none
    freeze_embeddings: bool = False  # those of the words
    seed: int = 0
    accumulate: int = 1  # parts that a batch is computed in, to save memory
    precision: Precision = "fp32"  # of the computation; see `autocast`, fp16 is for GPUs
    adapters: AdapterSpec | None = None  # what is trained, beside frozen weights; None: all weights
    checkpointing: bool = False  # blocks' activations are computed again, to save memory
    checkpoint_every: int = 250  # steps between resumable checkpoints; 0: none are written
    schedule: Literal["linear", "constant"] = "linear"  # of the learning rate, after the warm-up


@contextmanager
def prepared(model: PreTrainedModel, optimization: Optimization) -> Iterator[None]:
    """`model` with dropout and word embeddings as `optimization` says; as it was afterwards."""
    frozen = [p for p in model.get_input_embeddings().parameters() if p.requires_grad]
    dropouts = list(_dropouts(model))
    before = [getattr(module, name) for module, name in dropouts]
    try:
        if optimization.freeze_embeddings:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if not optimization.dropout:
            for module, name in dropouts:
                setattr(module, name, 0.0)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for (module, name), probability in zip(dropouts, before, strict=True):
            setattr(module, name, probability)


def _dropouts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """Modules that drop out, with the attribute that holds the probability."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            yield module, "p"
        # attention keeps the probability that it hands to torch's fused kernel
        elif isinstance(getattr(module, "dropout_prob", None), float):
            yield module, "dropout_prob"


def per_pass(optimization: Optimization) -> int:
    """Rows that one process takes at a time.

    Raises:
        UserError: a batch cannot be divided so.
    """
    processes = count()
    rows, rest = divmod(optimization.batch, processes * optimization.accumulate)
    if rest or not rows:
        raise UserError(
            f"compute.batch: {optimization.batch} rows cannot be divided among {processes} "
            f"processes and {optimization.accumulate} parts (training.accumulate)"
        )
    return rows
