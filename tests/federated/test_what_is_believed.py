"""What a server takes from its clients, and what it does not believe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from in_process import Fault, run

from hwnas.anatomy import find_shape
from hwnas.errors import UserError
from hwnas.federated.messages import HELLO, OwnDevice
from hwnas.federated.recipe import FederatedRecipe, TierSpec
from hwnas.federated.roster import Roster
from hwnas.federated.secure import LEVELS
from hwnas.federated.tiers import own_device, own_tier, tables_of
from hwnas.importance.scores import Importance
from hwnas.models import load_config
from hwnas.rundir import RunDirectory

Make = Callable[..., FederatedRecipe]


def _events(out: Path) -> list[tuple[str, int, str]]:
    lines = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return [(line["event"], line["round"], line["client"]) for line in lines]


def _fails(request: Message, reply: Message) -> Message:
    if request.metadata.message_type != "train":
        return reply
    return Message(Error(code=0, reason="out of memory"), reply_to=request)


def _boasts(request: Message, reply: Message) -> Message:
    """Of a score that no model can have."""
    if request.metadata.message_type == "evaluate":
        text = '{"rows": 9, "loss": 0.1, "score": 1e6, "seconds": 1.0}'
        reply.content["json"] = ConfigRecord({"json": text})
    return reply


def test_a_score_that_cannot_be_is_not_believed(make_recipe: Make, tmp_path: Path) -> None:
    summary, _ = run(make_recipe(rounds=1), tmp_path / "run", faults={1: _boasts})
    assert ("not judged", 1, "client-0001") in _events(tmp_path / "run")
    assert all(-100 <= (tier.mean or 0) <= 100 for tier in summary.tiers)
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert [c["client"] for c in line["clients"]] == ["client-0000", "client-0002", "client-0003"]


def _exaggerates(asked: str) -> Fault:
    """Of its rows, where it is asked for this."""

    def fault(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == asked:
            said = json.loads(str(reply.content["json"]["json"])) | {"rows": 10**6}
            reply.content["json"] = ConfigRecord({"json": json.dumps(said)})
        return reply

    return fault


def test_nobody_has_more_rows_than_can_be(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(rounds=1, clients={"rows": 60}, evaluation={"clients": False, "every": 1})
    run(recipe, tmp_path / "run", faults={1: _exaggerates("train"), 2: _exaggerates(HELLO)})
    events = _events(tmp_path / "run")
    assert ("failed", 1, "client-0001") in events
    assert [what for what, *_ in events].count("refused") == 1
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert (line["asked"], line["answered"]) == (3, 2)


def test_in_a_secure_sum_a_row_weighs_something(make_recipe: Make, tmp_path: Path) -> None:
    def most(**changes: Any) -> float:
        recipe = make_recipe(**changes)
        shape = find_shape(load_config(recipe.model))
        return Roster(cast("Any", None), recipe, RunDirectory(tmp_path), {}, shape).most_rows

    many = {"count": 6, "rows": 10**9}
    assert most(clients=many) == 10**9 and most() == math.inf
    assert most(clients=many, secure={}) == LEVELS
    assert most(clients=many, secure={}, aggregation={"weigh": "clients"}) == 10**9


def test_a_client_cannot_have_the_server_read_files(make_recipe: Make, tiny_table: Path) -> None:
    shape = find_shape(load_config(make_recipe().model))
    for name in (str(tiny_table), "/dev/zero", "../rows.jsonl"):
        with pytest.raises(UserError, match=r"no table .* is shipped"):
            own_device(OwnDevice(table=name), "own-mallory", shape)
    told = json.loads(tiny_table.read_text()) | {"target": "openvino:cpu:seq=p:/dev/zero"}
    with pytest.raises(UserError, match="a table has numbers"):
        own_device(OwnDevice(table=json.dumps(told)), "own-mallory", shape)
    with pytest.raises(UserError, match="its latency table: model: Field required"):
        own_device(OwnDevice(table=json.dumps({"target": told["target"]})), "own-mallory", shape)
    with pytest.raises(UserError, match="not valid JSON"):
        own_device(OwnDevice(table='{"a":' * 100_000), "own-mallory", shape)


def test_labels_that_are_not_numbered_as_the_servers_rows_are_refused(
    make_recipe: Make, tmp_path: Path
) -> None:
    for labels in (["2", "1", "0"], ["0", "1", "2", "3"]):
        with pytest.raises(UserError, match=r"labels: the run's are .* test rows have 0, 1, 2"):
            run(make_recipe(labels=labels), tmp_path / "-".join(labels))


def test_one_clients_scores_do_not_decide_which_heads_come_first(
    make_recipe: Make, tmp_path: Path
) -> None:
    """Where poison is expected: who says a billion says no more than the others."""

    def boasting(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "query.importance":
            arrays = dict(reply.content["arrays"].to_torch_state_dict())
            last = {name: t.flip(0) * 1e9 for name, t in arrays.items()}
            reply.content["arrays"] = ArrayRecord(last)
        return reply

    def order(rule: str, faults: dict[int, Any]) -> list[list[float]]:
        out = tmp_path / f"{rule}-{len(faults)}"
        changes = {"clients": {"count": 6, "split": {"kind": "even"}}, "rounds": 1}
        recipe = make_recipe(
            **changes,
            tiers=make_recipe().model_dump(mode="json")["tiers"][:1],
            aggregation={"rule": rule},
            evaluation={"clients": False},
        )
        run(recipe, out, faults=faults)
        return [t.tolist() for t in Importance.load(out / "start" / "scores.safetensors").ffn]

    def alike(one: list[list[float]], other: list[list[float]]) -> float:
        pairs = zip(one, other, strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    bad = {2: boasting}
    assert alike(order("mean", {}), order("mean", bad)) < 0.5
    assert alike(order("median", {}), order("median", bad)) > 0.9


def test_krum_changes_nothing_by_too_few_answers(make_recipe: Make, tmp_path: Path) -> None:
    rule = {"rule": "krum", "malicious": 1}
    recipe = make_recipe(
        rounds=1, clients={"count": 6}, aggregation=rule, evaluation={"clients": False}
    )
    summary, _ = run(recipe, tmp_path / "run", faults={0: _fails, 1: _fails})
    assert summary.events["too few"] == 1  # four of the five that it needs


def test_names_that_look_alike_are_two_devices() -> None:
    assert own_tier("client-0000") == "own-client-0000"
    names = ["phone-1", "phone.1", "Phone-1", "phone 1", "x" * 80, "x" * 81]
    assert len({own_tier(name) for name in names}) == len(names)
    for name in names:
        TierSpec(name=own_tier(name))
        assert len(own_tier(name)) < 100


def test_tiers_of_one_target_have_each_its_own_given_table(
    make_recipe: Make, tiny_table: Path, tmp_path: Path
) -> None:
    told = json.loads(tiny_table.read_text())
    told["device"]["cpu"] = "a phone"
    (tmp_path / "phone.json").write_text(json.dumps(told))
    large, small = make_recipe().model_dump(mode="json")["tiers"]
    recipe = make_recipe(tiers=[large, small | {"table": str(tmp_path / "phone.json")}])
    for _ in range(2):  # measured or read, and again when a run goes on
        found = tables_of(recipe, load_config(recipe.model), tmp_path / "tables")
        assert found["small"].device.cpu == "a phone" != found["large"].device.cpu
