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
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import init_empty_weights
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hwnas.anatomy.dense import new_dense
from hwnas.anatomy.heads import task_of
from hwnas.elastic.adapters import Adapters
from hwnas.elastic.supernet import SuperNetwork
from hwnas.federated.calibration import Calibrated
from hwnas.federated.methods import Method
from hwnas.federated.parts import Part, Tensors
from hwnas.federated.prompts import learned, prompted
from hwnas.federated.recipe import LocalSpec
from hwnas.models import on_gpu
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.classification import Classification
from hwnas.training.optimization import Optimization
from hwnas.training.sandwich import Keeper
from hwnas.training.trainer import train

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
                before = self.before[name] = self.before[name].to(parameter.device)
                parameter.grad.add_(parameter - before, alpha=self.weight)


@dataclass(frozen=True)
class Trainee:
    """A client's own dense model, elastic, with the adapters or the prompt that it trains."""

    network: SuperNetwork
    adapters: Adapters | None = None
    prompted: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        """What is trained and judged."""
        return self.network.model if self.prompted is None else self.prompted

    @property
    def frozen(self) -> bool:
        """Whether its own weights stay as they are."""
        return self.adapters is not None or self.prompted is not None

    def result(self, part: Part) -> Tensors:
        """Copies of what has been trained, as it is sent back."""
        state = learned(self.prompted) if self.prompted is not None else self.model.state_dict()
        return {
            piece.local: state[piece.local].detach().to("cpu", copy=True) for piece in part.trained
        }

    @classmethod
    def of_weights(
        cls, config: Any, subnetwork: Subnetwork, task: str, arrays: Mapping[str, torch.Tensor]
    ) -> Trainee:
        """All of whose weights are given."""
        # random weights would take longer than some steps of training
        with init_empty_weights(include_buffers=False):
            model = new_dense(config, subnetwork, task)
        own = {name: array.clone() for name, array in arrays.items()}
        model.load_state_dict(own, strict=True, assign=True)
        model.tie_weights()
        return cls(SuperNetwork(model))

    @classmethod
    def of_frozen(
        cls,
        whole: SuperNetwork,
        subnetwork: Subnetwork,
        method: Method,
        arrays: Mapping[str, torch.Tensor],
    ) -> Trainee:
        """A part of the frozen `whole`, with adapters or a prompt, and a head, of these weights."""
        network = SuperNetwork(whole.extract(subnetwork))
        if method.prompt:
            task = task_of(type(network.model))
            return cls(network, prompted=prompted(network.model, task, arrays))
        attached = method.attach(network)
        state = network.model.state_dict()
        for name, tensor in arrays.items():
            state[name].copy_(tensor)
        return cls(network, adapters=attached)


def train_locally(
    trainee: Trainee,
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
    network, model = trainee.network, trainee.model
    optimization = Optimization(
        steps=steps,
        learning_rate=rate,
        batch=spec.batch,
        warmup=0.0,
        distill_weight=spec.distill_weight,
        temperature=spec.temperature,
        states_weight=0.0,
        dropout=False,
        freeze_embeddings=spec.freeze_embeddings and not trainee.frozen,
        adapters=trainee.adapters.spec if trainee.adapters else None,
        schedule="constant",
        precision=spec.precision,
        checkpoint_every=0,
        seed=seed,
    )
    callbacks = (Anchor(model, spec.proximal),) if spec.proximal else ()
    if spec.calibrate and isinstance(kind, Classification):
        own = Calibrated.to(rows["labels"][:], model.config.num_labels, spec.calibrate)
        kind = cast("Kind", own)
    with tempfile.TemporaryDirectory() as work:
        common: dict[str, Any] = {"kind": kind, "callbacks": callbacks, "title": "client"}
        if trainee.prompted is not None:
            train(trainee.prompted, tokenizer, rows, optimization, Path(work), **common)
            return time.perf_counter() - begin
        # whole and dense, with no adapters to be trained
        whole = on_gpu(network.extract(network.full)) if spec.keep else None
        keeper = Keeper(whole, spec.keep) if whole is not None else None
        train(
            network,
            tokenizer,
            rows,
            optimization,
            Path(work),
            sandwich=Nested(network.full, tuple(smaller), spec.nested, seed),
            in_place=True,
            attached=trainee.adapters,
            keeper=keeper,
            **common,
        )
    return time.perf_counter() - begin
