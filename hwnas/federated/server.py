"""The Flower `ServerApp`: rounds of training and judging, each kept on disk when it ends.

    hello -> importance -> tiers -> (train -> aggregate -> judge) per round -> models of all tiers

Nothing here waits without a deadline, no answer is believed without a look, and what goes wrong
with a client is a line in `events.jsonl` and costs no more than its answer.
"""

from __future__ import annotations

import random
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hwnas.anatomy import Shape, find_shape
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import HwnasError, UserError
from hwnas.federated.aggregation import Aggregator, Update, aggregator, clipped, norm
from hwnas.federated.client import load_original, original_of
from hwnas.federated.continual import forgetting, is_there, phase_at, phases_of_rows
from hwnas.federated.exchange import Answer, Request, ask
from hwnas.federated.messages import (
    HELLO,
    IMPORTANCE,
    Done,
    GarbledError,
    Hello,
    IdleError,
    Work,
    arrays_of,
    pack,
    unpack,
    weights,
)
from hwnas.federated.parts import Part, Tensors
from hwnas.federated.population import load_simulated
from hwnas.federated.privacy import NoisySum, epsilon, largest_norm
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server_optimizers import ServerOptimizer
from hwnas.federated.state import ServerState
from hwnas.federated.summary import ClientScore, FederatedSummary, Round, TierResult
from hwnas.federated.tiers import Device, Tier, own_device, tables_of, tiers_of
from hwnas.files import replacing, write_json
from hwnas.importance.kinds import measure
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.importance.spec import ImportanceSpec
from hwnas.models import load_config
from hwnas.progress import bar
from hwnas.rundir import RunDirectory
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.classification import check_classes, ordered
from hwnas.tasks.predict import predict

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr.app import ArrayRecord
    from flwr.serverapp import Grid

EVENTS = "events.jsonl"
ROUNDS = "rounds.jsonl"
_SILENT = 3  # rounds without any answer, after which a run is given up
_NUMBER = 4  # bytes of a weight
_LOOK_S = 0.5  # between two looks for clients that connect


@dataclass
class Federation:
    """One run of the server.

    Args:
        grid: Flower's way to the clients.
        devices: of the recipe's tiers, by name; those that clients bring are added.
        shape: of the original model.
    """

    grid: Grid
    recipe: FederatedRecipe
    directory: RunDirectory
    devices: dict[str, Device]
    shape: Shape
    roster: dict[int, Hello] = field(default_factory=dict)  # nodes that have said who they are
    refused: set[int] = field(default_factory=set)  # nodes that are not asked again, while there

    @property
    def path(self) -> Path:
        return self.directory.path

    def event(self, what: str, number: int, client: str = "", why: str = "") -> None:
        """Note what happened, to whom, in which round."""
        about = {"event": what, "round": number, "client": client, "why": why}
        self.directory.append(EVENTS, {"time": time.time()} | about)

    def run(self) -> ServerState:
        """All rounds that are missing.

        Raises:
            HwnasError: nobody answers any more, which is more than clients' troubles.
        """
        self.greet(0, patient=True)
        state = ServerState.find(self.path, self.recipe) or self.start()
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

    def greet(self, number: int, *, patient: bool = False) -> None:
        """Ask nodes that are new who they are, and forget those that have gone.

        Args:
            patient: wait until as many have answered as a round needs, or the deadline.
        """
        end = time.monotonic() + self.recipe.clients.deadline_s
        while True:
            nodes = set(self.grid.get_node_ids())
            for gone in self.roster.keys() - nodes:
                self.event("gone", number, self.roster.pop(gone).name)
            self.refused &= nodes
            self._greet(number, sorted(nodes - self.roster.keys() - self.refused), end)
            enough = len(self.roster) >= self.recipe.clients.least
            if enough or not patient or time.monotonic() >= end:
                return
            time.sleep(_LOOK_S)

    def _greet(self, number: int, nodes: Sequence[int], end: float) -> None:
        names = {hello.name for hello in self.roster.values()}
        requests = (
            Request(node, HELLO, pack(Work(number=number, genome=[], labels=[]))) for node in nodes
        )
        left = max(1.0, end - time.monotonic())
        for answer in self._ask(requests, number, left):
            try:
                hello = unpack(_content(answer), Hello)
                if hello.device is not None:
                    own = own_device(hello.device, hello.tier, self.shape)
                    self.devices[hello.tier] = own
                elif hello.tier not in self.devices:
                    known = ", ".join(self.devices)
                    raise GarbledError(f"tier {hello.tier!r} is none of the run's: {known}")
                if hello.name in names:
                    raise GarbledError(f"another client is {hello.name!r} already")
            except HwnasError as error:
                self.event("refused", number, f"node-{answer.node}", str(error))
                if not answer.late:
                    self.refused.add(answer.node)
                continue
            names.add(hello.name)
            self.roster[answer.node] = hello
            self.event("joined", number, hello.name)

    def _ask(self, requests: Any, number: int, deadline_s: float) -> Iterator[Answer]:
        at_once = self.recipe.clients.at_once
        return ask(self.grid, requests, number=number, at_once=at_once, deadline_s=deadline_s)

    def start(self) -> ServerState:
        """The original model with a new head, reordered by importance, and each tier's part of it.

        Raises:
            UserError: too few clients came, or they have no two labels.
            BudgetError: nothing fits a tier.
        """
        recipe = self.recipe
        if len(self.roster) < recipe.clients.least:
            raise UserError(
                f"clients.least: {recipe.clients.least} clients are needed, {len(self.roster)} "
                f"came within {recipe.clients.deadline_s:g} s; see {self.path / EVENTS}"
            )
        labels = list(recipe.labels or ordered({n for h in self.roster.values() for n in h.labels}))
        if labels:
            check_classes(recipe.task.usual_metric, len(labels), "the clients' data")
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
        devices = [self.devices[tier.name] for tier in recipe.tiers]
        state.tiers = tiers_of(devices, network.shape, recipe, scores)
        state.begin(self.path, scores)
        state.save(self.path)
        return state

    def adopt(self, state: ServerState, number: int) -> None:
        """Find the subnetworks of devices that clients have brought."""
        for node, hello in list(self.roster.items()):
            if hello.tier in state.tiers:
                continue
            device = self.devices[hello.tier]
            try:
                found = tiers_of([device], self.shape, self.recipe, state.scores)
            except HwnasError as error:
                self.event("refused", number, self.roster.pop(node).name, str(error))
                self.refused.add(node)
                continue
            state.tiers |= found

    def client_importance(self, state: ServerState) -> Importance | None:
        """The sum of the scores that clients of the largest tier find on their own rows."""
        largest = max(self.recipe.tiers, key=lambda tier: self.devices[tier.name].share)
        full = state.network.full
        # every client has the original model, whose weights these still are
        content = pack(Work(number=0, genome=full.genome, labels=state.labels))
        nodes = [node for node, hello in self.roster.items() if hello.tier == largest.name]
        nodes.sort(key=lambda node: self.roster[node].name)
        requests = (Request(node, IMPORTANCE, content) for node in nodes)
        total: dict[str, torch.Tensor] = {}
        for answer in self._ask(requests, 0, self.recipe.clients.deadline_s):
            name = self.roster[answer.node].name
            try:
                unpack(_content(answer), Done)
                found = arrays_of(_content(answer))
                _check_scores(found, full)
            except HwnasError as error:
                self.event("failed", 0, name, str(error))
                continue
            for key, scores in found.items():
                total[key] = total.get(key, torch.zeros_like(scores, dtype=torch.float64)) + scores
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
        self.greet(number)
        self.adopt(state, number)
        self.arrange(state, number)
        found = self.train(state, number)
        state.number = number
        spec = self.recipe.evaluation
        if number % spec.every == 0 or number == self.recipe.rounds:
            scores = self.judge(state)
            found = found.model_copy(update=self.judge_phases(state, number))
            clients, sent = self.judge_at_clients(state, number) if spec.clients else ([], 0)
            found = found.model_copy(
                update={"scores": scores, "clients": clients, "evaluation_bytes": sent}
            )
        found = found.model_copy(update={"seconds": round(time.perf_counter() - begin, 3)})
        state.save(self.path)
        self.directory.append(ROUNDS, found.model_dump(mode="json"))
        return found

    def arrange(self, state: ServerState, number: int) -> None:
        """Choose which heads and neurons are the first ones in a round; here they stay."""

    def chosen(self, number: int) -> list[int]:
        """Nodes that a round asks; drawn by the seed from those that are there."""
        nodes = sorted(self.roster, key=lambda node: self.roster[node].name)
        continual = self.recipe.continual
        if continual is not None:
            phase, everybody = phase_at(self.recipe, number), len(nodes)
            nodes = [n for i, n in enumerate(nodes) if is_there(continual, phase, i, everybody)]
        if not nodes:
            return []
        rng = random.Random(f"{self.recipe.seed}/{number}/clients")
        private = self.recipe.privacy
        if private is not None and private.kind == "central":
            # each by itself, as the account of privacy assumes
            return [node for node in nodes if rng.random() < self.recipe.clients.share]
        picked = rng.sample(range(len(nodes)), self.recipe.asked(len(nodes)))
        return [nodes[i] for i in sorted(picked)]

    def train(self, state: ServerState, number: int) -> Round:
        """One round's training, aggregated into the state."""
        recipe, before = self.recipe, state.tensors
        parts = {name: state.part(tier.subnetwork) for name, tier in state.tiers.items()}
        sent: dict[str, Tensors] = {}
        packed: dict[str, ArrayRecord] = {}
        nodes = self.chosen(number)
        order = self.order(state)
        trained = {name: self.grown(state, tier, number) for name, tier in state.tiers.items()}

        def requests() -> Iterator[Request]:
            for node in nodes:
                hello = self.roster[node]
                name = trained[hello.tier].name
                if name not in sent:
                    sent[name] = parts[name].cut(before)
                    packed[name] = weights(sent[name])
                work = self.work(state, hello, number)
                yield Request(node, "train", pack(work, packed[name], order))

        combined = self.aggregator(state, parts, trained)
        losses: list[tuple[float, int]] = []
        down = up = 0
        steps = 0.0
        for answer in self._ask(requests(), number, recipe.clients.deadline_s):
            hello = self.roster[answer.node]
            down, up = down + answer.down, up + answer.up
            try:
                done = unpack(_content(answer), Done)
                name = trained[hello.tier].name
                part = parts[name]
                after = part.sent_back(arrays_of(_content(answer)))
            except HwnasError as error:
                what = "idle" if isinstance(error, IdleError) else "failed"
                self.event("late" if answer.late else what, number, hello.name, str(error))
                continue
            change = {
                piece.name: after[piece.name] - sent[name][piece.local] for piece in part.trained
            }
            most = self.largest_norm(part, state.whole)
            if most is not None and norm(change) > most:
                if recipe.privacy is None:
                    self.event("clipped", number, hello.name, f"norm {norm(change):.3g}")
                change = clipped(change, most)
            weight = float(done.rows) if recipe.aggregation.weigh == "examples" else 1.0
            combined.add(Update(part, change, max(weight, 1.0)))
            if done.loss is not None:
                losses.append((done.loss, done.rows))
            steps += self.steps_of(state, state.tiers[hello.tier])
        # noise is added whoever came, or its absence would tell
        noisy = isinstance(combined, NoisySum)
        if noisy or combined.count >= recipe.clients.least:
            state.optimizer.step(before, combined.finish())
        else:
            self.event("too few", number, why=f"{combined.count} answers")
        return Round(
            number=number,
            asked=len(nodes),
            answered=combined.count,
            loss=_weighted(losses),
            down_bytes=down,
            up_bytes=up,
            steps=steps,
            seconds=0.0,
            phase=phase_at(recipe, number),
        )

    def grown(self, state: ServerState, tier: Tier, number: int) -> Tier:
        """What a tier's clients train in a round: its own subnetwork, or a smaller one at first.

        The first `local.grow` of the rounds are divided among the smaller tiers, the smallest
        first: everybody learns those before the larger ones build on them.
        """
        smaller = state.smaller(tier)[::-1]
        early = self.recipe.local.grow * self.recipe.rounds
        others = len(state.tiers) - 1
        if not smaller or number > early or not others:
            return tier
        stage = int((number - 1) * others / early)
        return [*smaller, tier][min(stage, len(smaller))]

    def aggregator(
        self, state: ServerState, parts: Mapping[str, Part], trained: Mapping[str, Tier]
    ) -> Aggregator:
        """How this round's updates become one change."""
        private = self.recipe.privacy
        if private is None or private.kind == "local":
            return aggregator(self.recipe.aggregation, state.tensors)
        shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
        clients = Counter(hello.tier for hello in self.roster.values())
        expected: dict[Part, float] = {}
        for tier, count in clients.items():
            part = parts[trained[tier].name]
            expected[part] = expected.get(part, 0.0) + count * self.recipe.clients.share
        return NoisySum(shapes, private, expected)

    def largest_norm(self, part: Part, whole: Part) -> float | None:
        """What an update's norm may be; a client that hides it has clipped it before."""
        private = self.recipe.privacy
        if private is None:
            return self.recipe.aggregation.largest_norm
        return largest_norm(private, part, whole) if private.kind == "central" else None

    def order(self, state: ServerState) -> ArrayRecord | None:
        """What clients sort the original model by, where they have its frozen weights."""
        return weights(state.order) if self.recipe.method.freezes else None

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
            seed=zlib.crc32(f"{self.recipe.seed}/{number}/{hello.name}".encode()) % 2**31,
        )

    def steps_of(self, state: ServerState, tier: Tier) -> float:
        """What a client's round costs, in training steps of the whole model."""
        return self.recipe.steps_at(tier.name) * self.step_of(state, tier)

    def step_of(self, state: ServerState, tier: Tier) -> float:
        """What a step costs, with the subnetworks nested in it."""
        smaller = [other.macs for other in state.smaller(tier)]
        count = min(self.recipe.local.nested, len(smaller))
        return tier.macs + (count * statistics.mean(smaller) if count else 0.0)

    @cached_property
    def test(self) -> Dataset | None:
        """The server's own test rows, in tokens."""
        if not self.recipe.evaluation.server:
            return None
        return server_rows(self.recipe)

    def judge(self, state: ServerState) -> dict[str, float]:
        """Each tier's model on the server's test rows."""
        rows = self.test
        if rows is None:
            return {}
        kind, metric = self.recipe.task.task_kind, self.recipe.task.usual_metric
        found = {}
        for name, tier in state.tiers.items():
            with state.answering(tier) as model:
                found[name] = kind.score(metric, predict(model, rows), rows)
        return found

    def judge_phases(self, state: ServerState, number: int) -> dict[str, Any]:
        """Of a continual run: the scores on each phase's test rows, and what was forgotten."""
        spec, rows = self.recipe.continual, self.test
        if spec is None or spec.by == "clients" or rows is None:
            return {}
        task = load_simulated(self.recipe)
        of_rows = phases_of_rows(self.recipe, task.test.select(range(len(rows))), len(task.labels))
        parts = [
            rows.select([i for i, phase in enumerate(of_rows) if phase == wanted])
            for wanted in range(spec.phases)
        ]
        kind, metric = self.recipe.task.task_kind, self.recipe.task.usual_metric
        scores = {}
        for name, tier in state.tiers.items():
            with state.answering(tier) as model:
                scores[name] = [
                    kind.score(metric, predict(model, part), part) if len(part) else 0.0
                    for part in parts
                ]
        now = Round(
            number=number,
            asked=0,
            answered=0,
            loss=None,
            down_bytes=0,
            up_bytes=0,
            steps=0.0,
            seconds=0.0,
            phase_scores=scores,
        )
        before = [Round.model_validate(line) for line in self.directory.lines(ROUNDS)]
        phase = phase_at(self.recipe, number)
        lost = {name: forgetting([*before, now], name, phase) for name in scores}
        return {
            "phase_scores": scores,
            "forgetting": {name: value for name, value in lost.items() if value is not None},
        }

    def served(self, state: ServerState, number: int) -> dict[str, str]:
        """Which tier's model each tier is served with: the best that is no larger than its own.

        Every client judges all models that its device can run on its own held-out rows; a tier's
        are compared by the clients that can run all of them.
        """
        own = {name: name for name in state.tiers}
        if not self.recipe.evaluation.clients or len(own) == 1:
            return own
        found: dict[str, dict[str, ClientScore]] = {}  # tier of the model -> client -> score
        for name, tier in state.tiers.items():
            able = [
                node
                for node, hello in self.roster.items()
                if state.tiers[hello.tier].macs >= tier.macs
            ]
            scores, _ = self.judged(state, tier, able, number)
            found[name] = {one.client: one for one in scores}
        for name, tier in state.tiers.items():
            candidates = [name, *(other.name for other in state.smaller(tier))]
            everywhere = set.intersection(*(set(found[c]) for c in candidates))
            rows = sum(found[name][client].rows for client in everywhere)
            if rows:
                means = {
                    c: sum(found[c][x].score * found[c][x].rows for x in sorted(everywhere)) / rows
                    for c in candidates
                }
                own[name] = max(candidates, key=lambda c: means[c])
        return own

    def judge_at_clients(self, state: ServerState, number: int) -> tuple[list[ClientScore], int]:
        """Each client's held-out rows, by its tier's model; and the bytes that were sent."""
        found: list[ClientScore] = []
        sent = 0
        for name, tier in state.tiers.items():
            nodes = [node for node, hello in self.roster.items() if hello.tier == name]
            scores, down = self.judged(state, tier, nodes, number)
            found, sent = found + scores, sent + down
        return sorted(found, key=lambda one: one.client), sent

    def judged(
        self, state: ServerState, tier: Tier, nodes: Sequence[int], number: int
    ) -> tuple[list[ClientScore], int]:
        """A tier's model by these clients, on their held-out rows; and the bytes that were sent."""
        packed = weights(state.part(tier.subnetwork).cut(state.tensors))
        order = self.order(state)
        work = Work(number=number, genome=tier.genome, labels=state.labels)
        ordered = sorted(nodes, key=lambda node: self.roster[node].name)
        requests = (Request(node, "evaluate", pack(work, packed, order)) for node in ordered)
        found, sent = [], 0
        for answer in self._ask(requests, number, self.recipe.clients.deadline_s):
            hello = self.roster[answer.node]
            sent += answer.down
            try:
                done = unpack(_content(answer), Done)
                if done.score is None or done.loss is None:
                    raise GarbledError("no score")
            except HwnasError as error:
                self.event("not judged", number, hello.name, str(error))
                continue
            found.append(
                ClientScore(
                    client=hello.name,
                    tier=hello.tier,
                    rows=done.rows,
                    score=done.score,
                    loss=done.loss,
                )
            )
        return found, sent


def _content(answer: Answer) -> Any:
    if answer.content is None:
        raise GarbledError(answer.problem)
    return answer.content


def _weighted(losses: Sequence[tuple[float, int]]) -> float | None:
    total = sum(rows for _, rows in losses)
    return sum(loss * rows for loss, rows in losses) / total if total else None


def _check_scores(found: Tensors, full: Subnetwork) -> None:
    """Raise `GarbledError` unless these are scores of every head and neuron."""
    wanted = {f"heads.{i}": block.heads for i, block in enumerate(full.blocks)}
    wanted |= {f"ffn.{i}": block.ffn for i, block in enumerate(full.blocks)}
    for key, size in wanted.items():
        scores = found.get(key)
        if scores is None or tuple(scores.shape) != (size,) or not scores.isfinite().all():
            raise GarbledError(f"scores {key} are missing, of another size or not finite")
    if found.keys() - wanted.keys():
        raise GarbledError(f"scores {min(found.keys() - wanted.keys())} were not asked for")


def server_rows(recipe: FederatedRecipe) -> Dataset:
    """The server's test rows, in tokens."""
    task = load_simulated(recipe)
    rows = task.test.select(range(min(len(task.test), recipe.evaluation.rows)))
    tokenizer = original_of(recipe.model_dump_json(), tuple(task.labels)).tokenizer
    return task.kind.encode(rows, tokenizer, recipe.length)


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
        UserError, BudgetError: as `check` and `Federation.start`.
    """
    from hwnas.federated.recipe import load_federated

    begin = time.perf_counter()
    directory = RunDirectory.open(out, recipe, resume, load=load_federated)
    try:
        config = load_config(recipe.model)
        tables = tables_of(recipe, config, out / "tables")
        devices = {tier.name: Device(tier, tables[tier.name]) for tier in recipe.tiers}
        federation = kind(grid, recipe, directory, devices, find_shape(config))
        state = federation.run()
        return finish(federation, state, time.perf_counter() - begin)
    finally:
        directory.close()


def finish(federation: Federation, state: ServerState, seconds: float) -> FederatedSummary:
    """Write every tier's model as a folder, and the summary."""
    recipe, path = federation.recipe, federation.path
    rounds = [Round.model_validate(line) for line in federation.directory.lines(ROUNDS)]
    judged = next((one for one in reversed(rounds) if one.scores or one.clients), None)
    results = []
    served = federation.served(state, state.number)
    for name, tier in state.tiers.items():
        model = state.tiers[served[name]]
        dense = state.network.extract(model.subnetwork)
        with replacing(path / "tiers" / name / "model") as partial:
            dense.save_pretrained(partial)
            state.tokenizer.save_pretrained(partial)
        if state.prompt:
            with state.answering(model) as reading:
                reading.save_pretrained(path / "tiers" / name / "prompt")
        mine = [c.score for c in judged.clients if c.tier == name] if judged else []
        results.append(
            TierResult(
                name=name,
                target=tier.target,
                served=served[name],
                genome=model.genome,
                params=sum(p.numel() for p in dense.parameters()),
                budget_ms=tier.budget_ms,
                predicted_ms=federation.devices[name].table.predictor().predict(model.subnetwork),
                whole_ms=tier.whole_ms,
                score=judged.scores.get(served[name]) if judged else None,
                clients=len(mine),
                mean=statistics.mean(mine) if mine else None,
                least=min(mine, default=None),
                spread=statistics.pstdev(mine) if mine else None,
                path=f"tiers/{name}/model",
                forgetting=judged.forgetting.get(served[name]) if judged else None,
            )
        )
    whole = sum(parameter.numel() for parameter in state.network.model.parameters())
    trained = state.whole.numel
    events = Counter(
        line["event"] for line in federation.directory.lines(EVENTS) if "round" in line
    )
    summary = FederatedSummary(
        model=recipe.model,
        task=recipe.task.data,
        metric=recipe.task.usual_metric,
        seed=recipe.seed,
        rounds=len(rounds),
        clients=len(federation.roster),
        labels=state.labels,
        tiers=results,
        down_bytes=sum(one.down_bytes for one in rounds),
        up_bytes=sum(one.up_bytes for one in rounds),
        trained_bytes=sum(2 * one.asked * _NUMBER * trained for one in rounds),
        everything_bytes=sum(2 * one.asked * _NUMBER * whole for one in rounds),
        steps=sum(one.steps for one in rounds),
        epsilon=epsilon(recipe),
        delta=recipe.privacy.delta if recipe.privacy else None,
        events=dict(sorted(events.items())),
        seconds=round(seconds, 1),
    )
    write_json(path / "summary.json", summary)
    return summary


def check(recipe: FederatedRecipe) -> None:
    """Find what is wrong with a recipe before anything is started.

    Raises:
        UserError: what is wrong.
    """
    from hwnas.federated.population import deal
    from hwnas.latency.runtimes import require
    from hwnas.latency.table import LatencyTable
    from hwnas.latency.target import Target

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
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.length > longest:
        raise UserError(
            f"task.max_length: {recipe.length}, the model reads at most {longest} tokens"
        )
    deal(recipe, load_simulated(recipe))
