"""A budget's finalists: its structures, trained on in successive halving from the best weights.

A smaller budget's finalists may go on from a larger one's winner: nested widths let one training
serve many budgets. A rival's one structure is trained directly for the same total compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.elastic.supernet import SuperNetwork
from hwnas.latency.target import Budget
from hwnas.models import load, on_gpu
from hwnas.networks import resting
from hwnas.selection import Selection, TimedStructure
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Finalist
from hwnas.tasks.predict import predict
from hwnas.training.baseline import read_history
from hwnas.training.compute import FORWARD, step_cost
from hwnas.training.halving import START, Entrant, Rung, halve, rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwnas.contest import Contest


def train_finalists(
    contest: Contest,
    budget: str,
    selection: Selection,
    *,
    steps: int | None = None,
    forerunner: Winner | None = None,
) -> Winner:
    """`finalists/<budget>/`: the structures trained on in successive halving; the best of them.

    Args:
        steps: training steps that the winner takes here; by default, as the plan says.
        forerunner: the winner of a larger budget, whose weights may be cut down for this one.
    """
    inputs = contest.inputs
    folder = inputs.path / "finalists" / Budget.parse(budget).folder
    origins = _origins(contest, forerunner)
    entrants = [_entrant(contest, s, origins, steps) for s in selection.structures]
    served = {str(d.target): d.name for d in contest.deployments}
    examples = inputs.train if contest.memory is None else contest.memory.examples
    seen = inputs.plan.supernet_steps if contest.network else 0
    if forerunner is not None:
        seen += inputs.plan.winner_steps
    rungs = [Rung(None, 1)]
    if len(entrants) > 1:
        first = min(inputs.plan.first_rung_steps, *(entrant.steps - 1 for entrant in entrants))
        rungs = [Rung(first, 1), Rung(None, 1)]
    teacher = contest.networks.teacher
    with resting(o.network for o in origins.values() if o.network.model is not teacher):
        halving = halve(
            entrants,
            lambda entrant: origins[entrant.start].extract(entrant.subnetwork),
            inputs.tokenizer,
            rows(examples, seen * inputs.plan.batch, len(examples)),
            inputs.choice_validation,
            inputs.task.kind,
            inputs.task.metric,
            rungs,
            inputs.optimization(0, inputs.recipe.training.finalist_rate, 10),
            folder,
            teacher,
            contest.memory,
        )
    won = {(r.entrant, r.rung) for r in halving.results if r.rung > 0} | {
        (halving.winner, r) for r in range(START, len(rungs))
    }
    standing = [
        Finalist(
            budget=budget,
            round=selection.rounds,
            kind=entrants[r.entrant].kind,
            genome=entrants[r.entrant].subnetwork.genome,
            start=entrants[r.entrant].start,
            rung=r.rung,
            steps=r.steps,
            loss=r.loss,
            metric=r.metric,
            survived=(r.entrant, r.rung) in won,
            deployment=served.get(selection.structures[r.entrant].deployment, ""),
        )
        for r in halving.results
    ]
    winner = entrants[halving.winner]
    return Winner(
        budget=budget,
        structure=selection.structures[halving.winner],
        start=winner.start,
        weights=halving.weights,
        steps=origins[winner.start].steps + halving.steps,
        rounds=selection.rounds,
        standing=standing,
    )


@dataclass(frozen=True)
class Winner:
    """The trained winner of a budget's contest."""

    budget: str
    structure: TimedStructure
    start: str
    weights: Path
    steps: int  # that its weights have seen, all stages
    rounds: int  # of search that the budget took
    standing: list[Finalist]


@dataclass(frozen=True)
class Origin:
    """Weights that finalists may be cut from."""

    network: SuperNetwork
    within: Subnetwork  # what of the full model the network holds
    steps: int  # that its weights have seen, all stages
    heir: bool = False  # whether what is cut from it needs the fewer steps of an heir
    finished: bool = False  # whether it is the baseline, of which a cut may be best as it is

    def holds(self, subnetwork: Subnetwork) -> bool:
        """Whether the subnetwork is a prefix of it in every block."""
        pairs = zip(subnetwork.blocks, self.within.blocks, strict=True)
        if self.within.hidden and not 0 < subnetwork.hidden <= self.within.hidden:
            return False
        return all(a.heads <= b.heads and a.ffn <= b.ffn for a, b in pairs)

    def nested(self, subnetwork: Subnetwork) -> Subnetwork:
        """The subnetwork in terms of the blocks that the network has."""
        blocks = tuple(subnetwork.blocks[i] for i, _ in self.within.kept)
        hidden = subnetwork.hidden
        return Subnetwork(blocks, 0 if hidden == self.within.hidden else hidden)

    def extract(self, subnetwork: Subnetwork) -> PreTrainedModel:
        """The subnetwork as a dense model."""
        return self.network.extract(self.nested(subnetwork))

    def divergence(self, subnetwork: Subnetwork, contest: Contest) -> float:
        """From the teacher, on the search's validation rows."""
        with self.network.as_subnetwork(self.nested(subnetwork)) as model:
            answers = predict(model, contest.inputs.search_validation)
        return contest.judge.divergence(answers)


_BASELINE = "baseline"
_WHOLE = ("teacher", _BASELINE)


def _origins(contest: Contest, forerunner: Winner | None) -> dict[str, Origin]:
    """Every origin by its name in `finalists.jsonl`."""
    inputs = contest.inputs
    full = Subnetwork.full(inputs.shape)
    history = read_history(inputs.path / "baseline")
    start_steps, all_steps = history.start_steps, history.steps
    begun, trained = contest.networks.start, contest.networks.baseline
    origins = {
        # a baseline that has converged, or was trained by adapters, is itself the start
        "teacher": Origin(begun, full, start_steps, finished=start_steps == all_steps),
        # trained already, so what is cut of it needs the fewer steps of an heir
        _BASELINE: Origin(trained, full, all_steps, heir=True, finished=True),
    }
    if contest.network is not None:
        steps = start_steps + inputs.plan.supernet_steps
        origins["supernet"] = Origin(contest.network, full, steps)
    if forerunner is not None:
        network = SuperNetwork(on_gpu(load(forerunner.weights)))
        within = forerunner.structure.subnetwork
        origins[f"{forerunner.budget} winner"] = Origin(
            network, within, forerunner.steps, heir=True
        )
    return origins


def _entrant(
    contest: Contest, structure: TimedStructure, origins: dict[str, Origin], steps: int | None
) -> Entrant:
    """Start from whichever weights serve the structure best: those that diverge least.

    But leaving out blocks is judged by training only: there the super-network's weights were the
    worse start (METHODS), so a structure starts from weights of the whole model, the students' or
    the baseline's, or from such as were trained with just its blocks.
    """
    subnetwork = structure.subnetwork
    fitting = {
        name: origin
        for name, origin in origins.items()
        if origin.holds(subnetwork) and (name in _WHOLE or origin.within.depth == subnetwork.depth)
    }
    start = "teacher"
    if len(fitting) > 1:
        start = min(fitting, key=lambda name: fitting[name].divergence(subnetwork, contest))
    if steps is None:
        plan = contest.inputs.plan
        steps = plan.heir_steps if origins[start].heir else plan.winner_steps
    losses = {str(d.target): d.anchor.loss for d in contest.deployments}
    whole = start == _BASELINE
    training = contest.inputs.recipe.training
    return Entrant(
        structure.kind,
        subnetwork,
        start,
        steps,
        losses.get(structure.deployment, 0.0),
        trained=origins[start].finished,
        whole=origins[start].finished and subnetwork == origins[start].within,
        rate=training.baseline_rate if whole and contest.inputs.recipe.adapters is None else None,
    )


def rival_steps(contest: Contest, selection: Selection, compute: float) -> int:
    """Steps that `compute` full-model steps allow the one structure of a rival."""
    structure = selection.structures[0].subnetwork
    cost = step_cost(structure, contest.inputs.shape, contest.inputs.mean_length)
    return max(1, round(compute / (cost + FORWARD)))
