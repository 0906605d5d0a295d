"""Who a client is, by its node config, and the rows that it has.

Rows are read, and tokenized, once for as many clients as a process keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError
from hwnas.federated.continual import phases_of_rows
from hwnas.federated.originals import original_of, recipe_of
from hwnas.federated.population import (
    Holding,
    deal,
    holding,
    load_simulated,
    own_holding,
    own_labels,
    own_rows,
)
from hwnas.tasks.kinds import encode_training

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr.app import Context

_KEPT = 64  # clients whose tokenized rows a process keeps


@dataclass(frozen=True)
class Identity:
    """Who a client is by its node config: a share of dealt rows, or a file of its own."""

    name: str
    partition: int | None = None
    data: str | None = None
    tier: str | None = None
    table: str | None = None
    budget: str | None = None
    memory_mb: float | None = None
    keep: str | None = None

    @classmethod
    def of(cls, context: Context) -> Identity:
        """By what Flower or whoever started the SuperNode said.

        Raises:
            UserError: neither rows nor a partition were given.
        """
        given = context.node_config
        name, partition = given.get("name"), given.get("partition-id")
        device: dict[str, Any] = {
            key: str(given[key]) for key in ("tier", "table", "budget", "keep") if key in given
        }
        memory = given.get("memory_mb")
        memory_mb = float(memory) if memory is not None else None
        if (data := given.get("data")) is not None:
            name = str(name or f"node-{context.node_id}")
            return cls(name, data=str(data), memory_mb=memory_mb, **device)
        if partition is None:
            raise UserError('node config: give data="FILE" and tier="NAME", or partition-id=NUMBER')
        name = str(name or f"client-{int(partition):04}")
        return cls(name, partition=int(partition), memory_mb=memory_mb, **device)


@lru_cache(maxsize=2)
def _dealt(text: str) -> tuple[Any, list[list[int]]]:
    recipe = recipe_of(text)
    task = load_simulated(recipe)
    return task, deal(recipe, task)


@lru_cache(maxsize=_KEPT)
def holding_of(text: str, who: Identity, labels: tuple[str, ...]) -> Holding:
    """A client's rows.

    Raises:
        UserError: they cannot be had.
    """
    recipe = recipe_of(text)
    if who.data is not None:
        rows = own_rows(recipe, Path(who.data).expanduser())
        return own_holding(recipe, rows, labels or own_labels(rows, recipe.task.task_kind))
    task, dealt = _dealt(text)
    assert who.partition is not None
    if who.partition >= len(dealt):
        raise UserError(
            f"partition-id {who.partition}: the recipe deals rows to {len(dealt)} clients"
        )
    found = holding(recipe, task, dealt[who.partition])
    if labels and list(labels) != found.labels:
        raise UserError(f"labels {list(labels)} are not those of the data, {found.labels}")
    return found


@lru_cache(maxsize=2 * _KEPT)
def rows_of(
    text: str, who: Identity, labels: tuple[str, ...], split: str, phase: int | None = None
) -> Dataset:
    """A client's rows of a split, `train` or `held_out`, as the task has them.

    Args:
        phase: only those of that phase of a continual run.
    """
    held = holding_of(text, who, labels)
    rows = held.train if split == "train" else held.held_out
    if phase is None:
        return rows
    of_rows = phases_of_rows(recipe_of(text), rows, len(labels))
    return rows.select([i for i, found in enumerate(of_rows) if found == phase])


@lru_cache(maxsize=2 * _KEPT)
def encoded_of(
    text: str, who: Identity, labels: tuple[str, ...], split: str, phase: int | None = None
) -> Dataset:
    """`rows_of` in tokens, in windows where the task has such."""
    rows, recipe = rows_of(text, who, labels, split, phase), recipe_of(text)
    if not len(rows):
        return rows
    tokenizer = original_of(text, labels).tokenizer
    kind = recipe.task.task_kind
    if split == "train":
        return encode_training(kind, rows, tokenizer, recipe.length)
    return kind.encode(rows, tokenizer, recipe.length)
