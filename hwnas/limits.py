"""What a served model may take beside its latency: room on disk and in the cache, a first token.

Each limit is on a cost that adds up over the blocks, as latency does, so that together they are
several knapsacks at once. They are made one by a surrogate constraint (Glover 1968): a mixture of
all, as shares of what is allowed, may be 1 at most. Whatever meets every limit meets the mixture; a
limit's share in it is the smallest with which the best choice meets that limit too; where several
limits work against each other, shares are tried at random.

Assumptions: a cache holds `cache` tokens and the one that is written, in 8 bits with OpenVINO (its
own choice), in 32 elsewhere; the time to the first token is that of reading the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from hwnas.errors import BudgetError, UserError
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.target import Budget, Target
from hwnas.search.exact import solve_tables
from hwnas.search.problem import ROUNDING, Tables
from hwnas.space import SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork
from hwnas.timing import profiled

if TYPE_CHECKING:
    from hwnas.inputs import Inputs
    from hwnas.latency.table import LatencyTable
    from hwnas.search.exact import BlockLoss

SIZE, CACHE, FIRST_TOKEN = "size", "cache", "first token"
_CACHE_BYTES = {"openvino": 1, "onnxruntime": 4, "torch": 4}
_HALVINGS = 12  # of the interval that a limit's share in the mixture is sought in
_DRAWS = 200
_PASSES = 6  # over all limits, for one's share may break another


class FirstTokenSpec(BaseModel):
    """How long a model may take to read a prompt and write the first token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: int = Field(ge=1, le=65536)  # tokens
    budget: str  # 300ms, or 60% of the baseline's

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: str) -> str:
        try:
            found = Budget.parse(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        if found.per_token:
            raise ValueError(f"{value!r}: the first token is one; give milliseconds or a share")
        return value


class LimitsSpec(BaseModel):
    """A recipe's limits on language models that decode; the size's is `max_size_mb`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_token: FirstTokenSpec | None = None
    cache_mb: float | None = Field(None, gt=0)  # of keys and values of all sequences, 10^6 bytes


@dataclass(frozen=True)
class Limit:
    """At most so much of an additive cost."""

    name: str
    unit: str
    most: float
    costs: LatencyPredictor  # in the limit's unit
    advice: str = ""  # what else makes it less

    def of(self, subnetwork: Subnetwork) -> float:
        """The cost of a subnetwork."""
        return self.costs.predict(subnetwork)

    def allows(self, subnetwork: Subnetwork) -> bool:
        return self.of(subnetwork) <= self.most

    def smallest(self, space: SearchSpace) -> Subnetwork:
        """The subnetwork of the space that costs least."""
        least = [Block(options.heads[0], options.ffn[0]) for options in space.blocks]
        gone = [i for i, options in enumerate(space.blocks) if options.droppable]
        if len(gone) == len(least):
            gone.remove(min(gone, key=lambda i: (self.costs.block_ms(least[i]), i)))
        blocks = tuple(DROPPED if i in gone else block for i, block in enumerate(least))
        return min((Subnetwork(blocks, hidden) for hidden in (0, *space.hidden)), key=self.of)

    def check(self, space: SearchSpace) -> None:
        """Raise `BudgetError` if nothing in the space costs as little as that."""
        least = self.of(self.smallest(space))
        if least > self.most:
            more = f"; {self.advice}" if self.advice else ""
            raise BudgetError(
                f"{self}: cannot be met: the smallest subnetwork is predicted at {least:.3g} "
                f"{self.unit}{more}"
            )

    def __str__(self) -> str:
        return f"{self.name} {self.most:g} {self.unit}"


@dataclass(frozen=True)
class Limits:
    """All that must be kept beside a latency budget."""

    every: tuple[Limit, ...]

    def allows(self, subnetwork: Subnetwork) -> bool:
        """Whether every limit is predicted to be kept."""
        return all(limit.allows(subnetwork) for limit in self.every)

    def __str__(self) -> str:
        return " and ".join(map(str, self.every))

    def mixed(
        self,
        predictor: LatencyPredictor,
        space: SearchSpace,
        loss: BlockLoss,
        budget_ms: float,
        hidden: int = 0,
    ) -> LatencyPredictor:
        """An additive predictor of a mixture of latency and costs, to be kept within `budget_ms`.

        Args:
            predictor: additive, at the residual width `hidden` (0: the model's own).

        Raises:
            BudgetError: nothing is found within all of them.
        """
        shares = [0.0] * len(self.every)
        relaxed: list[float] = []

        def best(shares: Sequence[float]) -> Subnetwork:
            tables = Tables.of(space, loss, self._blend(predictor, shares, budget_ms, hidden))
            tables.require(budget_ms)
            return solve_tables(tables, budget_ms).subnetwork.narrowed(hidden)

        def quick(subnetwork: Subnetwork) -> bool:
            ms = predictor.predict(subnetwork.narrowed(0))
            return ms <= budget_ms * (1 + ROUNDING)

        for _ in range(_PASSES):
            found = best(shares)
            broken = [j for j, limit in enumerate(self.every) if not limit.allows(found)]
            if not broken and quick(found):
                return self._blend(predictor, shares, budget_ms, hidden)
            if (
                not broken
            ):  # slower than allowed: whoever searches sees to that, if nothing else fits
                relaxed = [*shares]
                break
            (j, *_) = broken
            low = shares[j]
            high = 1.0 - sum(share for i, share in enumerate(shares) if i != j)
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                kept = self.every[j].allows(best([*shares[:j], middle, *shares[j + 1 :]]))
                low, high = (low, middle) if kept else (middle, high)
            shares[j] = high
        # one limit's share broke another's: among mixtures at random, the best that keeps them all
        drawn = np.random.default_rng(0).dirichlet(np.ones(1 + len(shares)), _DRAWS)[:, 1:]
        losses: dict[int, float] = {}
        for number, some in enumerate(drawn.tolist()):
            tried = best(some)
            if self.allows(tried) and quick(tried):
                losses[number] = sum(loss.of(i, block) for i, block in enumerate(tried.blocks))
        if not losses and relaxed:
            return self._blend(predictor, relaxed, budget_ms, hidden)
        if not losses:
            raise BudgetError(f"nothing was found within {budget_ms:.3g} ms, {self}")
        chosen = drawn[min(losses, key=lambda number: losses[number])].tolist()
        return self._blend(predictor, chosen, budget_ms, hidden)

    def _blend(
        self,
        predictor: LatencyPredictor,
        shares: Sequence[float],
        budget_ms: float,
        hidden: int,
    ) -> LatencyPredictor:
        """So much of each cost, in milliseconds that are as large a part of what is allowed."""
        blend = predictor
        rest = 1.0 - sum(shares)
        if rest < 1.0:
            blend = _times(predictor, rest)
        for limit, share in zip(self.every, shares, strict=True):
            if share:
                here = limit.costs.at_hidden(hidden)
                blend = _sum(blend, _times(here, share * budget_ms / limit.most))
        return blend


def _times(costs: LatencyPredictor, factor: float) -> LatencyPredictor:
    """Every cost times that; of additive costs."""
    return replace(
        costs,
        fixed_ms=costs.fixed_ms * factor,
        attention=replace(costs.attention, ms=costs.attention.ms * factor),
        ffn=replace(costs.ffn, ms=costs.ffn.ms * factor),
    )


def _sum(one: LatencyPredictor, other: LatencyPredictor) -> LatencyPredictor:
    """Two additive costs together."""

    def added(a: Curve, b: Curve) -> Curve:
        widths = np.unique(np.concatenate([a.widths, b.widths]))
        return Curve(widths, a.at(widths) + b.at(widths))

    return replace(
        one,
        fixed_ms=one.fixed_ms + other.fixed_ms,
        attention=added(one.attention, other.attention),
        ffn=added(one.ffn, other.ffn),
    )


def straight(fixed: float, head: float, neuron: float) -> LatencyPredictor:
    """Costs of so much for each head and neuron, beside a fixed part."""

    def line(each: float) -> Curve:
        return Curve(np.array([1.0, 2.0]), each * np.array([1.0, 2.0]))

    return LatencyPredictor(fixed, line(head), line(neuron), baseline_ms=1.0)


def limits_at(inputs: Inputs, target: Target) -> tuple[Limit, ...]:
    """The recipe's limits, for models that are served at a target."""
    from hwnas.sizes import size_limit

    spec = inputs.recipe.limits
    found: list[Limit] = []
    if inputs.recipe.max_size_mb is not None:
        found.append(size_limit(inputs, target, inputs.recipe.max_size_mb))
    if spec.cache_mb is not None:
        found.append(cache_limit(inputs, target, spec.cache_mb))
    if spec.first_token is not None:
        own_ms = first_token_table(inputs, inputs.target).reference_ms
        most = Budget.parse(spec.first_token.budget).in_ms(own_ms)
        found.append(Limit(FIRST_TOKEN, "ms", most, _first_token(inputs, target, own_ms, most)))
    return tuple(found)


def _first_token(inputs: Inputs, target: Target, own_ms: float, near_ms: float) -> LatencyPredictor:
    """What a prompt takes at a target, on the clock of the run's own.

    Where the baseline's prompts were timed in pairs, by their ratio; before that, tables that were
    measured one after the other are taken as they are.

    Args:
        own_ms: of the full model, at the run's target.
    """
    from hwnas.deployments import read_anchors

    table = first_token_table(inputs, target)
    paired = {anchor.target: anchor.first_token for anchor in read_anchors(inputs.path)}
    ratio = paired.get(str(target))
    scale = 1.0 if ratio is None else ratio * own_ms / table.reference_ms
    return table.predictor().scaled(scale).near(near_ms)


def cache_limit(inputs: Inputs, target: Target, most_mb: float) -> Limit:
    """The limit on keys and values of all sequences of a batch."""
    shape = inputs.shape
    numbers = 2 * shape.head_size * (target.cache + target.seq) * target.batch
    each = numbers * _CACHE_BYTES[target.runtime] / shape.group / 1e6
    return Limit(CACHE, "MB", most_mb, straight(0.0, each, 0.0))


def first_token_target(inputs: Inputs, target: Target) -> Target:
    """The same runtime and device, reading the prompt of the limit."""
    spec = inputs.recipe.limits.first_token
    assert spec is not None
    return replace(target, phase="prefill", seq=spec.prompt, cache=0, mix=())


def first_token_table(inputs: Inputs, target: Target) -> LatencyTable:
    """The latency table of prompts, measured if it is not there."""
    from hwnas.deployments import name_of

    path = inputs.path / "tables" / f"first-token-{name_of(target, inputs.target)}.json"
    return profiled(inputs, first_token_target(inputs, target), path)
