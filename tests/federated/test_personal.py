"""Clients' own models: made where their rows are, used where they are better, told as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from in_process import run

from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.summary import FederatedSummary
from hwnas.models import load, load_tokenizer
from hwnas.report.federated_page import write_page

Make = Callable[..., FederatedRecipe]
UNEVEN: dict[str, Any] = {"clients": {"count": 4, "split": {"kind": "dirichlet", "alpha": 0.1}}}


def _run(recipe: FederatedRecipe, out: Path, **wrong: Any) -> FederatedSummary:
    return run(recipe, out, **wrong)[0]


@pytest.mark.parametrize("kind", ["trained", "head", "adapters"])
def test_clients_of_few_classes_gain_by_their_own_steps(
    make_recipe: Make, tmp_path: Path, kind: str
) -> None:
    personal = {"kind": kind, "steps": 40, "rate": 1e-2, "validation": 0.3}
    summary = _run(make_recipe(**UNEVEN, personal=personal), tmp_path / "run")
    own = summary.personal
    assert [one.client for one in own] == [f"client-{i:04}" for i in range(4)]
    assert any(one.kept for one in own)
    assert all(one.own == one.shared for one in own if not one.kept)
    assert sum(one.own - one.shared for one in own) > 0
    text = write_page(tmp_path / "run").read_text()
    assert "clients use theirs" in text


def test_the_server_s_models_are_as_without(make_recipe: Make, tmp_path: Path) -> None:
    with_own = _run(make_recipe(**UNEVEN, personal={"steps": 2}), tmp_path / "own")
    without = _run(make_recipe(**UNEVEN), tmp_path / "plain")
    assert with_own.tiers == without.tiers
    assert not without.personal


def test_an_own_model_stays_in_the_client_s_folder(make_recipe: Make, tmp_path: Path) -> None:
    keep = tmp_path / "mine"
    personal = {"steps": 40, "rate": 1e-2, "validation": 0.3}
    recipe = make_recipe(**UNEVEN, personal=personal)
    summary = _run(recipe, tmp_path / "run", configs={2: {"keep": str(keep)}})
    (mine,) = (one for one in summary.personal if one.client == "client-0002")
    model = load(keep)
    load_tokenizer(keep)
    shared = load(tmp_path / "run" / summary.tiers[0].path)
    small = load(tmp_path / "run" / summary.tiers[1].path)
    size = sum(p.numel() for p in model.parameters())
    assert size in {sum(p.numel() for p in m.parameters()) for m in (shared, small)}
    assert mine.rows > 0


def test_with_privacy_nothing_is_told(make_recipe: Make, tmp_path: Path) -> None:
    keep = tmp_path / "mine"
    recipe = make_recipe(
        **UNEVEN,
        personal={"steps": 2},
        privacy={"kind": "central", "clip": 0.1, "noise": 0.5},
        importance="magnitude",
        aggregation={"weigh": "clients"},
        evaluation={"clients": False},
        labels=["0", "1", "2"],
    )
    summary = _run(recipe, tmp_path / "run", configs={0: {"keep": str(keep)}})
    assert not summary.personal
    assert (keep / "model.safetensors").exists()


def test_a_client_that_makes_none_is_an_event(make_recipe: Make, tmp_path: Path) -> None:
    def gone(request: Message, reply: Message) -> Message:
        if request.metadata.message_type != "query.personal":
            return reply
        return Message(Error(code=0, reason="asleep"), reply_to=request)

    recipe = make_recipe(**UNEVEN, personal={"steps": 2})
    summary = _run(recipe, tmp_path / "run", faults={1: gone})
    assert [one.client for one in summary.personal] == [f"client-{i:04}" for i in (0, 2, 3)]
    lines = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert [e["client"] for e in lines if e["event"] == "no own model"] == ["client-0001"]
    assert summary.events["no own model"] == 1
