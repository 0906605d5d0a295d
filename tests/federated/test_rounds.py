"""The server's rounds with real apps and messages: what is learned, sent, kept, and survived."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from in_process import InProcess, run

from hwnas.errors import HwnasError
from hwnas.federated.judging import server_rows
from hwnas.federated.parts import Part
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server import Federation
from hwnas.federated.state import ServerState
from hwnas.federated.summary import FederatedSummary
from hwnas.files import read_tensors
from hwnas.models import load
from hwnas.tasks.predict import predict

Make = Callable[..., FederatedRecipe]
Weights = dict[str, torch.Tensor]


def _weights(out: Path) -> Weights:
    return read_tensors(out / "state" / "trained.safetensors")


def _events(out: Path) -> list[tuple[str, int, str]]:
    lines = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return [(line["event"], line["round"], line["client"]) for line in lines]


def _apart(one: Weights, other: Weights) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def finished(
    make_recipe: Make, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FederatedRecipe, Path, FederatedSummary, InProcess]:
    """A run in which nothing went wrong; only to be read."""
    recipe = make_recipe()
    out = tmp_path_factory.mktemp("federated") / "run"
    return recipe, out, *run(recipe, out)


Finished = tuple[FederatedRecipe, Path, FederatedSummary, InProcess]


def test_every_tier_gets_its_model(finished: Finished) -> None:
    recipe, out, summary, _ = finished
    large, small = summary.tiers
    assert small.budget_ms is not None and small.predicted_ms <= small.budget_ms * 1.001
    state = ServerState.find(out, recipe)
    assert state is not None
    genomes = (state.tiers[name].genome for name in ("large", "small"))
    for wide, narrow in zip(*genomes, strict=True):
        assert narrow[0] <= wide[0] and narrow[1] <= wide[1]
    assert small.served == "small" and large.served in ("large", "small")
    federation_rows = state.tokenizer(["good day", "bad day"], padding=True, return_tensors="pt")
    for tier in summary.tiers:
        dense = load(out / tier.path)
        assert sum(p.numel() for p in dense.parameters()) == tier.params
        with (
            torch.no_grad(),
            state.network.as_subnetwork(state.tiers[tier.served].subnetwork) as own,
        ):
            own.eval()
            torch.testing.assert_close(
                dense(**federation_rows).logits, own(**federation_rows).logits
            )


def test_only_what_a_client_trains_is_sent(finished: Finished) -> None:
    recipe, out, summary, _ = finished
    state = ServerState.find(out, recipe)
    assert state is not None
    numbers = {name: state.part(tier.subnetwork).numel for name, tier in state.tiers.items()}
    each = 2 * summary.rounds * 4  # two clients of each tier, four bytes a number
    wanted = each * sum(numbers.values())
    assert summary.up_bytes == pytest.approx(wanted, rel=0.05)  # Flower's own headers come on top
    assert summary.down_bytes == pytest.approx(wanted, rel=0.05)
    assert summary.trained_bytes == 2 * 2 * each * numbers["large"]
    embeddings = state.network.model.get_input_embeddings().weight
    original = load(Path(recipe.model)).get_input_embeddings().weight
    assert torch.equal(embeddings, original)


def test_scores_are_those_of_the_files(finished: Finished) -> None:
    recipe, out, summary, _ = finished
    rows = server_rows(recipe)
    kind = recipe.task.task_kind
    for tier in summary.tiers:
        answers = predict(load(out / tier.path), rows)
        assert kind.score("accuracy", answers, rows) == pytest.approx(tier.score)
        assert tier.clients == 2 and tier.mean is not None


def test_the_same_whatever_the_order_of_answers(
    finished: Finished, make_recipe: Make, tmp_path: Path
) -> None:
    summary, _ = run(make_recipe(), tmp_path / "again", backwards=True)
    assert _apart(_weights(finished[1]), _weights(tmp_path / "again")) < 1e-6
    assert [t.score for t in summary.tiers] == [t.score for t in finished[2].tiers]


def test_another_seed_is_another_run(finished: Finished, make_recipe: Make, tmp_path: Path) -> None:
    run(make_recipe(seed=1), tmp_path / "other")
    assert _apart(_weights(finished[1]), _weights(tmp_path / "other")) > 1e-4


class KilledError(Exception):
    pass


class DiesInRoundTwo(Federation):
    def train(self, state: ServerState, number: int) -> Any:
        found = super().train(state, number)
        if number == 2:
            raise KilledError  # all answers are in, nothing of the round is kept yet
        return found


def test_a_killed_server_goes_on_to_the_same_result(
    finished: Finished, make_recipe: Make, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KilledError):
        run(make_recipe(), out, kind=DiesInRoundTwo)
    assert len((out / "rounds.jsonl").read_text().splitlines()) == 1
    summary, _ = run(make_recipe(), out, resume=True)
    assert summary.rounds == 2
    assert _apart(_weights(finished[1]), _weights(out)) < 1e-6


def test_messages_under_way_are_bounded(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(rounds=1, clients={"at_once": 2, "count": 6})
    _, grid = run(recipe, tmp_path / "run")
    assert grid.most_waiting == 2


def _weights_changed(change: Callable[[Weights], None]) -> Any:
    """A client that sends back other weights than it has trained."""

    def fault(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "train":
            arrays = dict(reply.content["arrays"].to_torch_state_dict())
            change(arrays)
            reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    return fault


def _not_a_number(arrays: Weights) -> None:
    next(iter(arrays.values())).view(-1)[0] = float("nan")


def _another_shape(arrays: Weights) -> None:
    name = next(iter(arrays))
    arrays[name] = torch.zeros(3, 3)


def _something_else(arrays: Weights) -> None:
    arrays["intruder"] = torch.zeros(3)


def _less(arrays: Weights) -> None:
    arrays.pop(next(iter(arrays)))


def _dies(request: Message, reply: Message) -> Message | None:
    return None if request.metadata.message_type == "train" else reply


def _fails(request: Message, reply: Message) -> Message:
    if request.metadata.message_type != "train":
        return reply
    return Message(Error(code=0, reason="out of memory"), reply_to=request)


def _mumbles(request: Message, reply: Message) -> Message:
    if request.metadata.message_type == "train":
        reply.content["json"] = ConfigRecord({"json": '{"rows": "many"}'})
    return reply


def _said(text: str) -> Any:
    """A client that says this in place of what it has done."""

    def fault(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == "train":
            reply.content["json"] = ConfigRecord({"json": text})
        return reply

    return fault


def _truths(arrays: Weights) -> None:
    name = next(iter(arrays))
    arrays[name] = arrays[name] > 0


def _beyond(arrays: Weights) -> None:
    """Finite, but not where the server adds it up."""
    name = next(iter(arrays))
    arrays[name] = torch.full(arrays[name].shape, 1e300, dtype=torch.float64)


FAULTS = {
    "NaN": (_weights_changed(_not_a_number), "failed"),
    "shape": (_weights_changed(_another_shape), "failed"),
    "more": (_weights_changed(_something_else), "failed"),
    "less": (_weights_changed(_less), "failed"),
    "dies": (_dies, "late"),
    "error": (_fails, "failed"),
    "garbled": (_mumbles, "failed"),
    "no loss": (_said('{"rows": 9, "loss": NaN, "seconds": 1.0}'), "failed"),
    "many rows": (_said('{"rows": 1' + 400 * "0" + ', "seconds": 1.0}'), "failed"),
    "truths": (_weights_changed(_truths), "failed"),
    "beyond": (_weights_changed(_beyond), "failed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_client_that_goes_wrong_costs_its_answer_only(
    name: str, make_recipe: Make, tmp_path: Path
) -> None:
    fault, event = FAULTS[name]
    recipe = make_recipe(rounds=1, clients={"deadline_s": 20.0}, evaluation={"clients": False})
    if name == "dies":
        recipe = make_recipe(rounds=1, clients={"deadline_s": 4.0}, evaluation={"clients": False})
    summary, _ = run(recipe, tmp_path / "run", faults={1: fault})
    assert (event, 1, "client-0001") in _events(tmp_path / "run")
    assert summary.events[event] == 1
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert (line["asked"], line["answered"]) == (4, 3)
    assert all(tensor.isfinite().all() for tensor in _weights(tmp_path / "run").values())


def test_a_slow_client_is_left_out_and_its_late_answer_dropped(
    make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(
        rounds=1, clients={"deadline_s": 4.0}, evaluation={"clients": False, "every": 1}
    )
    summary, _ = run(recipe, tmp_path / "run", delay_s={2: 5.0})
    assert summary.events["late"] == 1
    assert ("late", 1, "client-0002") in _events(tmp_path / "run")
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert (line["asked"], line["answered"]) == (4, 3)


def test_a_client_that_comes_back_takes_part_again(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(rounds=5, evaluation={"clients": False, "every": 5})
    run(recipe, tmp_path / "run", away={3: {2, 3, 4}})
    events = _events(tmp_path / "run")
    assert ("gone", 2, "client-0003") in events
    assert ("joined", 5, "client-0003") in events
    lines = map(json.loads, (tmp_path / "run" / "rounds.jsonl").read_text().splitlines())
    assert [line["answered"] for line in lines] == [4, 3, 3, 3, 4]


def test_a_round_with_too_few_answers_changes_nothing(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(rounds=1, clients={"least": 4}, evaluation={"clients": False})
    summary, _ = run(recipe, tmp_path / "run", faults={0: _fails})
    assert summary.events["too few"] == 1
    before = read_tensors(tmp_path / "run" / "start" / "model.safetensors")
    assert _apart(_weights(tmp_path / "run"), before) == 0
    run(recipe, tmp_path / "clean")
    assert _apart(_weights(tmp_path / "clean"), before) > 1e-5


def test_a_run_that_nobody_answers_any_more_is_given_up(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(rounds=9, evaluation={"clients": False, "every": 9})
    with pytest.raises(HwnasError, match="none of the 4 clients"):
        run(recipe, tmp_path / "run", faults=dict.fromkeys(range(4), _fails))
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_robust_rules_keep_a_poisoned_update_out(
    rule: str, make_recipe: Make, tmp_path: Path
) -> None:
    """A client sends a hundred times the opposite of what it learned."""

    def poisoned(grid_weights: dict[str, Weights]) -> Any:
        def fault(request: Message, reply: Message) -> Message:
            if request.metadata.message_type == "train":
                sent = request.content["arrays"].to_torch_state_dict()
                arrays = dict(reply.content["arrays"].to_torch_state_dict())
                for name, after in arrays.items():
                    arrays[name] = sent[name] - 100 * (after - sent[name])
                reply.content["arrays"] = ArrayRecord(arrays)
            return reply

        return fault

    def moved(aggregation: dict[str, Any], faults: dict[int, Any], name: str) -> Weights:
        recipe = make_recipe(
            rounds=1,
            clients={"count": 6},
            aggregation=aggregation,
            importance="magnitude",
            evaluation={"clients": False},
        )
        run(recipe, tmp_path / name, faults=faults)
        return _weights(tmp_path / name)

    bad = {4: poisoned({})}
    honest = moved({"rule": "mean"}, {}, "honest")
    fooled = moved({"rule": "mean"}, bad, "fooled")
    robust = moved({"rule": rule, "trim": 0.2, "malicious": 1}, bad, "robust")
    assert _apart(honest, robust) < 0.25 * _apart(honest, fooled)


def test_parts_of_nested_subnetworks_are_prefixes(finished: Finished) -> None:
    recipe, out, _, _ = finished
    state = ServerState.find(out, recipe)
    assert state is not None
    large, small = (state.part(tier.subnetwork) for tier in state.tiers.values())
    wide = {piece.name: piece.shape for piece in large.pieces}
    for piece in small.pieces:
        assert all(a <= b for a, b in zip(piece.shape, wide[piece.name], strict=True))
    assert isinstance(small, Part) and small.numel < large.numel


def test_adapters_learn_beside_frozen_weights_that_are_never_sent(
    make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(train="adapters", adapters={"rank": 4, "alpha": 8, "dropout": 0.0})
    out = tmp_path / "run"
    summary, _ = run(recipe, out)
    trained = read_tensors(out / "state" / "trained.safetensors")
    kinds = {name.rpartition(".")[2] for name in trained if ".layer." in name}
    assert kinds == {"down", "up"}
    assert any(name.startswith("classifier") for name in trained)
    assert any(tensor.any() for name, tensor in trained.items() if name.endswith(".up"))
    # adapters, the head and the scores of the order, instead of every weight
    assert summary.up_bytes < 0.1 * summary.everything_bytes / 2
    state = ServerState.find(out, recipe)
    assert state is not None
    rows = state.tokenizer(["good day", "bad day"], padding=True, return_tensors="pt")
    for tier in summary.tiers:
        dense = load(out / tier.path)
        assert not any("down" in name for name, _ in dense.named_parameters())
        with (
            torch.no_grad(),
            state.network.as_subnetwork(state.tiers[tier.served].subnetwork) as own,
        ):
            own.eval()
            torch.testing.assert_close(dense(**rows).logits, own(**rows).logits)


def test_a_language_model_reads_on_at_its_clients(tmp_path: Path) -> None:
    """Continued pre-training: a tiny Llama, texts dealt out evenly, adapters."""
    from tiny_language import letters, llama

    recipe = llama(tmp_path, letters(tmp_path))
    summary, _ = run(recipe, tmp_path / "run")
    assert summary.metric == "token_accuracy" and summary.labels == []
    first, last = (
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "rounds.jsonl")
        .read_text()
        .splitlines()[:: recipe.rounds - 1]
    )
    assert last < first
    for tier in summary.tiers:
        assert tier.score is not None and 0 < tier.score < 100
        assert load(tmp_path / "run" / tier.path).config.model_type == "llama"


def test_a_prompt_is_a_few_kilobytes_a_round(make_recipe: Make, tmp_path: Path) -> None:
    from peft import PeftModel

    recipe = make_recipe(train="prompt", prompt=5, local={"nested": 0, "rate": 0.01})
    out = tmp_path / "run"
    summary, _ = run(recipe, out)
    trained = read_tensors(out / "state" / "trained.safetensors")
    hidden = 128
    assert {name: tuple(t.shape) for name, t in trained.items()} == {
        "soft_prompt": (5, hidden),
        "classifier.weight": (3, hidden),
        "classifier.bias": (3,),
    }
    assert 0 < summary.up_bytes < 2 * 4 * 8_000  # rounds, clients, bytes
    lines = map(json.loads, (out / "rounds.jsonl").read_text().splitlines())
    assert [line["answered"] for line in lines] == [4, 4]
    started = tmp_path / "once"
    run(recipe.model_copy(update={"rounds": 1}), started)
    once = read_tensors(started / "state" / "trained.safetensors")
    assert all(not torch.equal(tensor, once[name]) for name, tensor in trained.items())
    first = load(out / "start").get_input_embeddings().weight
    assert not any(torch.equal(token, row) for token in trained["soft_prompt"] for row in first[:9])
    state = ServerState.find(out, recipe)
    assert state is not None
    rows = state.tokenizer(["good day", "bad day"], padding=True, return_tensors="pt")
    for tier in summary.tiers:
        again = PeftModel.from_pretrained(
            load(out / tier.path), out / "tiers" / tier.name / "prompt"
        )
        with torch.no_grad(), state.answering(state.tiers[tier.served]) as own:
            torch.testing.assert_close(again(**rows).logits, own(**rows).logits)
    resumed, _ = run(recipe, out, resume=True)
    assert [t.score for t in resumed.tiers] == [t.score for t in summary.tiers]


def test_clients_bring_their_own_tables(
    make_recipe: Make, tiny_table: Path, tmp_path: Path
) -> None:
    """One with a table and a budget, one with another model's table, one with too low a budget."""
    recipe = make_recipe(rounds=1, evaluation={"every": 1, "clients": False})
    shipped = "minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128.json"
    given = {
        0: {"table": str(tiny_table), "budget": "75%"},
        1: {"table": shipped, "budget": "75%"},
        2: {"table": str(tiny_table), "budget": "0.0001ms"},
    }
    out = tmp_path / "run"
    summary, _ = run(recipe, out, configs=given)
    events = _events(out)
    refused = [(number, client) for event, number, client in events if event == "refused"]
    # the first is not known by its name yet; neither is asked again
    assert refused == [(0, "node-1007"), (1, "client-0002")]
    assert [tier.name for tier in summary.tiers] == ["large", "small", "own-client-0000"]
    own = summary.tiers[2]
    assert own.predicted_ms <= 0.75 * own.whole_ms
    large, small = summary.tiers[:2]
    assert small.params < own.params < large.params
    line = json.loads((out / "rounds.jsonl").read_text())
    assert line["answered"] == line["asked"] == 2
