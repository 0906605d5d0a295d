"""One change of the super-network out of many clients' changes of their parts of it.

Clients of small devices know nothing of the outer coordinates, so every coordinate is averaged
over those who trained it. A mean is summed up as answers come in: the server's memory does not
grow with the clients. The rules that stand poisoned answers keep a round's answers.

Sources: averages over nested widths: HeteroFL (Diao et al. 2021, section 3); median and trimmed
mean: Yin et al. 2018; multi-Krum: Blanchard et al. 2017, here by the distance of the coordinates
that all have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from hwnas.elastic.residual import prefix
from hwnas.federated.parts import Part, Tensors
from hwnas.federated.recipe import AggregationSpec

_Rule = Callable[[torch.Tensor], torch.Tensor]


class Update(NamedTuple):
    """One client's change, or the mean of several clients' changes.

    Attributes:
        change: new less old, of every tensor of the part, under the whole model's names.
        weight: that it counts with.
        clients: whose it is.
    """

    part: Part
    change: Tensors
    weight: float
    clients: int = 1


class Change(NamedTuple):
    """What a round wants to change.

    Attributes:
        change: of every tensor that was trained, in the whole model's shapes; 0 where nobody did.
        trained: where somebody did.
    """

    change: Tensors
    trained: dict[str, torch.Tensor]


class Aggregator(Protocol):
    """Takes updates one by one."""

    count: int

    def add(self, update: Update) -> None:
        """Take one client's update."""

    def finish(self) -> Change:
        """What all of them say together."""


def aggregator(spec: AggregationSpec, state: Mapping[str, torch.Tensor]) -> Aggregator:
    """The recipe's rule.

    Args:
        state: the whole model's tensors.
    """
    shapes = {name: tensor.shape for name, tensor in state.items()}
    if spec.rule == "mean":
        return Mean(shapes, spec.few)
    if spec.rule == "krum":
        return Krum(shapes, spec.few, spec.malicious)
    # without as many as possible at both ends, the mean is the median
    return PerCoordinate(shapes, _trimmed(0.5 if spec.rule == "median" else spec.trim))


@dataclass
class Mean:
    """The weighted mean of those who trained a coordinate, summed up in double precision.

    Args:
        few: to which power the share of all weight that trained a coordinate shortens its step.
    """

    shapes: Mapping[str, torch.Size]
    few: float = 0.0
    count: int = 0
    _sums: Tensors = field(default_factory=dict)
    _weights: dict[Part, float] = field(default_factory=dict)

    def add(self, update: Update) -> None:
        self.count += update.clients
        part, weight = update.part, update.weight
        self._weights[part] = self._weights.get(part, 0.0) + weight
        for name, change in update.change.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros(self.shapes[name], dtype=torch.float64)
            prefix(self._sums[name], change.shape).add_(change, alpha=weight)

    def finish(self) -> Change:
        shares = self._shares()
        change, trained = {}, {}
        for name, total in self._sums.items():
            share = shares[name]
            trained[name] = share > 0
            step = total / share.clamp_min(torch.finfo(share.dtype).tiny)
            change[name] = (step * share**self.few if self.few else step).float()
        return Change(change, trained)

    def _shares(self) -> Tensors:
        """Of all weight, what trained each coordinate; sums are made shares of all weight too."""
        everyone = sum(self._weights.values())
        found = {name: torch.zeros(self.shapes[name], dtype=torch.float64) for name in self._sums}
        for part, weight in self._weights.items():
            for piece in part.trained:
                prefix(found[piece.name], torch.Size(piece.shape)).add_(weight / everyone)
        for total in self._sums.values():
            total /= everyone
        return found


@dataclass
class _Keeping:
    """Keeps a round's updates, for rules that look at all of them."""

    count: int = field(default=0, init=False)
    _updates: list[Update] = field(default_factory=list, init=False)

    def add(self, update: Update) -> None:
        self.count += 1
        self._updates.append(update)


@dataclass
class PerCoordinate(_Keeping):
    """A rule on all the values of a coordinate, of those who trained it; weights do not count."""

    shapes: Mapping[str, torch.Size]
    rule: _Rule

    def finish(self) -> Change:
        change, trained = {}, {}
        for name in dict.fromkeys(name for update in self._updates for name in update.change):
            has = [u.change[name] for u in self._updates if name in u.change]
            values = torch.full((len(has), *self.shapes[name]), math.nan)
            for row, one in zip(values, has, strict=True):
                prefix(row, one.shape).copy_(one)
            found = self.rule(values)
            trained[name] = ~found.isnan()
            change[name] = found.nan_to_num(0.0)
        return Change(change, trained)


def _trimmed(share: float) -> _Rule:
    """The mean over the first axis without this share of the smallest and of the largest."""

    def mean(values: torch.Tensor) -> torch.Tensor:
        known = (~values.isnan()).sum(0)
        cut = (known * share).ceil().clamp_max((known - 1).div(2, rounding_mode="floor"))
        rank = torch.arange(len(values)).view(-1, *[1] * (values.ndim - 1))
        ordered = values.nan_to_num(math.inf).sort(dim=0).values  # what is missing comes last
        kept = (rank >= cut) & (rank < known - cut)
        return torch.where(kept, ordered, 0.0).sum(0) / kept.sum(0)  # 0 / 0: nobody trained it

    return mean


@dataclass
class Krum(_Keeping):
    """The mean of the answers that are nearest to their neighbours (multi-Krum).

    Distances are over the coordinates that all have, each per trained number.

    Args:
        malicious: how many of them may be poisoned.
    """

    shapes: Mapping[str, torch.Size]
    few: float
    malicious: int

    def finish(self) -> Change:
        mean = Mean(self.shapes, self.few)
        for update in self.chosen():
            mean.add(update)
        return mean.finish()

    def chosen(self) -> Sequence[Update]:
        """All but as many as may be poisoned."""
        neighbours = len(self._updates) - self.malicious - 2
        if neighbours < 1:
            return self._updates
        distances = self._distances()
        scores = distances.sort(dim=1).values[:, 1 : neighbours + 1].sum(1)
        order = scores.argsort(stable=True)[: len(self._updates) - self.malicious].tolist()
        return [self._updates[i] for i in sorted(order)]

    def _distances(self) -> torch.Tensor:
        count = len(self._updates)
        found = torch.zeros(count, count, dtype=torch.float64)
        common = set.intersection(*(set(u.change) for u in self._updates))
        for name in sorted(common):
            has = [update.change[name] for update in self._updates]
            sizes = zip(*(tensor.shape for tensor in has), strict=True)
            shared = torch.Size(min(each) for each in sizes)
            rows = torch.stack([prefix(tensor, shared).flatten() for tensor in has]).double()
            found += torch.cdist(rows, rows).square()
        return found


def norm(change: Tensors) -> float:
    """The Euclidean norm of a whole update."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in change.values()))


def clipped(change: Tensors, largest: float) -> Tensors:
    """An update scaled down to a norm of at most `largest`."""
    factor = largest / max(norm(change), largest)
    return change if factor == 1 else {name: t * factor for name, t in change.items()}
