"""A `Trainer` for a super-network: several subnetworks a step, widest and narrowest among them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import convert_to_fp32

from hwnas.elastic.adapters import Adapters
from hwnas.elastic.supernet import SuperNetwork
from hwnas.tasks.predict import outputs_of
from hwnas.training.observing import Observed, detached
from hwnas.training.planned import PlannedTrainer
from hwnas.training.sampling import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Keeper(NamedTuple):
    """A model, in evaluation mode, from what says the first subnetwork of a step is not to stray.

    Attributes:
        weight: of the distance from it, beside the labels' loss.
    """

    model: PreTrainedModel
    weight: float


class SandwichTrainer(PlannedTrainer):
    """Trains several subnetworks a step, their gradients averaged, one optimizer step for all.

    In place, the first of a step learns from the labels, and teaches the others what it says
    (universally slimmable networks, Yu & Huang 2019, section 3.3).

    With several processes, gradients are averaged over them here and not by torch's wrapper, which
    cannot know that the parts in use change from one backward pass to the next.
    """

    def __init__(
        self,
        *,
        supernet: SuperNetwork,
        sandwich: Sampler,
        adapters: Adapters | None = None,
        in_place: bool = False,
        keeper: Keeper | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=supernet.model, **kwargs)
        self.keeper = keeper
        self.supernet = supernet
        self.sandwich = sandwich
        self.adapters = adapters
        self.in_place = in_place

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        inner = self.supernet.model
        inner.train()
        inputs = self._prepare_inputs(inputs)
        subnetworks = self.sandwich.at(self.state.global_step)
        ranks = self._ranks(len(subnetworks))
        parts = len(subnetworks) * self.optimization.accumulate
        total = torch.zeros((), device=self.args.device)
        with self.compute_loss_context_manager():
            answers = self.answers(inputs) if self.teacher is not None else None
        for subnetwork, rank in zip(subnetworks, ranks, strict=True):
            # between steps the whole model is active: checkpoints and the optimizer see that
            with self.supernet.as_subnetwork(subnetwork) as active, self._at_rank(rank):
                with self.compute_loss_context_manager():
                    if answers is None:
                        outputs, loss = self.taught(active, active, inputs)
                        loss = (loss + self._kept(outputs, inputs)) / parts
                        if self.in_place:
                            answers = Observed(detached(outputs), (), ())
                    else:
                        loss = self.distilled(active, active, inputs, answers)[1] / parts
                self.accelerator.backward(loss * self._undone)
            total += loss.detach()
        if self.accelerator.sync_gradients:
            self._average_gradients()
        return total

    def _kept(self, outputs: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor | float:
        """The distance from what the keeper says, as much as that counts."""
        if self.keeper is None:
            return 0.0
        with torch.no_grad():
            before = convert_to_fp32(outputs_of(self.keeper.model, inputs))
        temperature = self.optimization.temperature
        apart = self.kind.soft_loss(outputs, before, inputs, temperature)
        return self._shares(inputs).answers * self.keeper.weight * apart

    def _ranks(self, count: int) -> list[int]:
        """Of the adapters, for a step's subnetworks: the sampled ones may have smaller ones."""
        if self.adapters is None:
            return [0] * count
        spec = self.adapters.spec
        rng = random.Random(f"{self.sandwich.seed}/{self.state.global_step}/ranks")
        sampled = [rng.choice((*spec.ranks, spec.rank)) for _ in range(self.sandwich.samples)]
        return [spec.rank] * (count - len(sampled)) + sampled

    @contextmanager
    def _at_rank(self, rank: int) -> Iterator[None]:
        if self.adapters is None:
            yield
            return
        self.adapters.set_rank(rank)
        try:
            yield
        finally:
            self.adapters.set_rank(self.adapters.spec.rank)

    @property
    def _undone(self) -> int:
        """What `accelerator.backward` divides a loss by; here it is divided already."""
        return int(self.accelerator.gradient_accumulation_steps)

    def _average_gradients(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.supernet.model.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.accelerator.num_processes
