"""What each tier trains in a round, and with which model it is served in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from in_process import InProcess, run

from hwnas.federated.client import client_app
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server import Federation, federate
from hwnas.federated.state import ServerState
from hwnas.federated.tiers import memory_mb

Make = Callable[..., FederatedRecipe]


def test_small_ones_are_learned_first_where_the_recipe_says(
    make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(rounds=4, local={"grow": 0.5}, evaluation={"clients": False, "every": 4})
    summary, _ = run(recipe, tmp_path / "run")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    ]
    first, *_, last = lines
    # everybody is sent the small part at first, for as much computing as later
    assert first["up_bytes"] < 0.8 * last["up_bytes"]
    assert first["steps"] == last["steps"]
    assert summary.rounds == 4


def test_who_has_the_memory_trains_more_than_it_is_served(
    make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(
        rounds=4, local={"steps": 8, "reach": 0.5}, evaluation={"clients": False, "every": 4}
    )
    summary, _ = run(recipe, tmp_path / "run")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    ]
    own, all_whole = lines[0], lines[1]
    # every second round all clients are sent the whole, for as much computing as their own
    assert [line["up_bytes"] for line in lines[2:]] == [own["up_bytes"], all_whole["up_bytes"]]
    assert own["up_bytes"] < 0.9 * all_whole["up_bytes"]
    assert len({line["steps"] for line in lines}) == 1
    large, small = summary.tiers
    assert small.params < large.params
    # a device that has the memory for its own only goes on with that
    state = ServerState.find(tmp_path / "run", recipe)
    assert state is not None
    tokens = recipe.batch_tokens
    shape = state.network.shape
    held = memory_mb(state.tiers["small"].subnetwork, shape, tokens)
    tiers = [tier.model_dump() for tier in recipe.tiers]
    tiers[1]["memory_mb"] = 1.01 * held
    narrow = make_recipe(
        rounds=1,
        tiers=tiers,
        local={"steps": 8, "reach": 1.0},
        evaluation={"clients": False, "every": 1},
    )
    run(narrow, tmp_path / "narrow")
    (line,) = (tmp_path / "narrow" / "rounds.jsonl").read_text().splitlines()
    assert json.loads(line)["up_bytes"] == own["up_bytes"]


def test_a_tier_is_served_the_best_that_it_canrun(make_recipe: Make, tmp_path: Path) -> None:
    """A large model whose outer weights are poisoned is worse than the small one within it."""
    recipe = make_recipe(rounds=1, evaluation={"every": 1})
    out = tmp_path / "run"
    grid = InProcess(client_app(recipe), recipe.clients.count)

    class Poisoned(Federation):
        def train(self, state: ServerState, number: int) -> Any:
            found = super().train(state, number)
            inner = {p.name: p.shape for p in state.part(state.tiers["small"].subnetwork).trained}
            for name, tensor in state.tensors.items():
                if name.endswith("output.dense.weight") and name in inner:
                    tensor[:, inner[name][1] :] = 3 * torch.randn_like(tensor[:, inner[name][1] :])
            return found

    summary = federate(grid, recipe, out, resume=False, kind=Poisoned)
    # each its own tier's after the round, and both tiers' in the end
    assert grid.asked["evaluate"] == 4 + 2 * 4
    large, small = summary.tiers
    scores = json.loads((out / "rounds.jsonl").read_text())["scores"]
    assert large.score == scores[large.served] and small.served == "small"
    state = ServerState.find(out, recipe)
    assert state is not None and large.genome == state.tiers[large.served].genome
