"""Structures beside those that tiers have trained, judged by clients where their rows are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message
from in_process import InProcess, run

from hwnas.anatomy import find_shape
from hwnas.federated.client import Client
from hwnas.federated.identity import Identity
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.search import union
from hwnas.federated.state import ServerState
from hwnas.federated.summary import Candidate, FederatedSummary
from hwnas.federated.tiers import memory_mb
from hwnas.models import load, load_config
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.predict import predict

Make = Callable[..., FederatedRecipe]
SEARCH: dict[str, Any] = {"search": {"candidates": 6}}


def _run(
    recipe: FederatedRecipe, out: Path, **wrong: Any
) -> tuple[FederatedSummary, list[Candidate], InProcess]:
    summary, grid = run(recipe, out, **wrong)
    path = out / "candidates.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return summary, [Candidate.model_validate_json(line) for line in lines], grid


def test_the_best_by_the_clients_is_served(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(**SEARCH)
    summary, found, grid = _run(recipe, tmp_path / "run")
    assert {one.tier for one in found} == {"small"}  # the large one has no budget
    assert len(found) > 2
    assert found[0].kind == "own"
    assert len({json.dumps(one.genome) for one in found}) == len(found)
    (chosen,) = (one for one in found if one.chosen)
    assert chosen.loss == min(one.loss for one in found)
    small = summary.tiers[1]
    assert small.budget_ms is not None
    assert all(one.predicted_ms <= small.budget_ms for one in found)
    if small.served == "small":
        assert small.genome == chosen.genome
        assert small.predicted_ms == pytest.approx(chosen.predicted_ms)
        dense = load(tmp_path / "run" / small.path)
        assert list(find_shape(dense.config).heads) == [h for h, f in chosen.genome if h or f]
    # one message to each client, however many candidates there are
    assert grid.asked["query.candidates"] == 4


def test_what_clients_say_is_what_the_dense_models_score(make_recipe: Make, tmp_path: Path) -> None:
    """They are sent enough of the super-network for every candidate."""
    recipe = make_recipe(**SEARCH)
    summary, found, _ = _run(recipe, tmp_path / "run")
    state = ServerState.find(tmp_path / "run", recipe)
    assert state is not None
    text, kind = recipe.model_dump_json(), recipe.task.task_kind
    clients = [Client(text, Identity(f"client-{i:04}", i)) for i in range(4)]
    held = [client.encoded(summary.labels, "held_out") for client in clients]
    for one in found[:3]:
        dense = state.network.extract(Subnetwork.of(one.genome))
        losses = [kind.loss(predict(dense, rows), rows) * len(rows) for rows in held]
        assert one.loss == pytest.approx(sum(losses) / sum(map(len, held)), rel=1e-4)


def test_candidates_of_adapters_have_theirs(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(**SEARCH, train="adapters")
    _, found, _ = _run(recipe, tmp_path / "run")
    assert sum(one.chosen for one in found) == 1


def test_memory_bounds_candidates_too(make_recipe: Make, tmp_path: Path) -> None:
    def taken(one: Candidate, recipe: FederatedRecipe) -> float:
        tokens = recipe.length * recipe.local.batch
        return memory_mb(Subnetwork.of(one.genome), find_shape(load_config(recipe.model)), tokens)

    recipe = make_recipe(**SEARCH)
    _, free, _ = _run(recipe, tmp_path / "free")
    most = sorted(taken(one, recipe) for one in free)[len(free) // 2]
    tiers = recipe.model_dump(mode="json")["tiers"]
    tiers[1]["memory_mb"] = most
    bound = make_recipe(**SEARCH, tiers=tiers)
    _, found, _ = _run(bound, tmp_path / "bound")
    assert len(found) < len(free)
    assert all(taken(one, bound) <= most for one in found)


@pytest.mark.parametrize("what", ["gone", "fewer", "nan"])
def test_who_judges_wrongly_is_left_out(make_recipe: Make, tmp_path: Path, what: str) -> None:
    def wrong(request: Message, reply: Message) -> Message:
        if request.metadata.message_type != "query.candidates":
            return reply
        if what == "gone":
            return Message(Error(code=0, reason="asleep"), reply_to=request)
        said = json.loads(str(reply.content.config_records["json"]["json"]))
        if what == "fewer":
            said["losses"].pop()
        else:
            said["losses"][0] = float("nan")
        reply.content["json"] = ConfigRecord({"json": json.dumps(said)})
        return reply

    recipe = make_recipe(**SEARCH)
    _, found, _ = _run(recipe, tmp_path / "run", faults=dict.fromkeys(range(4), wrong))
    assert not found
    lines = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert [e for e in lines if e["event"] == "not judged"]


def test_a_union_holds_all() -> None:
    both = union([Subnetwork.of([[2, 8], [0, 0]]), Subnetwork.of([[1, 16], [3, 4]])])
    assert both.genome == [[2, 16], [3, 4]]
