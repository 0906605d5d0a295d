"""Whose rows are whose: one data set dealt out to virtual clients, or a client's own file.

A simulation deals out the task's training rows; validation is left alone and test is the server's.
The same seed always deals the same way, so every process can work it out for itself. A client with
a file of its own reads that and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.federated.recipe import Dirichlet, FederatedRecipe, Groups
from hwnas.tasks.kinds import Kind
from hwnas.tasks.loading import Task, is_file, load_task
from hwnas.tasks.rows import Columns, Row, read_file
from hwnas.tasks.splits import key, position

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset

    Indices = list[int]


@dataclass(frozen=True, eq=False)
class Holding:
    """One client's rows, as splits of their kind of task."""

    train: Dataset
    held_out: Dataset
    labels: list[str]  # that the client knows of; none where there are no classes


def load_simulated(recipe: FederatedRecipe) -> Task:
    """The task whose training rows are dealt out.

    Raises:
        UserError: in one line, what is wrong with the data.
    """
    try:
        return load_task(recipe.task.model_copy(update={"max_length": recipe.length}))
    except UserError as error:
        raise UserError(f"task: {error}") from None


def deal(recipe: FederatedRecipe, task: Task) -> list[list[int]]:
    """Numbers of training rows of every client.

    Raises:
        UserError: the split is not for such a task, or there are too few rows or groups.
    """
    split, count = recipe.clients.split, recipe.clients.count
    rng = np.random.default_rng([recipe.seed, 17])
    if isinstance(split, Dirichlet):
        dealt = _dirichlet(_classes(task), count, split, rng)
    elif isinstance(split, Groups):
        dealt = _grouped(column_of(recipe, split.column), task, count)
    else:
        dealt = [list(part) for part in np.array_split(rng.permutation(len(task.train)), count)]
    short = min(range(count), key=lambda i: len(dealt[i]))
    if len(dealt[short]) < 2:
        raise UserError(
            f"clients.count: {count} clients are too many for {len(task.train)} training rows: "
            f"client {short} has {len(dealt[short])}; give fewer clients or more data"
        )
    most = recipe.clients.rows
    # rows of tasks come in the order of their hash, so a part of them is a fair sample
    return [sorted(int(i) for i in part)[:most] for part in dealt]


def _classes(task: Task) -> npt.NDArray[np.int64]:
    if not task.labels or "label" not in task.train.column_names:
        raise UserError(
            "clients.split: dirichlet spreads classes, and the task has none of texts; choose even"
        )
    return np.asarray(task.train["label"], dtype=np.int64)


def _dirichlet(
    classes: npt.NDArray[np.int64], count: int, split: Dirichlet, rng: np.random.Generator
) -> list[Indices]:
    """Every class's rows in shares drawn for it; who has too few gets rows of the richest."""
    if count * split.least > len(classes):
        raise UserError(
            f"clients.split.least: {count} clients with {split.least} rows each, there are "
            f"{len(classes)} training rows; give fewer clients or more data"
        )
    dealt: list[Indices] = [[] for _ in range(count)]
    for one in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == one))
        shares = rng.dirichlet([split.alpha] * count)
        borders = (shares.cumsum()[:-1] * len(rows)).round().astype(int)
        for client, part in zip(dealt, np.split(rows, borders), strict=True):
            client.extend(part.tolist())
    for client in dealt:
        while len(client) < split.least:
            richest = max(dealt, key=len)
            client.append(richest.pop(int(rng.integers(len(richest)))))
    return dealt


def _grouped(groups: Sequence[str], task: Task, count: int) -> list[Indices]:
    """The largest groups, one a client; the others join the client that has the fewest rows."""
    rows: dict[str, Indices] = defaultdict(list)
    for i, source in enumerate(task.train["id"]):
        rows[groups[source]].append(i)
    if len(rows) < count:
        raise UserError(
            f"clients.count: {count} clients, the column has {len(rows)} groups; give fewer"
        )
    dealt: list[Indices] = [[] for _ in range(count)]
    for _, part in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])):
        min(dealt, key=len).extend(part)
    return dealt


def column_of(recipe: FederatedRecipe, name: str) -> list[str]:
    """A column of the source that the task itself does not read.

    Raises:
        UserError: the data are no file, the column is missing, or a row has nothing there.
    """
    if not is_file(recipe.task.data):
        raise UserError(f"column {name!r}: is read from a CSV or JSONL file; give such task.data")
    return _read_column(Path(recipe.task.data).expanduser(), name)


@lru_cache(maxsize=4)
def _read_column(path: Path, name: str) -> list[str]:
    def parse(record: Any, columns: Columns, where: str) -> tuple[Any, Any]:
        if record.get(name) in (None, ""):
            raise UserError(f"{where}: no group in column {name!r}")
        return (str(record[name]),), ""

    return [row.texts[0] for row in read_file(path, Columns((name,), ""), parse)]


def holding(recipe: FederatedRecipe, task: Task, rows: Indices) -> Holding:
    """A virtual client's rows, its held-out ones apart."""
    held = _held_out(len(rows), recipe.clients.held_out)
    mixed = np.random.default_rng([recipe.seed, 23, *rows[:2]]).permutation(rows).tolist()
    return Holding(
        train=task.train.select(sorted(mixed[held:])),
        held_out=task.train.select(sorted(mixed[:held])),
        labels=task.labels,
    )


def _held_out(rows: int, share: float) -> int:
    return min(rows - 1, max(1, round(rows * share)))


def own_rows(recipe: FederatedRecipe, path: Path) -> list[Row]:
    """The rows of a client's own file, in the order of their hash.

    Raises:
        UserError: in one line, what is wrong with the file.
    """
    kind = recipe.task.task_kind
    rows = read_file(path, recipe.task.columns, kind.parse)
    if len(rows) < 2:
        raise UserError(f"{path}: one row is too few; a client needs rows to train and to judge by")
    return sorted(rows, key=lambda row: (position(key(kind.identity(row.texts))), row.id))


def own_labels(rows: Sequence[Row], kind: Kind) -> list[str]:
    """The names of classes that occur in a client's rows; none where there are no classes."""
    if kind.task not in ("text-classification", "token-classification"):
        return []
    found = (row.label if isinstance(row.label, tuple) else (row.label,) for row in rows)
    return sorted({str(label) for labels in found for label in labels})


def own_holding(recipe: FederatedRecipe, rows: Sequence[Row], labels: Sequence[str]) -> Holding:
    """The rows of a client's own file as the run's labels number them.

    Raises:
        UserError: a row has a label that the run does not know.
    """
    kind = recipe.task.task_kind
    unknown = set(own_labels(rows, kind)) - set(labels)
    if labels and unknown:
        raise UserError(f"label {min(unknown)!r} is none of the run's: {', '.join(labels)}")
    held = _held_out(len(rows), recipe.clients.held_out)
    return Holding(
        train=kind.split(rows[held:][: recipe.clients.rows], labels),
        held_out=kind.split(rows[:held], labels),
        labels=list(labels),
    )
