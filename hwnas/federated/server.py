"""The Flower `ServerApp`: rounds of training and judging, each kept on disk when it ends.

    hello -> importance -> tiers -> (train -> aggregate -> judge) per round -> models of all tiers

Nothing here waits without a deadline, no answer is believed without a look, and what goes wrong
with a client is a line in `events.jsonl` and costs no more than its answer.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hwnas.anatomy import find_shape
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import HwnasError, UserError
from hwnas.federated.aggregation import Aggregator, aggregator, clipped, norm
from hwnas.federated.continual import is_there, phase_at
from hwnas.federated.exchange import Request
from hwnas.federated.judging import check_labels, judge, judge_at_clients, judge_phases
from hwnas.federated.messages import (
    IMPORTANCE,
    Done,
    GarbledError,
    Hello,
    Work,
    arrays_of,
    pack,
    unpack,
)
from hwnas.federated.originals import load_original
from hwnas.federated.outcome import finish
from hwnas.federated.parts import Part, Tensors
from hwnas.federated.privacy import NoisySum, largest_norm
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.roster import ASKED, EVENTS, Roster
from hwnas.federated.server_optimizers import ServerOptimizer
from hwnas.federated.state import ServerState
from hwnas.federated.summary import ClientScore, FederatedSummary, Round
from hwnas.federated.tiers import Device, Tier, tables_of, tiers_of
from hwnas.federated.updates import Updates
from hwnas.importance.kinds import measure
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.importance.spec import ImportanceSpec
from hwnas.models import load_config
from hwnas.progress import bar
from hwnas.rundir import RunDirectory
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.classification import check_classes, ordered

if TYPE_CHECKING:
    from flwr.app import RecordDict
    from flwr.serverapp import Grid

ROUNDS = "rounds.jsonl"
_SILENT = 3  # rounds without any answer, after which a run is given up


@dataclass
class Federation:
    """One run of the server.

    Args:
        roster: its clients.
    """

    recipe: FederatedRecipe
    directory: RunDirectory
    roster: Roster

    @property
    def path(self) -> Path:
        return self.directory.path

    def rounds(self) -> list[Round]:
        """Those that have ended."""
        return [Round.model_validate(line) for line in self.directory.lines(ROUNDS)]

    def run(self) -> ServerState:
        """All rounds that are missing.

        Raises:
            HwnasError: nobody answers any more, which is more than clients' troubles.
        """
        self.roster.greet(0, patient=True)
        state = ServerState.find(self.path, self.recipe) or self.start()
        self.roster.adopt(state, state.number + 1)  # also where no round is left
        done = [line for line in self.directory.lines(ROUNDS) if line["number"] <= state.number]
        self.directory.rewrite(ROUNDS, done)
        with bar("rounds", self.recipe.rounds) as advance:
            advance(state.number)
            silent = 0
            for number in range(state.number + 1, self.recipe.rounds + 1):
                found = self.round(state, number)
                silent = 0 if found.answered or not found.asked else silent + 1
                if silent == _SILENT:
                    raise HwnasError(
                        f"none of the {found.asked} clients that were asked has answered for "
                        f"{silent} rounds; see {self.path / EVENTS}, and go on with --resume"
                    )
                advance(1)
        return state

    def start(self) -> ServerState:
        """The original model with a new head, reordered by importance, and each tier's part of it.

        Raises:
            UserError: too few clients came, or they have no two labels.
            BudgetError: nothing fits a tier.
        """
        recipe, clients = self.recipe, self.roster.clients.values()
        if len(clients) < recipe.clients.least:
            raise UserError(
                f"clients.least: {recipe.clients.least} clients are needed, {len(clients)} "
                f"came within {recipe.clients.deadline_s:g} s; see {self.path / EVENTS}"
            )
        known = {name for hello in clients for name in hello.labels}
        labels = list(recipe.labels or ordered(known))
        if labels:
            check_classes(recipe.task.usual_metric, len(labels), "the clients' data")
        if recipe.evaluation.server:
            check_labels(recipe, labels)
        model, tokenizer = load_original(recipe, labels)
        network = SuperNetwork(model)
        state = ServerState(
            recipe, network, tokenizer, ServerOptimizer(recipe.aggregation), labels, {}
        )
        scores = measure(model, [], ImportanceSpec(kind="magnitude"))
        if recipe.importance == "clients":
            scores = self.client_importance(state) or scores
        # as clients are told them, so that theirs are sorted alike
        scores = Importance(
            tuple(t.float() for t in scores.heads), tuple(t.float() for t in scores.ffn)
        )
        reorder(model, scores)
        devices = [self.roster.devices[tier.name] for tier in recipe.tiers]
        state.tiers = tiers_of(devices, network.shape, recipe, scores)
        state.begin(self.path, scores)
        state.save(self.path)
        return state

    def client_importance(self, state: ServerState) -> Importance | None:
        """The sum of the scores that clients of the largest tier find on their own rows."""
        largest = max(self.recipe.tiers, key=lambda tier: self.roster.devices[tier.name].share)
        full = state.network.full
        # every client has the original model, whose weights these still are
        content = pack(Work(number=0, genome=full.genome, labels=state.labels))
        nodes = self.roster.by_name(self.roster.of_tier(largest.name))
        requests = (Request(node, IMPORTANCE, content) for node in nodes)
        robust = self.recipe.aggregation.rule != "mean"
        total: dict[str, torch.Tensor] = {}
        each: list[Tensors] = []

        def read(content: RecordDict) -> Tensors:
            unpack(content, Done)
            found = arrays_of(content)
            _check_scores(found, full)
            return found

        for _, _, found in self.roster.heard(requests, 0, read, "failed"):
            if robust and found is not None:
                each.append(found)
                continue
            for key, scores in (found or {}).items():
                total[key] = total.get(key, torch.zeros_like(scores, dtype=torch.float64)) + scores
        if each:
            total = _median_shares(each)
        if not total:
            return None
        depth = len(full.blocks)
        return Importance(
            heads=tuple(total[f"heads.{i}"] for i in range(depth)),
            ffn=tuple(total[f"ffn.{i}"] for i in range(depth)),
        )

    def round(self, state: ServerState, number: int) -> Round:
        """Train, aggregate, judge, and keep what came of it."""
        begin = time.perf_counter()
        self.roster.greet(number)
        self.roster.adopt(state, number)
        self.arrange(state, number)
        found = self.train(state, number)
        state.number = number
        spec = self.recipe.evaluation
        if number % spec.every == 0 or number == self.recipe.rounds:
            phases, lost = judge_phases(state, number, self.rounds())
            clients: list[ClientScore] = []
            sent = 0
            if spec.clients:
                clients, sent = judge_at_clients(self.roster, state, number)
            judged = {
                "scores": judge(state),
                "phase_scores": phases,
                "forgetting": lost,
                "clients": clients,
                "evaluation_bytes": sent,
            }
            found = found.model_copy(update=judged)
        found = found.model_copy(update={"seconds": round(time.perf_counter() - begin, 3)})
        # in this order: a line without its state is dropped and made again, not the other way round
        self.directory.append(ROUNDS, found.model_dump(mode="json"))
        state.save(self.path)
        return found

    def arrange(self, state: ServerState, number: int) -> None:
        """Choose which heads and neurons are the first ones in a round; here they stay."""

    def chosen(self, number: int) -> list[int]:
        """Nodes that a round asks, drawn from those that are there.

        By the seed, unless privacy rests on nobody's foretelling who is asked.
        """
        nodes = self.present(number)
        if not nodes:
            return []
        private = self.recipe.privacy
        if private is not None and private.kind == "central":
            # each by itself and unforeseeably, as the account of privacy assumes
            chance = random.SystemRandom()
            return [node for node in nodes if chance.random() < self.recipe.clients.share]
        rng = random.Random(f"{self.recipe.seed}/{number}/clients")
        picked = rng.sample(range(len(nodes)), self.recipe.asked(len(nodes)))
        return [nodes[i] for i in sorted(picked)]

    def present(self, number: int) -> list[int]:
        """Nodes that may be asked in a round, in the order of their clients' names."""
        nodes = self.roster.by_name(self.roster.clients)
        continual = self.recipe.continual
        if continual is None:
            return nodes
        phase, everybody = phase_at(self.recipe, number), len(nodes)
        return [n for i, n in enumerate(nodes) if is_there(continual, phase, i, everybody)]

    def train(self, state: ServerState, number: int) -> Round:
        """One round's training, aggregated into the state."""
        recipe, before = self.recipe, state.tensors
        nodes = self.chosen(number)
        if recipe.privacy is not None and recipe.privacy.kind == "local":
            # before anybody is asked: what clients have sent counts though a kill ends the round
            asked = self.directory.lines(ASKED)
            self.directory.rewrite(ASKED, [*asked, {"round": number}])
        updates = Updates(
            roster=self.roster,
            state=state,
            number=number,
            nodes=nodes,
            trained={
                name: self.grown(state, tier, number)
                for name, tier in state.tiers.items()
                if name in self.roster.devices  # else its client has not come back yet
            },
            work=lambda hello: self.work(state, hello, number),
            steps_of=lambda hello: self.steps_of(state, state.tiers[hello.tier]),
        )
        combined = self.aggregator(state, updates)
        for update in updates:
            most = self.largest_norm(update.part, state.whole)
            if most is not None and norm(update.change) > most:
                if recipe.privacy is None:
                    why = f"norm {norm(update.change):.3g}"
                    self.roster.event("clipped", number, updates.whose, why)
                update = update._replace(change=clipped(update.change, most))
            combined.add(update)
        # noise is added whoever came, or its absence would tell
        noisy = isinstance(combined, NoisySum)
        if noisy or combined.count >= recipe.aggregation.enough(recipe.clients.least):
            state.optimizer.step(before, combined.finish())
        else:
            self.roster.event("too few", number, why=f"{combined.count} answers")
        return Round(
            number=number,
            asked=len(nodes),
            answered=combined.count,
            loss=_weighted(updates.losses),
            down_bytes=updates.down,
            up_bytes=updates.up,
            steps=updates.steps,
            seconds=0.0,
            phase=phase_at(recipe, number),
        )

    def grown(self, state: ServerState, tier: Tier, number: int) -> Tier:
        """What a tier trains in a round: at first a smaller subnetwork, later its own or larger.

        The first `local.grow` of the rounds are divided among the smaller tiers, the smallest
        first: everybody learns those before the larger ones build on them. Of the rounds that are
        left, `local.reach` train the largest that the tier's memory holds: what it may cost to
        serve a model bounds what a device runs every day, not what it can learn in fewer steps.
        """
        early = self.recipe.local.grow * self.recipe.rounds
        late, reach = number - math.floor(early), self.recipe.reach
        if late > 0:
            turn = math.floor(late * reach) > math.floor((late - 1) * reach)
            return self.within_memory(state, tier) if turn else tier
        smaller, others = state.smaller(tier)[::-1], len(state.tiers) - 1
        if not smaller:
            return tier
        stage = int((number - 1) * others / early)
        return [*smaller, tier][min(stage, len(smaller))]

    def within_memory(self, state: ServerState, tier: Tier) -> Tier:
        """The largest tier's subnetwork that a tier's devices have the memory to train."""
        device, shape = self.roster.devices[tier.name], state.network.shape
        held = [
            other
            for other in state.tiers.values()
            if device.holds(other.subnetwork, shape, self.recipe.batch_tokens)
        ]
        return max((tier, *held), key=lambda other: other.macs)

    def aggregator(self, state: ServerState, updates: Updates) -> Aggregator:
        """How this round's updates become one change."""
        private = self.recipe.privacy
        if private is None or private.kind == "local":
            return aggregator(self.recipe.aggregation, state.tensors)
        shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
        present = self.present(updates.number)
        clients = Counter(self.roster.clients[node].tier for node in present)
        expected: dict[Part, float] = {}
        for tier, count in clients.items():
            part = updates.parts[updates.trained[tier].name]
            expected[part] = expected.get(part, 0.0) + count * self.recipe.clients.share
        return NoisySum(shapes, private, expected)

    def largest_norm(self, part: Part, whole: Part) -> float | None:
        """What an update's norm may be; clients whose updates are hidden have clipped them."""
        private = self.recipe.privacy
        if self.recipe.secure is not None:
            return None
        if private is None:
            return self.recipe.aggregation.largest_norm
        return largest_norm(private, part, whole) if private.kind == "central" else None

    def work(self, state: ServerState, hello: Hello, number: int) -> Work:
        """What a client trains in a round."""
        own = state.tiers[hello.tier]
        tier = self.grown(state, own, number)
        # as much computing as the client's own subnetwork would take
        steps = self.steps_of(state, own) / self.step_of(state, tier)
        nested = state.smaller(tier) if self.recipe.local.nested else []
        continual = self.recipe.continual
        of_rows = continual is not None and continual.by != "clients"
        return Work(
            number=number,
            genome=tier.genome,
            labels=state.labels,
            phase=phase_at(self.recipe, number) if of_rows else None,
            smaller=[other.genome for other in nested],
            steps=max(1, round(steps)),
            rate=self.recipe.rate_at(number),
            seed=self.recipe.seed_of(number, hello.name),
        )

    def steps_of(self, state: ServerState, tier: Tier) -> float:
        """What a client's round costs, in training steps of the whole model."""
        return self.recipe.steps_at(tier.name) * self.step_of(state, tier)

    def step_of(self, state: ServerState, tier: Tier) -> float:
        """What a step costs, with the subnetworks nested in it."""
        smaller = [other.macs for other in state.smaller(tier)]
        count = min(self.recipe.local.nested, len(smaller))
        return tier.macs + (count * statistics.mean(smaller) if count else 0.0)


def _weighted(losses: Sequence[tuple[float, int]]) -> float | None:
    total = sum(rows for _, rows in losses)
    return sum(loss * rows for loss, rows in losses) / total if total else None


def _median_shares(each: Sequence[Tensors]) -> Tensors:
    """Of every part, the median of its shares of what each client's scores add up to."""
    sums = [sum(float(scores.double().sum()) for scores in one.values()) for one in each]
    return {
        key: torch.stack(
            [one[key].double() / max(most, 1e-300) for one, most in zip(each, sums, strict=True)]
        ).quantile(0.5, dim=0)
        for key in each[0]
    }


def _check_scores(found: Tensors, full: Subnetwork) -> None:
    """Raise `GarbledError` unless these are scores of every head and neuron."""
    wanted = {f"heads.{i}": block.heads for i, block in enumerate(full.blocks)}
    wanted |= {f"ffn.{i}": block.ffn for i, block in enumerate(full.blocks)}
    for key, size in wanted.items():
        scores = found.get(key)
        if (
            scores is None
            or tuple(scores.shape) != (size,)
            or not scores.is_floating_point()
            or not bool((scores.isfinite() & (scores >= 0)).all())
        ):
            raise GarbledError(f"scores {key} are missing, of another size, not finite or below 0")
    if found.keys() - wanted.keys():
        raise GarbledError(f"scores {min(found.keys() - wanted.keys())} were not asked for")


def federate(
    grid: Grid,
    recipe: FederatedRecipe,
    out: Path,
    *,
    resume: bool,
    kind: type[Federation] = Federation,
) -> FederatedSummary:
    """Run a recipe over Flower's grid; write models and `summary.json` in the folder `out`.

    Args:
        resume: go on with the run in `out`, if there is one.
        kind: of the server's rounds.

    Raises:
        UserError, BudgetError: as `Federation.start`.
    """
    from hwnas.federated.recipe import load_federated

    begin = time.perf_counter()
    directory = RunDirectory.open(out, recipe, resume, load=load_federated)
    try:
        config = load_config(recipe.model)
        tables = tables_of(recipe, config, out / "tables")
        devices = {tier.name: Device(tier, tables[tier.name]) for tier in recipe.tiers}
        roster = Roster(grid, recipe, directory, devices, find_shape(config))
        federation = kind(recipe, directory, roster)
        state = federation.run()
        return finish(roster, state, federation.rounds(), time.perf_counter() - begin)
    finally:
        directory.close()
