"""Continual learning: classes, topics or clients that come and go, and what is forgotten of them.

A run's rounds are divided into phases. By classes or by a column, clients have only a phase's rows
while it lasts; by clients, only a phase's clients are there. No rows are kept for later (rehearsal
free): what holds on to the past is the loss (`local.keep`: what the received weights say of the
rows at hand, Li & Hoiem 2018, "Learning without Forgetting"; in federation Lee et al. 2022) and
class shares that do not push down what is absent (`local.calibrate`).

Forgetting of a phase is how far its score has fallen from the best that it has been (Chaudhry et
al. 2018, section 3); a run's is the mean over the phases that have passed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hwnas.federated.population import column_of
from hwnas.federated.recipe import ContinualSpec, FederatedRecipe

if TYPE_CHECKING:
    from datasets import Dataset


def phase_at(recipe: FederatedRecipe, number: int) -> int:
    """The phase, from 0, of a round."""
    spec = recipe.continual
    return (number - 1) * spec.phases // recipe.rounds if spec is not None else 0


def phases_of_rows(recipe: FederatedRecipe, rows: Dataset, classes: int) -> list[int]:
    """Each row's phase; all 0 where rows do not come and go.

    Args:
        rows: a split of the task, not encoded.
        classes: that the task has.

    Raises:
        UserError: a column is missing.
    """
    spec = recipe.continual
    if spec is None or spec.by == "clients":
        return [0] * len(rows)
    if spec.by == "classes":
        return [label * spec.phases // classes for label in rows["label"]]
    assert spec.column is not None
    of_source = column_of(recipe, spec.column)
    groups = sorted(set(of_source))
    phase = {group: i * spec.phases // len(groups) for i, group in enumerate(groups)}
    return [phase[of_source[source]] for source in rows["id"]]


def is_there(spec: ContinualSpec, phase: int, client: int, clients: int) -> bool:
    """Whether one of so many clients, by its place in their order, is there in a phase."""
    return spec.by != "clients" or client * spec.phases // clients == phase


def forgetting(judged: Sequence[Sequence[float]], phase: int) -> float | None:
    """How far scores of the phases before `phase` have fallen; None in the first.

    Args:
        judged: the scores on each phase's rows, every time that a model was judged.
    """
    if phase == 0 or not judged:
        return None
    now = judged[-1]
    return statistics.mean(
        max(scores[earlier] for scores in judged) - now[earlier] for earlier in range(phase)
    )
