"""How good models are, on the server's test rows and at clients, whose rows never leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError
from hwnas.federated.continual import forgetting, phase_at, phases_of_rows
from hwnas.federated.exchange import Request
from hwnas.federated.messages import (
    PERSONAL,
    Done,
    GarbledError,
    Personal,
    Work,
    pack,
    unpack,
    weights,
)
from hwnas.federated.originals import original_of, recipe_of
from hwnas.federated.population import load_simulated
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.roster import Roster
from hwnas.federated.state import ServerState, order_of
from hwnas.federated.summary import ClientScore, PersonalScore, Round
from hwnas.federated.tiers import Tier
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.predict import predict

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr.app import RecordDict


def server_rows(recipe: FederatedRecipe) -> Dataset:
    """The server's test rows, in tokens."""
    return _rows(recipe.model_dump_json())


@lru_cache(maxsize=1)
def _rows(text: str) -> Dataset:
    recipe = recipe_of(text)
    task = load_simulated(recipe)
    rows = task.test.select(range(min(len(task.test), recipe.evaluation.rows)))
    tokenizer = original_of(text, tuple(task.labels)).tokenizer
    return task.kind.encode(rows, tokenizer, recipe.length)


def check_labels(recipe: FederatedRecipe, labels: Sequence[str]) -> None:
    """Raise `UserError` unless the server's test rows number their classes as the run does."""
    theirs = load_simulated(recipe).labels
    if theirs and list(theirs) != list(labels):
        raise UserError(
            f"labels: the run's are {', '.join(labels)}, the server's test rows have "
            f"{', '.join(theirs)}; give labels as the rows have them, or evaluation.server: false"
        )


def judge(state: ServerState) -> dict[str, float]:
    """Each tier's model on the server's test rows."""
    recipe = state.recipe
    if not recipe.evaluation.server:
        return {}
    rows = server_rows(recipe)
    kind, metric = recipe.task.task_kind, recipe.task.usual_metric
    found = {}
    for name, tier in state.tiers.items():
        with state.answering(tier) as model:
            found[name] = kind.score(metric, predict(model, rows), rows)
    return found


def judge_phases(
    state: ServerState, number: int, before: Sequence[Round]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Of a continual run: each tier's scores on each phase's test rows, and what it has forgotten.

    Args:
        number: of the round, and `before` all rounds before it.
    """
    recipe = state.recipe
    spec = recipe.continual
    if spec is None or spec.by == "clients" or not recipe.evaluation.server:
        return {}, {}
    task, rows = load_simulated(recipe), server_rows(recipe)
    of_rows = phases_of_rows(recipe, task.test.select(range(len(rows))), len(task.labels))
    parts = [
        rows.select([i for i, phase in enumerate(of_rows) if phase == wanted])
        for wanted in range(spec.phases)
    ]
    kind, metric = recipe.task.task_kind, recipe.task.usual_metric
    scores, lost = {}, {}
    for name, tier in state.tiers.items():
        with state.answering(tier) as model:
            scores[name] = [
                kind.score(metric, predict(model, part), part) if len(part) else 0.0
                for part in parts
            ]
        earlier = [one.phase_scores[name] for one in before if name in one.phase_scores]
        found = forgetting([*earlier, scores[name]], phase_at(recipe, number))
        if found is not None:
            lost[name] = found
    return scores, lost


def served(roster: Roster, state: ServerState, number: int) -> dict[str, str]:
    """Which tier's model each tier is served with: the best that is no larger than its own.

    Every client judges all models that its device can hold, however long it takes, on its own
    held-out rows: a tier's own clients may have few, and of few classes. A tier's candidates are
    compared by the clients that have judged all of them.
    """
    own = {name: name for name in state.tiers}
    if not state.recipe.evaluation.clients or len(own) == 1:
        return own
    found: dict[str, dict[str, ClientScore]] = {}  # tier of the model -> client -> score
    for name, tier in state.tiers.items():
        scores, _ = judged(roster, state, tier, able(roster, state, tier.subnetwork), number)
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


def able(roster: Roster, state: ServerState, subnetwork: Subnetwork) -> list[int]:
    """The nodes whose memory is enough for a subnetwork, by what training it would take."""
    shape, tokens = state.network.shape, state.recipe.batch_tokens
    tiers = {n for n, device in roster.devices.items() if device.holds(subnetwork, shape, tokens)}
    return [node for node, hello in roster.clients.items() if hello.tier in tiers]


def judge_at_clients(
    roster: Roster, state: ServerState, number: int
) -> tuple[list[ClientScore], int]:
    """Each client's held-out rows, by its tier's model; and the bytes that were sent."""
    found: list[ClientScore] = []
    sent = 0
    for name, tier in state.tiers.items():
        scores, down = judged(roster, state, tier, roster.of_tier(name), number)
        found, sent = found + scores, sent + down
    return sorted(found, key=lambda one: one.client), sent


def judged(
    roster: Roster, state: ServerState, tier: Tier, nodes: Sequence[int], number: int
) -> tuple[list[ClientScore], int]:
    """A tier's model by these clients, on their held-out rows; and the bytes that were sent."""
    packed = weights(state.part(tier.subnetwork).cut(state.tensors))
    order = order_of(state)
    work = Work(number=number, genome=tier.genome, labels=state.labels)
    ordered = roster.by_name(nodes)
    requests = (Request(node, "evaluate", pack(work, packed, order)) for node in ordered)
    found, sent = [], 0
    for answer, hello, score in roster.heard(requests, number, _score, "not judged"):
        sent += answer.down
        if score is not None:
            found.append(ClientScore(client=hello.name, tier=hello.tier, **score))
    return found, sent


def _score(content: RecordDict) -> dict[str, Any]:
    done = unpack(content, Done)
    if done.score is None or done.loss is None:
        raise GarbledError("no score")
    return {"rows": done.rows, "score": done.score, "loss": done.loss}


def personalised(
    roster: Roster, state: ServerState, best: Mapping[str, str], number: int
) -> list[PersonalScore]:
    """Have every client make its own model; what they say of them.

    Args:
        best: the tier whose model each tier is served with.
    """
    if state.recipe.personal is None:
        return []
    found: list[PersonalScore] = []
    for name in state.tiers:
        tier = state.tiers[best[name]]
        packed = weights(state.part(tier.subnetwork).cut(state.tensors))
        order = order_of(state)
        nodes = roster.by_name(roster.of_tier(name))

        def content(node: int, genome: list[list[int]] = tier.genome) -> Work:
            seed = state.recipe.seed_of("own", roster.clients[node].name)
            return Work(number=number, genome=genome, labels=state.labels, seed=seed)

        requests = (Request(n, PERSONAL, pack(content(n), packed, order)) for n in nodes)
        read = partial(unpack, kind=Personal)
        for _, hello, said in roster.heard(requests, number, read, "no own model"):
            if said is not None and said.shared is not None and said.own is not None:
                score = PersonalScore(
                    client=hello.name,
                    tier=name,
                    rows=said.rows,
                    shared=said.shared,
                    own=said.own,
                    kept=said.kept,
                )
                found.append(score)
    return sorted(found, key=lambda one: one.client)
