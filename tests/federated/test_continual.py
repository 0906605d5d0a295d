"""Classes, topics and clients that come and go, and what is forgotten of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import InProcess

from hwnas.federated.client import Client, client_app
from hwnas.federated.continual import forgetting, is_there, phase_at
from hwnas.federated.identity import Identity
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server import federate
from hwnas.federated.summary import FederatedSummary

Make = Callable[..., FederatedRecipe]


def test_forgetting_is_the_mean_fall_from_the_best() -> None:
    judged = [[80.0, 0.0, 0.0], [90.0, 10.0, 0.0], [50.0, 70.0, 0.0]]
    assert forgetting(judged[:1], 0) is None
    assert forgetting(judged, 1) == 40
    assert forgetting([*judged, [60.0, 40.0, 80.0]], 2) == (30 + 30) / 2


def test_phases_share_the_rounds_and_the_clients(make_recipe: Make) -> None:
    recipe = make_recipe(rounds=7, continual={"phases": 3, "by": "clients"})
    assert [phase_at(recipe, number) for number in range(1, 8)] == [0, 0, 0, 1, 1, 2, 2]
    assert recipe.continual is not None
    there = [[is_there(recipe.continual, phase, i, 4) for i in range(4)] for phase in range(3)]
    assert [sum(each) for each in zip(*there, strict=True)] == [1, 1, 1, 1]


def _run(recipe: FederatedRecipe, out: Path) -> tuple[FederatedSummary, list[dict[str, Any]]]:
    summary = federate(
        InProcess(client_app(recipe), recipe.clients.count), recipe, out, resume=False
    )
    return summary, [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


CLASSES = {
    "rounds": 3,
    "continual": {"phases": 3},
    "evaluation": {"every": 1, "clients": False},
    "local": {"steps": 3},
}


def test_classes_come_and_go(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(**CLASSES)
    text = recipe.model_dump_json()
    client = Client(text, Identity("client-0000", partition=0))
    labels = client.hello().labels
    for phase in range(3):
        assert set(client.encoded(labels, "train", phase)["labels"]) <= {phase}
    whole = len(client.encoded(labels, "train"))
    assert sum(len(client.encoded(labels, "train", phase)) for phase in range(3)) == whole
    summary, rounds = _run(recipe, tmp_path / "run")
    assert [one["phase"] for one in rounds] == [0, 1, 2]
    assert not rounds[0]["forgetting"]
    for name in ("large", "small"):
        scores = [one["phase_scores"][name] for one in rounds]
        fallen = [max(each[p] for each in scores) - scores[-1][p] for p in range(2)]
        assert rounds[2]["forgetting"][name] == pytest.approx(sum(fallen) / 2)
    assert summary.tiers[0].forgetting == rounds[2]["forgetting"]["large"]


def test_what_the_received_weights_say_is_kept(make_recipe: Make) -> None:
    """The more it weighs, the less a client's answers stray from those it was sent."""
    from hwnas.elastic.supernet import SuperNetwork
    from hwnas.federated.local import Trainee, train_locally
    from hwnas.federated.originals import load_original, original_of
    from hwnas.tasks.predict import predict

    recipe = make_recipe(**CLASSES)
    text = recipe.model_dump_json()
    client = Client(text, Identity("client-0000", partition=0))
    labels = client.hello().labels
    rows, kind = client.encoded(labels, "train"), recipe.task.task_kind

    def strayed(keep: float) -> float:
        model, tokenizer = load_original(recipe, labels)
        before = predict(model, rows)
        trainee = Trainee(SuperNetwork(model), None)
        spec = recipe.local.model_copy(update={"keep": keep})
        train_locally(trainee, tokenizer, rows, kind, spec, smaller=[], steps=12, rate=1e-3, seed=0)
        return kind.divergence(before, predict(trainee.model, rows), rows)

    assert strayed(20.0) < 0.5 * strayed(0.0)
    assert original_of(text, tuple(labels)).config.num_labels == 3


def test_topics_of_a_column(make_recipe: Make, tmp_path: Path) -> None:
    source = Path(make_recipe().task.data)
    rows = list(csv.DictReader(source.open()))
    data = tmp_path / "topics.csv"
    with data.open("w") as file:
        writer = csv.DictWriter(file, ["text", "label", "topic"])
        writer.writeheader()
        writer.writerows(
            row | {"topic": "even" if i % 2 == 0 else "odd"} for i, row in enumerate(rows)
        )
    recipe = make_recipe(
        task={"data": str(data)}, continual={"phases": 2, "by": "column", "column": "topic"}
    )
    client = Client(recipe.model_dump_json(), Identity("client-0001", partition=1))
    labels = client.hello().labels
    both = [len(client.encoded(labels, "train", phase)) for phase in range(2)]
    assert sum(both) == len(client.encoded(labels, "train")) and min(both) > 0


def test_a_client_without_rows_of_the_phase_is_idle(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(
        **CLASSES | {"clients": {"count": 12, "split": {"kind": "dirichlet", "alpha": 0.05}}}
    )
    summary, rounds = _run(recipe, tmp_path / "run")
    assert summary.events.get("idle", 0) > 0 and "failed" not in summary.events
    assert sum(one["asked"] - one["answered"] for one in rounds) == summary.events["idle"]


@pytest.mark.parametrize("kind", ["central", "local"])
def test_with_privacy_nobody_tells_that_it_has_no_rows_of_the_phase(
    kind: str, make_recipe: Make, tmp_path: Path
) -> None:
    uneven = {"split": {"kind": "dirichlet", "alpha": 0.05}, "count": 6}
    labels = ["0", "1", "2"]
    recipe = make_recipe(
        **CLASSES
        | {
            "clients": uneven,
            "labels": labels,
            "importance": "magnitude",
            "aggregation": {"weigh": "clients"},
            "privacy": {"kind": kind, "clip": 0.1, "noise": 0.1},
        }
    )
    text = recipe.model_dump_json()
    clients = [Client(text, Identity(f"client-{i:04}", partition=i)) for i in range(6)]
    assert not all(
        len(one.encoded(labels, "train", phase)) for one in clients for phase in range(3)
    )
    summary, rounds = _run(recipe, tmp_path / "run")
    assert not {"idle", "failed"} & summary.events.keys()
    assert [one["answered"] for one in rounds] == [one["asked"] for one in rounds] == [6, 6, 6]
