"""The contest for each budget: what the search and the finalists of all budgets share.

Structures are found and timed (`choosing`), finalists trained (`finalists`), and one wins. The best
widths compete with the best structure of fewer blocks. The largest budget is contested first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from hwnas.clock import StructureClock
from hwnas.elastic.supernet import SuperNetwork
from hwnas.front_search import FrontSearch, Remembered, Stop, one_by_one
from hwnas.importance.scores import Importance
from hwnas.inputs import Inputs
from hwnas.judge import Judge
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget
from hwnas.limits import Limits, limits_at
from hwnas.networks import Networks
from hwnas.search.front import EvaluateAll
from hwnas.second_search import read_corrections
from hwnas.selection import Allowance
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.timing import structure_clock

if TYPE_CHECKING:
    from hwnas.deployments import Deployment
    from hwnas.search.exact import BlockLoss
    from hwnas.training.memory import Memory


@dataclass
class Contest:
    """What the search and the finalists of every budget share."""

    inputs: Inputs
    table: LatencyTable
    space: SearchSpace
    scores: Importance
    networks: Networks  # the baseline's, and the students' start
    judge: Judge
    network: SuperNetwork | None  # the trained super-network; None where a rival shrinks directly
    time: Callable[[Subnetwork], float] | None = None  # ms of a structure; None: by the clock
    evaluate_all: EvaluateAll | None = None  # by workers; None: here, one after the other
    first: Sequence[Subnetwork] = ()  # structures that a search of the front looks at first
    trains: bool = True  # whether finalists are trained; else they keep the network's weights
    stoppable: bool = False  # whether Ctrl-C ends such a search, and not the run
    stop: Stop = field(default_factory=Stop)  # shared by all deployments
    deployments: Sequence[Deployment] = ()  # that compete with the target's own
    deployment: Deployment | None = None  # the one that is looked at; None: the target's own

    def at(self, deployment: Deployment) -> Contest:
        """The same contest at one of its other deployments, in milliseconds of the same clock."""
        return replace(self, table=deployment.table, deployments=(), deployment=deployment)

    @cached_property
    def elsewhere(self) -> list[Contest]:
        """At all of its other deployments, each with one search for all budgets."""
        return [self.at(deployment) for deployment in self.deployments]

    @property
    def deployment_name(self) -> str:
        """Of the one that is looked at; empty for the target's own."""
        return self.deployment.name if self.deployment else ""

    @property
    def reference_ms(self) -> float:
        """The full model's latency at the run's target, of which budgets are shares."""
        return self.deployment.reference_ms if self.deployment else self.table.reference_ms

    @property
    def scale(self) -> float:
        """Milliseconds on the run's clock for one of the table's."""
        return self.deployment.scale if self.deployment else 1.0

    @cached_property
    def clock(self) -> StructureClock:
        """Times structures of every budget."""
        inputs = self.inputs
        return structure_clock(
            inputs,
            self.deployment.target if self.deployment else inputs.target,
            self.table.reference_ms * self.scale,
            f"{self.deployment_name} structure".strip(),
        )

    def signal(self, subnetwork: Subnetwork) -> float:
        """The quality signal of a subnetwork, with whichever weights it has the better one.

        A super-network that also serves narrow structures is worse than the baseline for those that
        are almost whole; finalists start from whatever serves them best.
        """
        assert self.network is not None
        origins = (self.network, self.networks.baseline) if self.trains else (self.network,)
        return min(self.judge.of(network, subnetwork) for network in origins)

    @cached_property
    def front(self) -> FrontSearch:
        """The search that all budgets share, unless the recipe wants evolution for each."""
        inputs = self.inputs
        assert inputs.recipe.search.algorithm != "evolution"
        each = self.evaluate_all or one_by_one(self.signal)
        return FrontSearch(
            space=self.space,
            loss=self.loss,
            judge=self.judge,
            evaluate_all=Remembered(inputs.directory, each),
            directory=inputs.directory,
            algorithm=inputs.recipe.search.algorithm,
            evaluations=inputs.plan.evaluations * len(inputs.recipe.budgets),
            seed=inputs.recipe.seed,
            aims=[self.allowance(budget).aim for budget in inputs.recipe.budgets],
            start=self.first,
            stoppable=self.stoppable,
            deployment=self.deployment_name,
            allows=self.allows,
            within_size=self.within_limits if self.limits else None,
            stop=self.stop,
        )

    def allows(self, subnetwork: Subnetwork) -> bool:
        """Whether a subnetwork keeps every limit beside its latency's."""
        return self.limits is None or self.limits.allows(subnetwork)

    def within_limits(
        self, predictor: LatencyPredictor, budget_ms: float, hidden: int = 0
    ) -> LatencyPredictor:
        """The additive predictor, or one of latency and what else is limited together.

        Raises:
            BudgetError: nothing is within budget and limits at that residual width.
        """
        if self.limits is None:
            return predictor
        here = predictor.at_hidden(hidden)
        mixed = self.limits.mixed(here, self.space, self.loss, budget_ms, hidden)
        return replace(predictor, narrower={hidden: mixed}) if hidden else mixed

    def allowance(self, budget: str) -> Allowance:
        """What a budget allows, by the table's latency of the full model.

        Less, where the final file of an earlier search took longer than that.
        """
        measure = self.inputs.recipe.measure
        corrected = read_corrections(self.inputs.path).budgets.get(budget)
        return Allowance(
            text=budget,
            ms=Budget.parse(budget).in_ms(self.reference_ms)
            / (corrected.factor if corrected else 1),
            margin=measure.margin,
            tolerance=measure.tolerance,
        )

    @cached_property
    def limits(self) -> Limits | None:
        """What else is limited, where the recipe says so."""
        target = self.deployment.target if self.deployment else self.inputs.target
        found = limits_at(self.inputs, target)
        for limit in found:
            limit.check(self.space)
        return Limits(found) if found else None

    @cached_property
    def loss(self) -> BlockLoss:
        """Additive loss of widths, for the exact answers that seed the search."""
        return self.scores.loss()

    @cached_property
    def memory(self) -> Memory | None:
        """Of what the teacher says to the finalists, where they see rows again and again."""
        from hwnas.training.memory import Memory

        inputs = self.inputs
        steps = inputs.plan.winner_steps + inputs.plan.heir_steps * (len(inputs.recipe.budgets) - 1)
        return Memory.if_worth_it(
            self.networks.teacher,
            inputs.tokenizer,
            inputs.train,
            seen=steps * inputs.plan.batch,
            states=inputs.recipe.training.states_weight > 0,
            relations=inputs.recipe.training.relations_weight > 0,
        )
