"""Who a student learns from: another model, or the frozen weights that its own adapters stand on.

A super-network of adapters on frozen weights holds its teacher already: the full width with the
adapters off. One forward pass of it a step serves all subnetworks of the sandwich, and no second
copy of the weights is kept (LoNAS trains without a teacher).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hwnas.elastic.adapters import Adapters
    from hwnas.elastic.supernet import SuperNetwork


class Teacher(Protocol):
    """Can be had as a model in evaluation mode, for a while."""

    def answering(self) -> AbstractContextManager[PreTrainedModel]:
        """The model, until the context is left."""

    def move(self, device: torch.device) -> None:
        """Put the model where training runs."""


@dataclass(frozen=True)
class Another:
    """A model of its own, in evaluation mode."""

    model: PreTrainedModel

    @contextmanager
    def answering(self) -> Iterator[PreTrainedModel]:
        yield self.model

    def move(self, device: torch.device) -> None:
        self.model.to(device)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FrozenSelf:
    """The full width of a network whose adapters are off."""

    network: SuperNetwork
    adapters: Adapters

    @contextmanager
    def answering(self) -> Iterator[PreTrainedModel]:
        with self.adapters.off(), self.network.as_subnetwork(self.network.full) as model:
            training = model.training
            model.eval()
            try:
                yield model
            finally:
                model.train(training)

    def move(self, device: torch.device) -> None:
        """The trainer has put the student there, and this is it."""
