"""Secure aggregation: the sum is the plain one to rounding, and what is sent alone says nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common import bytes_to_ndarray
from in_process import InProcess, run

from hwnas.errors import UserError
from hwnas.federated.client import client_app
from hwnas.federated.population import deal, load_simulated
from hwnas.federated.recipe import FederatedRecipe, SecureSpec
from hwnas.federated.secure import LEVELS, MODULUS, masking
from hwnas.federated.server import federate
from hwnas.federated.tiers import dealt_tiers
from hwnas.files import read_tensors

Make = Callable[..., FederatedRecipe]
Weights = dict[str, torch.Tensor]
RANGE = 0.05
SIX: dict[str, Any] = {
    "clients": {"count": 6},
    "rounds": 1,
    "importance": "magnitude",
    "evaluation": {"every": 1, "clients": False},
}
SECURE = {"secure": {"range": RANGE}}


def _weights(out: Path) -> Weights:
    return read_tensors(out / "state" / "trained.safetensors")


def _apart(one: Weights, other: Weights) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def _events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


_SAYS = {
    "pk1": "setup",
    "dsts": "share_keys",
    "masked_params": "collect_masked_vectors",
    "shares": "unmask",
}


def _stage(reply: Message) -> str | None:
    """Of secure aggregation, by what a client says in it."""
    if not reply.has_content():
        return None
    record = reply.content.config_records.get("secaggplus_configs", {})
    return next((stage for key, stage in _SAYS.items() if key in record), None)


@pytest.mark.parametrize(("weigh", "train"), [("examples", "all"), ("clients", "adapters")])
def test_the_sum_is_the_plain_one_to_rounding(
    make_recipe: Make, tmp_path: Path, weigh: str, train: str
) -> None:
    settings = SIX | {"aggregation": {"weigh": weigh}, "train": train}
    plain, _ = run(make_recipe(**settings), tmp_path / "plain")
    secure, _ = run(make_recipe(**settings, **SECURE), tmp_path / "secure")
    if train == "all":
        assert _apart(_weights(tmp_path / "plain"), _start(tmp_path / "plain")) > 1e-3
    # a step of rounding, of few who weigh little a few of them
    assert _apart(_weights(tmp_path / "plain"), _weights(tmp_path / "secure")) < 20 * RANGE / LEVELS
    assert secure.up_bytes > plain.up_bytes
    assert [tier.score for tier in secure.tiers] == pytest.approx(
        [tier.score for tier in plain.tiers], abs=2.1
    )


def test_rows_of_several_windows_weigh_as_one_row_each(make_recipe: Make, tmp_path: Path) -> None:
    words = ["good", "bad", "day", "a", "other", "neutral"]
    rows = []
    chance = random.Random(0)
    for i in range(200):
        context = " ".join(chance.choices(words, k=90 if i % 2 else 9))
        answer = {"text": [context.split()[0]], "answer_start": [0]}
        rows.append({"question": f"which {i} ?", "context": context, "answers": answer})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SIX | {
        "task": {"data": str(data), "kind": "spans", "text": ["question", "context"]},
        "clients": {"count": 6, "split": {"kind": "even"}},
        "aggregation": {"weigh": "examples"},
    }
    said: list[int] = []

    def listen(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "train" and reply.has_content():
            record = reply.content.config_records.get("json")
            said.append(json.loads(str(record["json"]))["rows"] if record is not None else 0)
        return reply

    plain, secure = make_recipe(**settings), make_recipe(**settings, **SECURE)
    run(plain, tmp_path / "plain", faults=dict.fromkeys(range(6), listen))
    run(secure, tmp_path / "secure")
    task = load_simulated(plain)
    assert sum(said) < sum(len(part) for part in deal(plain, task)) <= len(task.train)
    for name in ("plain", "secure"):
        assert {e["event"] for e in _events(tmp_path / name)} == {"joined"}
    assert _apart(_weights(tmp_path / "plain"), _weights(tmp_path / "secure")) < 20 * RANGE / LEVELS
    assert _apart(_weights(tmp_path / "plain"), _start(tmp_path / "plain")) > 1e-3


def _start(out: Path) -> Weights:
    from safetensors.torch import load_file

    whole = load_file(out / "start" / "model.safetensors")
    return {name: whole[name] for name in _weights(out)}


def test_an_update_that_is_sent_says_nothing_alone(make_recipe: Make, tmp_path: Path) -> None:
    sent: list[np.ndarray] = []

    def look(request: Message, reply: Message) -> Message:
        if _stage(reply) == "collect_masked_vectors":
            assert not any(map(len, reply.content.array_records.values()))
            record = reply.content.config_records["secaggplus_configs"]
            arrays: Any = record["masked_params"]
            sent.extend(bytes_to_ndarray(one).flatten() for one in arrays)
        return reply

    run(make_recipe(**SIX, **SECURE), tmp_path / "run", faults={0: look})
    numbers = np.concatenate(sent)
    # spread evenly over all numbers of the modulus, as only the masks are
    shares, _ = np.histogram(numbers, bins=16, range=(0, MODULUS))
    assert shares / len(numbers) == pytest.approx(1 / 16, abs=0.01)


def _of_one_tier(make_recipe: Make, **changes: Any) -> FederatedRecipe:
    tiers = make_recipe().model_dump(mode="json")["tiers"][:1]
    return make_recipe(**SIX | {"tiers": tiers} | changes)


@pytest.fixture(scope="module")
def plainly(make_recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """What eight clients of one tier come to without masks, and seven without the sixth."""
    recipe = _of_one_tier(make_recipe, clients={"count": 8})
    found = {}
    for name, faults in (("all", {}), ("left", {5: _lost})):
        out = tmp_path_factory.mktemp("plain") / "run"
        run(recipe, out, faults=faults)
        found[name] = _weights(out)
    return found


@pytest.mark.parametrize("stage", ["setup", "share_keys", "collect_masked_vectors", "unmask"])
def test_who_leaves_in_any_stage_is_left_out_and_no_more(
    make_recipe: Make, plainly: dict[str, Weights], tmp_path: Path, stage: str
) -> None:
    """Of those that answered up to the last stage, all counts."""

    def leave(request: Message, reply: Message) -> Message | None:
        if _stage(reply) != stage:
            return reply
        return Message(Error(code=0, reason="out of memory"), reply_to=request)

    recipe = _of_one_tier(make_recipe, clients={"count": 8}, **SECURE)
    run(recipe, tmp_path / "secure", faults={5: leave})
    told = [e for e in _events(tmp_path / "secure") if e["event"] == "failed"]
    assert [(e["client"], e["why"]) for e in told] == [("client-0005", "out of memory")]
    wanted = plainly["all" if stage == "unmask" else "left"]
    assert _apart(wanted, _weights(tmp_path / "secure")) < 20 * RANGE / LEVELS
    assert _apart(plainly["all"], plainly["left"]) > 1e-4


def _lost(request: Message, reply: Message) -> Message:
    if request.metadata.message_type != "train":
        return reply
    return Message(Error(code=0, reason="lost"), reply_to=request)


def test_too_few_for_a_sum_change_nothing(make_recipe: Make, tmp_path: Path) -> None:
    def leave(request: Message, reply: Message) -> Message:
        if _stage(reply) != "collect_masked_vectors":
            return reply
        return Message(Error(code=0, reason="gone"), reply_to=request)

    recipe = make_recipe(**SIX, **SECURE)
    gone = [i for i, tier in enumerate(dealt_tiers(recipe)) if tier == "small"]
    run(recipe, tmp_path / "run", faults={gone[0]: leave})
    why = [e["why"] for e in _events(tmp_path / "run") if e["event"] == "too few"]
    assert why == ["2 left in a secure sum"]
    # as if nobody of theirs had answered, and as without masks
    run(make_recipe(**SIX), tmp_path / "plain", faults=dict.fromkeys(gone, _lost))
    assert _apart(_weights(tmp_path / "run"), _weights(tmp_path / "plain")) < 20 * RANGE / LEVELS
    assert _apart(_weights(tmp_path / "run"), _start(tmp_path / "run")) > 1e-3


def test_a_client_does_not_answer_a_server_that_asks_in_the_open(
    make_recipe: Make, tmp_path: Path
) -> None:
    """The server's recipe has no secure aggregation, the clients' has."""
    recipe, theirs = make_recipe(**SIX), make_recipe(**SIX, **SECURE)
    grid = InProcess(client_app(theirs), 6)
    federate(grid, recipe, tmp_path / "run", resume=False)
    told = [e["why"] for e in _events(tmp_path / "run") if e["event"] == "failed"]
    assert len(told) == 6
    assert set(told) == {"secure: the server asks for an update that is not masked"}


@pytest.mark.parametrize(("key", "value"), [("share_num", 2), ("threshold", 1)])
def test_a_client_is_not_hidden_among_too_few(
    make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: int
) -> None:
    recipe = make_recipe(**SIX, **SECURE)
    app = client_app(recipe)

    def weaker(message: Message, context: Any) -> Message:
        asked = message.content.config_records.get("secaggplus_configs")
        if asked is not None and asked["stage"] == "setup":
            asked[key] = value
        return app(message, context)

    grid = InProcess(weaker, 6)  # type: ignore[arg-type]
    federate(grid, recipe, tmp_path / "run", resume=False)
    told = [e["why"] for e in _events(tmp_path / "run") if e["event"] == "failed"]
    assert len(told) == 6
    assert all(why.startswith("secure") for why in told)


def _garbled(what: str) -> Callable[[Message, Message], Message]:
    def change(request: Message, reply: Message) -> Message:
        stage = _stage(reply)
        record: Any = reply.content.config_records.get("secaggplus_configs")
        if stage == "setup" and what == "keys":
            record["pk1"] = "no key"
        if stage == "setup" and what == "no keys":
            record["pk2"] = b"no key"
        if stage == "setup" and what == "one key":
            record["pk2"] = record["pk1"]
        if stage == "share_keys" and what == "shares":
            record["dsts"] = record["dsts"][:-1]
        if stage == "collect_masked_vectors" and what == "update":
            record["masked_params"] = record["masked_params"][:-1]
        if stage == "collect_masked_vectors" and what == "bytes":
            record["masked_params"] = [b"nothing"] * len(record["masked_params"])
        if stage == "unmask" and what == "others":
            record["nids"] = [1] * len(record["nids"])
        if stage is not None and what == "silence":
            return Message(
                content=type(reply.content)({"json": ConfigRecord({"json": "{}"})}),
                reply_to=request,
            )
        return reply

    return change


@pytest.mark.parametrize(
    "what", ["keys", "no keys", "one key", "shares", "update", "bytes", "others", "silence"]
)
def test_garbled_answers_cost_no_more_than_their_client(
    make_recipe: Make, tmp_path: Path, what: str
) -> None:
    recipe = _of_one_tier(make_recipe, **SECURE)
    summary, _ = run(recipe, tmp_path / "run", faults={2: _garbled(what)})
    told = [e["client"] for e in _events(tmp_path / "run") if e["event"] == "failed"]
    assert told == ["client-0002"]
    assert summary.rounds == 1
    (line,) = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert json.loads(line)["answered"] == (6 if what == "others" else 5)
    assert all(t.isfinite().all() for t in _weights(tmp_path / "run").values())


def test_an_update_that_is_not_finite_is_kept_back(
    make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwnas.federated import local

    honest, calls = local.Trainee.result, []

    def result(self: Any, part: Any) -> Weights:
        found = honest(self, part)
        calls.append(1)
        if len(calls) == 1:
            next(iter(found.values())).view(-1)[0] = float("nan")
        return found

    monkeypatch.setattr(local.Trainee, "result", result)
    run(_of_one_tier(make_recipe, **SECURE), tmp_path / "run")
    told = [e["why"] for e in _events(tmp_path / "run") if e["event"] == "failed"]
    assert told == ["the update holds numbers that are not finite"]


def test_with_central_privacy_clients_clip_what_the_server_cannot_see(
    make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # the same noise in both runs
        "hwnas.federated.privacy._unforeseeable", lambda: torch.Generator().manual_seed(0)
    )
    private = {
        "privacy": {"kind": "central", "clip": 0.01, "noise": 0.5},
        "aggregation": {"weigh": "clients"},
        "labels": ["0", "1", "2"],
    }
    run(_of_one_tier(make_recipe, **private), tmp_path / "plain")
    run(_of_one_tier(make_recipe, **private, **SECURE), tmp_path / "secure")
    for name in ("plain", "secure"):
        assert {e["event"] for e in _events(tmp_path / name)} == {"joined"}
    moved = _apart(_weights(tmp_path / "plain"), _start(tmp_path / "plain"))
    apart = _apart(_weights(tmp_path / "plain"), _weights(tmp_path / "secure"))
    assert apart < 20 * RANGE / LEVELS < moved


def test_masked_arrays_are_no_weights(make_recipe: Make) -> None:
    """What Flower's mod masks is named so that nothing else takes it for weights."""
    from hwnas.federated.messages import ARRAYS, Done, pack
    from hwnas.federated.secure import maskable

    content = maskable(pack(Done(seconds=0.0)), [torch.ones(2)], 3)
    assert ARRAYS not in content.array_records
    assert isinstance(content.array_records["fitres.parameters"], ArrayRecord)


def test_no_other_name_of_training_gets_an_update_that_is_not_masked() -> None:
    spec = SecureSpec()
    mod = masking(lambda _: spec)
    asked: list[Message] = []

    def answer(message: Message, context: Any) -> Message:
        asked.append(message)
        return message

    for kind in ("train", "train.default", "train.other"):
        message = Message(content=RecordDict(), dst_node_id=1, message_type=kind)
        with pytest.raises(UserError, match="not masked"):
            mod(message, cast("Any", None), answer)
    assert not asked
    mod(Message(content=RecordDict(), dst_node_id=1, message_type="evaluate"), None, answer)
    assert len(asked) == 1
