"""What can be wrong with a federated recipe, found before anything is started."""

from __future__ import annotations

from collections import Counter

from hwnas.anatomy import find_shape
from hwnas.errors import UserError
from hwnas.federated.population import deal, load_simulated
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.tiers import dealt_tiers
from hwnas.latency.runtimes import require
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.models import load_config
from hwnas.progress import warn


def check(recipe: FederatedRecipe) -> None:
    """Find what is wrong with a recipe before anything is started.

    Raises:
        UserError: what is wrong.
    """
    config = load_config(recipe.model)
    shape = find_shape(config)
    for tier in recipe.tiers:
        target = Target.parse(tier.target)
        require(target)
        if tier.table is not None:
            table = LatencyTable.find(tier.table)
            try:
                table.check_model(shape)
                table.check_target(target)
            except UserError as error:
                raise UserError(f"tiers: {tier.name}: {error}") from None
            warn(f"tiers: {tier.name}", table.doubts())
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.length > longest:
        raise UserError(
            f"task.max_length: {recipe.length}, the model reads at most {longest} tokens"
        )
    deal(recipe, load_simulated(recipe))


def check_simulated(recipe: FederatedRecipe) -> None:
    """As `check`, and what can be wrong with virtual clients, whose tiers are known before.

    Raises:
        UserError: what is wrong.
    """
    check(recipe)
    if recipe.secure is None:
        return
    counts = Counter(dealt_tiers(recipe))
    name, count = min(counts.items(), key=lambda item: item[1])
    if count < recipe.secure.least:
        raise UserError(
            f"secure.least: tier {name} has {count} of {recipe.clients.count} clients, a sum needs "
            f"{recipe.secure.least} of one tier; raise clients.count, or the tier's share"
        )
