"""What a model tells of the rows that it was trained on, with privacy and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import concatenate_datasets
from in_process import run

from hwnas.federated.client import Client
from hwnas.federated.identity import Identity
from hwnas.federated.membership import Membership, attack, losses
from hwnas.federated.recipe import FederatedRecipe
from hwnas.files import validate
from hwnas.models import load

TABLE = "minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128.json"
TARGET = "openvino:cpu:threads=1,batch=1,seq=128"


def test_losses_that_are_alike_tell_nothing_and_apart_tell_all() -> None:
    rng = np.random.default_rng(0)
    same = attack(rng.normal(size=4000), rng.normal(size=4000))
    assert same.advantage < 0.05
    assert same.auc == pytest.approx(0.5, abs=0.02)
    assert attack(np.zeros(10), np.ones(10)) == Membership(1.0, 1.0)
    assert attack(np.ones(10), np.zeros(10)) == Membership(0.0, 0.0)


def test_the_advantage_is_that_of_the_best_threshold() -> None:
    members, others = np.array([0.1, 0.2, 0.9]), np.array([0.15, 0.8, 1.0])
    by_hand = max((members <= t).mean() - (others <= t).mean() for t in np.linspace(0, 1, 101))
    assert attack(members, others).advantage == pytest.approx(by_hand)


def _told(recipe: FederatedRecipe, out: Path) -> Membership:
    summary, _ = run(recipe, out)
    text = recipe.model_dump_json()
    clients = [Client(text, Identity(f"client-{i:04}", i)) for i in range(recipe.clients.count)]
    model = load(out / summary.tiers[0].path)
    found = (
        losses(model, concatenate_datasets([c.encoded(summary.labels, split) for c in clients]))
        for split in ("train", "held_out")
    )
    return attack(*found)


@pytest.mark.slow  # MiniLM learns a few tweets by heart
def test_privacy_hides_what_a_model_has_learned_by_heart(tmp_path: Path) -> None:
    value: dict[str, Any] = {
        "model": "demo:minilm",
        "task": {"data": "demo:tweets", "max_length": 32},
        "tiers": [{"name": "small", "budget": "30%", "target": TARGET, "table": TABLE}],
        "rounds": 3,
        "clients": {"count": 2, "rows": 60, "held_out": 0.7, "split": {"kind": "even"}},
        "local": {"steps": 20, "batch": 8, "rate": 2e-4, "calibrate": 0.0},
        "importance": "magnitude",
        "aggregation": {"weigh": "clients"},
        "evaluation": {"clients": False, "every": 3, "rows": 100},
        "labels": ["negative", "neutral", "positive"],
    }
    private = {"privacy": {"kind": "central", "clip": 0.5, "noise": 1.0}}
    openly, hidden = (
        _told(validate(FederatedRecipe, value | extra, where="test"), tmp_path / name)
        for name, extra in (("openly", {}), ("hidden", private))
    )
    assert openly.auc > 0.7
    assert openly.advantage > 0.3
    assert abs(hidden.auc - 0.5) < 0.15
    assert hidden.advantage < openly.advantage
