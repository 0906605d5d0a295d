"""The same recipe on Ray's virtual clients and on a real SuperLink with SuperNodes; real weights.

Slow: every message to a SuperNode starts a process that imports torch and transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deployment import Deployment, deployment

from hwnas.cli import app
from hwnas.federated.summary import FederatedSummary
from hwnas.files import read_model, read_tensors
from hwnas.models import load

pytestmark = pytest.mark.slow  # processes of Ray and Flower, and real weights

TABLE = {
    "target": "openvino:cpu:threads=1,batch=1,seq=128",
    "table": "minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128.json",
}
RECIPE: dict[str, Any] = {
    "model": "demo:minilm",
    "task": {"max_length": 32},  # and a file of real tweets, which is read sooner than all of them
    "rounds": 2,
    "clients": {"count": 3, "least": 3, "rows": 40, "deadline_s": 150.0},
    "tiers": [
        {"name": "large", **TABLE},
        {"name": "small", "budget": "40%", **TABLE},
    ],
    "local": {"steps": 2, "batch": 4},
    "importance": "magnitude",
    "evaluation": {"every": 2, "rows": 40, "clients": False},
}


def _write(folder: Path, tiny_recipe: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    data = yaml.safe_load(tiny_recipe.read_text())["task"]["data"]
    task = {"task": RECIPE["task"] | {"data": data}}
    path.write_text(yaml.safe_dump(RECIPE | task | changes))
    return path


def _events(out: Path, event: str) -> list[dict[str, Any]]:
    path = out / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if line["event"] == event]


def _wait_for(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """The recipe in simulation, by the command line; its run directory."""
    folder = tmp_path_factory.mktemp("simulated")
    out = folder / "run"
    # a budget that this machine, not the table's, may miss is not what is tested
    command = ["federate", str(_write(folder, tiny_recipe)), "--out", str(out), "--workers", "2"]
    try:
        app(command, standalone_mode=False)
    except Exception as error:
        assert "over its budget" in str(error)
    return out


def test_a_simulation_ends_with_models_that_serve(simulated: Path) -> None:
    from optimum.intel import OVModelForSequenceClassification

    summary = read_model(simulated / "summary.json", FederatedSummary)
    assert summary.rounds == 2 and summary.clients == 3
    assert (simulated / "report.html").stat().st_size > 10_000
    large, small = summary.tiers
    assert small.ratio is not None and large.ratio is not None and small.ratio < large.ratio
    for tier in summary.tiers:
        assert tier.size_mb is not None and tier.measured_ms is not None
        served = OVModelForSequenceClassification.from_pretrained(
            simulated / "tiers" / tier.name / "openvino"
        )
        inputs = {
            "input_ids": torch.tensor([[101, 2204, 2154, 102]]),
            "attention_mask": torch.ones(1, 4, dtype=torch.long),
            "token_type_ids": torch.zeros(1, 4, dtype=torch.long),
        }
        with torch.no_grad():
            own = load(simulated / tier.path)(**inputs).logits
        torch.testing.assert_close(served(**inputs).logits, own, atol=1e-3, rtol=1e-3)


def _federate(recipe: Path, out: Path, flower: Deployment, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hwnas", "federate", str(recipe), "--out", str(out)]
    command += ["--superlink", flower.address, "--root-certificates", str(flower.ca), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def test_secure_sums_over_flowers_simulation(tmp_path: Path, tiny_recipe: Path) -> None:
    """Keys are kept from stage to stage by Flower, whichever process a client is in."""
    from in_process import InProcess

    from hwnas.federated.client import client_app
    from hwnas.federated.recipe import load_federated
    from hwnas.federated.server import federate
    from hwnas.federated.simulation import simulate

    one = {"tiers": RECIPE["tiers"][:1], "rounds": 1}
    plain = load_federated(_write(tmp_path, tiny_recipe, **one))
    federate(InProcess(client_app(plain), 3), plain, tmp_path / "plain", resume=False)
    secure = load_federated(_write(tmp_path, tiny_recipe, **one, secure={"range": 0.05}))
    simulate(secure, tmp_path / "secure", workers=2)
    assert not _events(tmp_path / "secure", "failed")
    wanted, found = (
        read_tensors(tmp_path / name / "state" / "trained.safetensors")
        for name in ("plain", "secure")
    )
    apart = [(t - wanted[name]).abs().max() for name, t in found.items()]
    assert max(apart) < 20 * 0.05 / 2**22


def test_a_superlink_restarted_a_stranger_refused_and_a_node_killed(
    simulated: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Three SuperNodes, a fourth that is not registered, and the SuperLink killed after a round."""
    recipe, out = _write(tmp_path, tiny_recipe), tmp_path / "run"
    with deployment(tmp_path) as flower:
        flower.start_superlink()
        for number in range(3):
            flower.register(f"node{number}")
            flower.start_supernode(f"node{number}", f"partition-id={number} num-partitions=3")
        flower.start_supernode("stranger", "partition-id=0 num-partitions=3")
        running = _federate(recipe, out, flower)
        _wait_for(lambda: (out / "rounds.jsonl").exists(), 240)
        flower.kill("superlink")
        _, said = running.communicate(timeout=120)
        assert running.returncode == 2 and len(said.strip().splitlines()) == 1
        assert not (out / "summary.json").exists()

        flower.start_superlink()
        again = _federate(recipe, out, flower, "--resume")
        _, said = again.communicate(timeout=240)
        assert again.returncode == 0, said
        assert "stranger" not in {event["client"] for event in _events(out, "joined")}
        assert len({event["client"] for event in _events(out, "joined")}) == 3
        assert "Receiving" not in flower.log("stranger")
        assert "[/v1/fleet/activate-node][ApiError" in flower.log("superlink")
        _check_equal(simulated, out)
        _one_dies(flower, tmp_path, tiny_recipe)


def _one_dies(flower: Deployment, folder: Path, tiny_recipe: Path) -> None:
    """A SuperNode killed before it answers costs its answer only."""
    (folder / "second").mkdir()
    clients = RECIPE["clients"] | {"least": 1, "deadline_s": 60.0}
    recipe, out = (
        _write(folder / "second", tiny_recipe, rounds=1, clients=clients),
        folder / "second" / "run",
    )
    running = _federate(recipe, out, flower)
    _wait_for(lambda: len(_events(out, "joined")) == 3, 120)
    flower.kill("node1")
    _, said = running.communicate(timeout=240)
    assert running.returncode == 0, said
    line = json.loads((out / "rounds.jsonl").read_text())
    assert line["answered"] == 2
    wrong = {event["client"] for name in ("late", "failed", "gone") for event in _events(out, name)}
    assert wrong == {"client-0001"}


def _check_equal(simulated: Path, out: Path) -> None:
    """Two runs of one recipe came to the same."""
    one, other = (read_model(path / "summary.json", FederatedSummary) for path in (simulated, out))
    for mine, theirs in zip(one.tiers, other.tiers, strict=True):
        assert (mine.genome, mine.score, mine.mean) == (theirs.genome, theirs.score, theirs.mean)
    assert one.up_bytes == other.up_bytes
    assert one.steps == pytest.approx(other.steps)  # a mean, in the order of the answers
    mine, theirs = (
        read_tensors(path / "state" / "trained.safetensors") for path in (simulated, out)
    )
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=0)
