"""Whether anything has to be left out: the whole model, served otherwise, may be within a budget.

Where eight bits alone meet every budget and lose next to nothing, a smaller structure can be better
by luck only. Then there is no super-network to train and nothing to search.

Assumption: what a deployment loses is measured on the baseline's own files (`deployments`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.files import write_json
from hwnas.latency.target import Budget
from hwnas.progress import say
from hwnas.selection import Selection, TimedStructure
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from hwnas.contest import Contest
    from hwnas.deployments import Deployment

KIND = "whole"


def take_whole(contest: Contest) -> bool:
    """Select the whole model for all budgets, if at some deployment it is good enough for each.

    Good enough is a loss, on the rows that judge finalists, that is higher than the baseline's by
    the recipe's `search.enough` of it at most. Of several, the one that loses least.

    Returns:
        Whether `selection/` holds it now for every budget.
    """
    inputs = contest.inputs
    found: dict[str, Deployment] = {}
    for budget in inputs.recipe.budgets:
        fitting = [one for one in contest.deployments if _fits(contest, one, budget)]
        if not fitting:
            return False
        found[budget] = min(fitting, key=lambda one: (one.anchor.loss, one.anchor.ratio))
    for budget, deployment in found.items():
        path = inputs.path / "selection" / f"{Budget.parse(budget).folder}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, _selection(contest, deployment))
        say(
            f"budget {budget}: the whole model in {deployment.name} takes "
            f"{deployment.anchor.ratio:.2f} of the baseline's latency, its loss is "
            f"{deployment.worse:+.1%}: nothing is left out (search.enough: 0 searches nevertheless)"
        )
    return True


def _fits(contest: Contest, deployment: Deployment, budget: str) -> bool:
    """Whether the whole model at a deployment is within the budget and limits, and good enough."""
    if deployment.worse > contest.inputs.recipe.search.enough:
        return False
    if deployment.anchor.ratio * contest.reference_ms > contest.allowance(budget).ms:
        return False
    return contest.at(deployment).allows(Subnetwork.full(contest.inputs.shape))


def _selection(contest: Contest, deployment: Deployment) -> Selection:
    measured_ms = deployment.anchor.ratio * contest.reference_ms
    whole = TimedStructure(
        kind=KIND,
        genome=Subnetwork.full(contest.inputs.shape).genome,
        signal=deployment.anchor.signal,
        predicted_ms=measured_ms,
        measured_ms=measured_ms,
        round=0,
        deployment=str(deployment.target),
    )
    return Selection(structures=[whole], timed=[whole], rounds=0, scales={})
