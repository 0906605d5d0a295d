"""Runs with privacy: what clients say, what is told of their privacy, and who is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import Message
from in_process import run

from hwnas.anatomy import find_shape
from hwnas.federated.client import Client
from hwnas.federated.messages import Hello
from hwnas.federated.parts import Part
from hwnas.federated.privacy import NoisySum, epsilon
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.roster import Roster
from hwnas.federated.server import Federation
from hwnas.files import read_tensors
from hwnas.models import load_config
from hwnas.rundir import RunDirectory

Make = Callable[..., FederatedRecipe]
PRIVATE: dict[str, Any] = {
    "labels": ["0", "1", "2"],
    "importance": "magnitude",
    "aggregation": {"weigh": "clients"},
    "evaluation": {"clients": False},
}


def _privacy(kind: str) -> dict[str, Any]:
    return PRIVATE | {"privacy": {"kind": kind, "clip": 0.5, "noise": 2.0, "delta": 1e-3}}


@pytest.mark.parametrize("kind", ["central", "local"])
def test_private_runs_say_nothing_of_rows_and_state_their_epsilon(
    kind: str, make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(rounds=1, **_privacy(kind))
    said: list[str] = []

    def listen(request: Message, reply: Message) -> Message:
        said.append(str(reply.content["json"]["json"]))
        return reply

    summary, _ = run(recipe, tmp_path / "run", faults=dict.fromkeys(range(4), listen))
    assert summary.epsilon is not None and summary.epsilon > 0 and summary.delta == 1e-3
    assert summary.events == {"joined": 4}
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert line["asked"] == line["answered"] == 4
    for text in said:
        answer = json.loads(text)
        assert answer.get("rows", 1) in (0, 1) and not answer.get("labels")
        assert answer.get("loss") is None and answer.get("score") is None
    trained = read_tensors(tmp_path / "run" / "state" / "trained.safetensors")
    assert all(tensor.isfinite().all() for tensor in trained.values())


@pytest.mark.parametrize("private", [True, False])
def test_only_without_central_privacy_can_it_be_foretold_who_is_asked(
    private: bool, make_recipe: Make, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"clients": {"share": 0.5, "count": 8}}
    if private:
        changes |= _privacy("central")
    recipe = make_recipe(**changes)

    def asked() -> list[list[int]]:
        clients = {i: Hello(name=f"client-{i}", tier="large") for i in range(8)}
        shape = find_shape(load_config(recipe.model))
        directory = RunDirectory(tmp_path)
        roster = Roster(cast("Any", None), recipe, directory, {}, shape, clients)
        return [Federation(recipe, directory, roster).chosen(number) for number in range(1, 21)]

    one, other = asked(), asked()
    assert (one != other) == private
    # 160 draws of a half: outside of this in one run of a hundred million
    assert 44 < sum(map(len, one)) < 116


@pytest.mark.parametrize("kind", ["central", "local"])
def test_what_a_client_has_sent_twice_counts_twice(
    kind: str, make_recipe: Make, tmp_path: Path
) -> None:
    """A server that is killed in a round asks for it again."""
    recipe = make_recipe(**_privacy(kind))

    def kill(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "train" and request.metadata.group_id == "2":
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run", faults={1: kill})
    summary, _ = run(recipe, tmp_path / "run", resume=True)
    assert summary.rounds == recipe.rounds == 2
    assert summary.epsilon == pytest.approx(epsilon(recipe, 3 if kind == "local" else 2))
    assert epsilon(recipe, 1) == epsilon(recipe)  # of a run that began before this was counted
    once, twice = epsilon(recipe), epsilon(recipe, 3)
    assert once is not None and twice is not None and once < twice


@pytest.mark.parametrize("private", [True, False])
def test_what_is_wrong_with_a_clients_rows_stays_with_it(
    private: bool, make_recipe: Make, tmp_path: Path
) -> None:
    rows = [{"text": f"row {i}", "label": "a secret" if i % 2 else "0"} for i in range(20)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = _privacy("central") if private else PRIVATE
    recipe = make_recipe(rounds=1, **changes)
    said: list[str] = []

    def listen(request: Message, reply: Message) -> Message:
        said.append(str(reply.content["json"]["json"]) if reply.has_content() else "")
        return reply

    own = {0: {"data": str(data), "tier": "large"}}
    summary, _ = run(recipe, tmp_path / "run", configs=own, faults={0: listen})
    assert summary.events["failed"] == 1
    assert any("secret" in text for text in said) != private


@pytest.mark.parametrize("private", [True, False])
def test_nor_does_a_trouble_that_nobody_foresaw_tell_of_them(
    private: bool, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower would send the text of whatever was raised."""

    def fail(*_: Any) -> Any:
        raise KeyError("a secret")

    monkeypatch.setattr(Client, "train", fail)
    run(make_recipe(rounds=1, **(_privacy("central") if private else PRIVATE)), tmp_path / "run")
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert events.count('"failed"') == 4
    assert ("secret" in events) != private


@pytest.mark.parametrize("by", ["clients", "classes"])
def test_noise_is_divided_by_those_who_are_there(
    by: str, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four clients two at a time, where they come and go; who is there is nobody's secret."""
    expected: list[float] = []
    honest = NoisySum.__init__

    def begin(self: NoisySum, shapes: Any, spec: Any, of: Mapping[Part, float]) -> None:
        expected.append(sum(of.values()))
        honest(self, shapes, spec, of)

    monkeypatch.setattr(NoisySum, "__init__", begin)
    phases = {"phases": 2, "by": by}
    run(make_recipe(continual=phases, **_privacy("central")), tmp_path / "run")
    assert expected == ([2, 2] if by == "clients" else [4, 4])
