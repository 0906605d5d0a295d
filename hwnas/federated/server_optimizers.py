"""How the server takes a round's change: as it is, or as a gradient (Reddi et al. 2021).

Coordinates that nobody trained in a round stay as they are, their moments included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from hwnas.federated.aggregation import Change
from hwnas.federated.parts import Tensors
from hwnas.federated.recipe import AggregationSpec
from hwnas.files import read_tensors

_SECOND = 0.99  # decay of the second moment, and
_TAU = 1e-3  # how adaptive it is at most: both as in section 5 of the paper


@dataclass
class ServerOptimizer:
    """FedAvg, FedAvgM, FedAdam or FedYogi."""

    spec: AggregationSpec
    first: Tensors = field(default_factory=dict)  # moments, in the whole model's shapes
    second: Tensors = field(default_factory=dict)

    @torch.no_grad()
    def step(self, state: Mapping[str, torch.Tensor], change: Change) -> None:
        """Change the whole model's tensors in place."""
        for name, wanted in change.change.items():
            step = self._step(name, wanted, change.trained[name])
            state[name].add_(torch.where(change.trained[name], step, 0.0), alpha=self.spec.rate)

    def _step(self, name: str, wanted: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
        kind = self.spec.optimizer
        if kind == "average":
            return wanted
        mean = self.first.setdefault(name, torch.zeros_like(wanted))
        share = 1.0 if kind == "momentum" else 1 - self.spec.momentum
        mean.copy_(torch.where(trained, self.spec.momentum * mean + share * wanted, mean))
        if kind == "momentum":
            return mean
        square = self.second.setdefault(name, torch.full_like(wanted, _TAU**2))
        towards = wanted.square()
        if kind == "adam":
            after = _SECOND * square + (1 - _SECOND) * towards
        else:
            after = square - (1 - _SECOND) * towards * (square - towards).sign()
        square.copy_(torch.where(trained, after, square))
        return mean / (square.sqrt() + _TAU)

    def save(self, path: Path) -> None:
        """Write the moments as safetensors."""
        named = {f"first.{n}": t for n, t in self.first.items()}
        save_file(named | {f"second.{n}": t for n, t in self.second.items()}, path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        for key, tensor in read_tensors(path).items():
            moments, _, name = key.partition(".")
            (self.first if moments == "first" else self.second)[name] = tensor
