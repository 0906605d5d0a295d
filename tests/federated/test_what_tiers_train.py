"""What each tier trains in a round, and with which model it is served in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message
from in_process import run

from hwnas.anatomy import find_shape
from hwnas.anatomy.dense import new_dense
from hwnas.federated.local import Trainee
from hwnas.federated.originals import original_of
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.state import ServerState
from hwnas.federated.tiers import memory_mb
from hwnas.files import read_tensors
from hwnas.models import load_config
from hwnas.subnetwork import Subnetwork
from hwnas.training.autocast import has_units

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


@pytest.mark.parametrize("best", ["large", "small"])
def test_clients_say_with_which_model_a_tier_is_served(
    best: str, make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(rounds=1, evaluation={"every": 1})

    def say(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "evaluate":
            asked = json.loads(str(request.content["json"]["json"]))["genome"]
            found = json.loads(str(reply.content["json"]["json"]))
            found["score"] = 90 if (asked == whole) == (best == "large") else 40
            reply.content["json"] = ConfigRecord({"json": json.dumps(found)})
        return reply

    config = load_config(recipe.model)
    whole = Subnetwork.full(find_shape(config)).genome
    out = tmp_path / "run"
    summary, grid = run(recipe, out, faults=dict.fromkeys(range(4), say))
    # each its own tier's after the round, and both tiers' in the end
    assert grid.asked["evaluate"] == 4 + 2 * 4
    large, small = summary.tiers
    assert (large.served, small.served) == (best, "small")
    assert (large.genome == whole) == (best == "large")
    scores = json.loads((out / "rounds.jsonl").read_text())["scores"]
    assert large.score == scores[best]


@pytest.mark.skipif(
    not has_units() or torch.cuda.is_available(),
    reason="this processor has no units for bf16, or training is on a GPU",
)
def test_clients_may_train_in_bf16(
    make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.training.autocast.pays", has_units)  # though it may be slower
    seen: dict[str, set[torch.dtype]] = {}
    for precision in ("fp32", "bf16"):
        kinds = seen[precision] = set()
        watch = torch.nn.modules.module.register_module_forward_hook(
            lambda module, _, out, kinds=kinds: (
                kinds.add(out.dtype)  # type: ignore[misc]
                if module.training and isinstance(module, torch.nn.Linear)
                else None
            )
        )
        try:
            recipe = make_recipe(
                rounds=1, local={"precision": precision}, evaluation={"clients": False, "every": 1}
            )
            run(recipe, tmp_path / precision)
        finally:
            watch.remove()
    assert seen["fp32"] == {torch.float32} and torch.bfloat16 in seen["bf16"]
    states = [
        read_tensors(tmp_path / precision / "state" / "trained.safetensors") for precision in seen
    ]
    exact, half = states
    assert all(tensor.dtype == torch.float32 for tensor in half.values())
    assert max(float((exact[name] - half[name]).abs().max()) for name in exact) < 1e-2


def test_what_a_client_trains_is_its_own_copy(make_recipe: Make) -> None:
    recipe = make_recipe()
    original = original_of(recipe.model_dump_json(), ("a", "b"))
    full = Subnetwork.full(find_shape(original.config))
    task = recipe.task.task_kind.task
    arrays = original.embeddings | {
        name: tensor
        for name, tensor in new_dense(original.config, full, task).state_dict().items()
        if name not in original.embeddings
    }
    before = {name: tensor.clone() for name, tensor in arrays.items()}
    trainee = Trainee.of_weights(original.config, full, task, arrays)
    assert all(torch.equal(p, arrays[name]) for name, p in trainee.model.state_dict().items())
    with torch.no_grad():
        for parameter in trainee.model.parameters():
            assert parameter.requires_grad
            parameter.add_(1.0)
    assert all(torch.equal(arrays[name], tensor) for name, tensor in before.items())
