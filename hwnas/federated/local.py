"""What a client does with its part: a few steps on its own rows, the smaller tiers' nested in it.

Every step trains the client's own subnetwork by the labels, and some of those that smaller devices
run by what the client's own says: so small ones learn from what only large ones can know.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hwnas.anatomy.dense import new_dense
from hwnas.elastic.supernet import SuperNetwork
from hwnas.federated.calibration import Calibrated
from hwnas.federated.parts import Tensors, embeddings_of
from hwnas.federated.recipe import LocalSpec
from hwnas.models import load_model
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.classification import Classification
from hwnas.training.trainer import Optimization, train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Kind


@dataclass(frozen=True)
class Nested:
    """The subnetworks of a step: the client's own, and some of the smaller ones in turn.

    Args:
        own: the whole of the client's model.
        smaller: of smaller tiers, as subnetworks of that model.
        each: how many of them a step has.
    """

    own: Subnetwork
    smaller: tuple[Subnetwork, ...]
    each: int
    seed: int

    @property
    def samples(self) -> int:
        """None of them has adapters of a smaller rank."""
        return 0

    def at(self, step: int) -> list[Subnetwork]:
        """The subnetworks to train at `step`, the largest first."""
        count = min(self.each, len(self.smaller))
        drawn = random.Random(f"{self.seed}/{step}").sample(range(len(self.smaller)), count)
        return [self.own, *(self.smaller[i] for i in sorted(drawn))]


class Anchor(TrainerCallback):
    """Pulls weights towards where they were, as much as they have moved (FedProx, Li et al. 2020).

    Args:
        weight: of half the squared distance, in the loss.
    """

    def __init__(self, model: PreTrainedModel, weight: float) -> None:
        self.weight = weight
        self.before = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        assert model is not None
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and name in self.before:
                parameter.grad.add_(parameter - self.before[name], alpha=self.weight)


@lru_cache(maxsize=1)
def original(
    model: str, task: str, labels: tuple[str, ...], regression: bool, seed: int
) -> tuple[Any, Tensors, PreTrainedTokenizerBase]:
    """The original model's config, its word embeddings, and its tokenizer; kept by the process."""
    whole, tokenizer = load_model(
        model, task=task, labels=labels or None, regression=regression, seed=seed
    )
    names = embeddings_of(whole)
    frozen = {name: t.clone() for name, t in whole.state_dict().items() if name in names}
    return whole.config, frozen, tokenizer


def build(
    config: Any, subnetwork: Subnetwork, task: str, arrays: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """A dense model of the subnetwork with these weights."""
    model = new_dense(config, subnetwork, task)
    model.load_state_dict(dict(arrays), strict=True)
    return model


def train_locally(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    kind: Kind,
    spec: LocalSpec,
    *,
    smaller: Sequence[Subnetwork],
    steps: int,
    rate: float,
    seed: int,
) -> float:
    """Train a client's dense model in place; returns the seconds it took.

    Args:
        rows: encoded, with labels and `length`.
        smaller: nested subnetworks of the model.
    """
    begin = time.perf_counter()
    network = SuperNetwork(model)
    optimization = Optimization(
        steps=steps,
        learning_rate=rate,
        batch=spec.batch,
        warmup=0.0,
        distill_weight=spec.distill_weight,
        temperature=spec.temperature,
        states_weight=0.0,
        dropout=False,
        freeze_embeddings=spec.freeze_embeddings,
        schedule="constant",
        checkpoint_every=0,
        seed=seed,
    )
    callbacks = (Anchor(model, spec.proximal),) if spec.proximal else ()
    if spec.calibrate and isinstance(kind, Classification):
        own = Calibrated.to(rows["labels"], model.config.num_labels, spec.calibrate)
        kind = cast("Kind", own)
    with tempfile.TemporaryDirectory() as work:
        train(
            network,
            tokenizer,
            rows,
            optimization,
            Path(work),
            kind=kind,
            sandwich=Nested(network.full, tuple(smaller), spec.nested, seed),
            in_place=True,
            callbacks=callbacks,
            title="client",
        )
    return time.perf_counter() - begin
