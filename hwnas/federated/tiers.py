"""Tiers of devices: the largest subnetwork that each one's latency table and memory allow.

Every smaller tier's subnetwork is nested in every larger one's, block by block, so that what a
large device trains is what a small one runs. All blocks are kept where that is possible: parts that
all tiers have are learned from everybody.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwnas.anatomy import Shape, find_shape
from hwnas.errors import BudgetError, UserError
from hwnas.federated.messages import OwnDevice
from hwnas.federated.recipe import FederatedRecipe, TierSpec
from hwnas.files import validate
from hwnas.importance.scores import Importance
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget, Target
from hwnas.planning import kept_values
from hwnas.search.exact import BlockLoss, solve
from hwnas.search.problem import Tables
from hwnas.search.seeds import uniform
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import Subnetwork, macs

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MB = 1e6
_TRAINED = 16  # bytes of a trained number: itself, its gradient, two moments
_NUMBER = 4
_LONGEST = 60  # letters of a client's name, that its folder is called by
_MARGIN = 0.02  # of a budget, that the prediction stays below it


class Tier(BaseModel):
    """A tier, and what its devices train and run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    genome: list[list[int]]
    target: str
    budget_ms: float | None  # None: the whole model
    predicted_ms: float
    whole_ms: float  # the whole model on that device
    macs: float  # of the whole model's, for one training row

    @property
    def subnetwork(self) -> Subnetwork:
        return Subnetwork.of(self.genome)


@dataclass(frozen=True)
class Device:
    """A tier's recipe and its latency table."""

    spec: TierSpec
    table: LatencyTable

    def budget_ms(self) -> float | None:
        if self.spec.budget is None:
            return None
        return Budget.parse(self.spec.budget).in_ms(self.table.reference_ms)

    @property
    def share(self) -> float:
        """The budget as a share of the whole model's latency."""
        budget = self.budget_ms()
        return 1.0 if budget is None else budget / self.table.reference_ms

    def holds(self, subnetwork: Subnetwork, shape: Shape, tokens: int) -> bool:
        """Whether its memory is enough to train a subnetwork on batches of so many tokens."""
        memory = self.spec.memory_mb
        return memory is None or memory_mb(subnetwork, shape, tokens) <= memory


def tables_of(
    recipe: FederatedRecipe, config: PretrainedConfig | Any, folder: Path
) -> dict[str, LatencyTable]:
    """Every tier's latency table: given, or measured here and kept in `folder`; by the tier's name.

    Tiers of one target that are given none share a measured one.

    Raises:
        UserError: a given table cannot be read, or is of another model or target.
    """
    from hwnas.latency.profiling import profile

    kept: dict[tuple[str, str | None], Path] = {}
    found = {}
    for tier in recipe.tiers:
        path = kept.setdefault((tier.target, tier.table), folder / f"{tier.name}.json")
        if path.exists():
            found[tier.name] = LatencyTable.load(path)
            continue
        if tier.table is None:
            target = Target.parse(tier.target)
            found[tier.name] = profile(
                config, target, validate=0, seed=recipe.seed, minutes=recipe.table_minutes
            )
        else:
            found[tier.name] = LatencyTable.find(tier.table)
            found[tier.name].check_model(find_shape(config))
        found[tier.name].save(path)
    return found


def tiers_of(
    devices: Sequence[Device], shape: Shape, recipe: FederatedRecipe, scores: Importance
) -> dict[str, Tier]:
    """Every tier's subnetwork, by name in the devices' order.

    Args:
        scores: of a model that is reordered by them.

    Raises:
        BudgetError: nothing fits a tier's latency or memory.
    """
    wanted = {device.spec.name: device for device in devices}

    space = SearchSpace.whole(shape)
    loss = scores.loss(shape.group) if recipe.structure == "importance" else None
    found: dict[str, Tier] = {}
    for name in sorted(wanted, key=lambda name: -wanted[name].share):
        device = wanted[name]
        predictor = device.table.predictor()
        fit = Fit(shape, predictor, loss)
        subnetwork = _largest(device, space, fit, recipe.batch_tokens)
        space = nested_space(space, subnetwork)
        found[name] = Tier(
            name=name,
            genome=subnetwork.genome,
            target=device.table.target,
            budget_ms=device.budget_ms(),
            predicted_ms=predictor.predict(subnetwork),
            whole_ms=device.table.reference_ms,
            macs=macs_share(subnetwork, shape, recipe.length),
        )
    return {name: found[name] for name in wanted}


def macs_share(subnetwork: Subnetwork, shape: Shape, seq: int) -> float:
    """A subnetwork's multiply-accumulates in shares of the whole model's."""
    return macs(subnetwork, shape, seq) / macs(Subnetwork.full(shape), shape, seq)


@dataclass(frozen=True)
class Fit:
    """How the best subnetwork within a latency is found.

    Args:
        loss: of leaving parts out; without it, all blocks have one share of their widths.
    """

    shape: Shape
    predictor: LatencyPredictor
    loss: BlockLoss | None

    def best(self, space: SearchSpace, budget_ms: float) -> Subnetwork:
        """All blocks kept, if that is possible.

        Raises:
            BudgetError: nothing fits.
        """
        near = self.predictor.near(budget_ms)
        alike = self.loss or _by_width(self.shape)
        if self.loss is None:
            tables = Tables.of(space, alike, near)
            choice = uniform(space, tables, budget_ms)
            if choice is not None:
                return tables.subnetwork(choice)
        else:
            try:
                return solve(space, alike, near, budget_ms, droppable=False).subnetwork
            except BudgetError:
                pass
        return solve(space, alike, near, budget_ms).subnetwork


def _by_width(shape: Shape) -> BlockLoss:
    """A loss of each part by its share of the block's."""
    return BlockLoss(
        heads=[1 - np.arange(n + 1) / n for n in shape.heads],
        ffn=[1 - np.arange(n + 1) / n for n in shape.ffn],
    )


def _largest(device: Device, space: SearchSpace, fit: Fit, tokens: int) -> Subnetwork:
    """The best subnetwork of the space within the tier's latency, made smaller until it fits."""
    budget, memory = device.budget_ms(), device.spec.memory_mb
    chosen = space.largest
    if budget is not None:
        chosen = fit.best(space, (1 - _MARGIN) * budget)
    while not device.holds(chosen, fit.shape, tokens):
        try:
            chosen = fit.best(space, 0.95 * fit.predictor.predict(chosen))
        except BudgetError:
            raise BudgetError(
                f"tier {device.spec.name}: memory_mb: {memory:g} MB are not enough to train any "
                f"subnetwork; the smallest takes {memory_mb(chosen, fit.shape, tokens):.0f} MB"
            ) from None
    return chosen


def nested_space(space: SearchSpace, within: Subnetwork) -> SearchSpace:
    """What of the space is no wider than a subnetwork, in any block.

    A block that it leaves out has the narrowest options left, for a space has some in each.
    """
    found = []
    for options, block in zip(space.blocks, within.blocks, strict=True):
        heads = tuple(h for h in options.heads if h <= block.heads) or options.heads[:1]
        ffn = tuple(f for f in options.ffn if f <= block.ffn) or options.ffn[:1]
        found.append(BlockOptions(heads=heads, ffn=ffn, droppable=options.droppable))
    return SearchSpace(blocks=tuple(found))


def memory_mb(subnetwork: Subnetwork, shape: Shape, tokens: int) -> float:
    """What training a subnetwork's blocks takes, at least, MB of 10^6 bytes.

    Weights, gradients, Adam's moments, and what the blocks keep for the backward pass; embeddings
    are frozen and count once.

    Args:
        tokens: of a batch, padding included.
    """
    per_head = shape.head_size * 2 * (1 + 1 / shape.group)
    per_neuron = 3 if shape.gated else 2
    weights = shape.hidden * sum(
        per_head * block.heads + per_neuron * block.ffn for _, block in subnetwork.kept
    )
    inner = replace(
        shape,
        heads=tuple(block.heads for _, block in subnetwork.kept),
        ffn=tuple(block.ffn for _, block in subnetwork.kept),
    )
    kept = sum(kept_values(inner, i) for i in range(inner.depth))
    embeddings = shape.vocab * shape.hidden
    return (_TRAINED * weights + _NUMBER * (embeddings + kept * tokens)) / _MB


def dealt_tiers(recipe: FederatedRecipe) -> list[str]:
    """The tier of every virtual client, mixed by the seed."""
    count = recipe.clients.count
    total = sum(tier.share for tier in recipe.tiers)
    borders, at = [], 0.0
    for tier in recipe.tiers:
        at += tier.share / total
        borders.append(round(at * count))
    names, begin = [], 0
    for tier, end in zip(recipe.tiers, borders, strict=True):
        names += [tier.name] * (end - begin)
        begin = end
    random.Random(f"{recipe.seed}/tiers").shuffle(names)
    return names


def own_tier(client: str) -> str:
    """What the tier of a client's own device is called, alone."""
    plain = re.sub("[^a-z0-9_-]+", "-", client.lower())[:_LONGEST]
    return f"own-{plain}" + (f"-{zlib.crc32(client.encode()):08x}" if plain != client else "")


def own_device(said: OwnDevice, name: str, shape: Shape) -> Device:
    """A client's own device, by what it has said of it.

    Raises:
        UserError: its table is none that can be used, or its budget says nothing.
    """
    if said.table.lstrip().startswith("{"):
        try:
            value = json.loads(said.table)
        except (ValueError, RecursionError) as error:
            raise UserError(f"its latency table is not valid JSON: {error}") from None
        table = validate(LatencyTable, value, where="its latency table")
    else:
        # by its name only: a client says which of our files is read
        table = LatencyTable.shipped(said.table)
    table.check_model(shape)
    spec = {
        "name": name,
        "target": table.target,
        "budget": said.budget,
        "memory_mb": said.memory_mb,
    }
    return Device(validate(TierSpec, spec, where="its node config"), table)
