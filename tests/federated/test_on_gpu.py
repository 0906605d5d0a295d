"""Clients and a server that have a GPU: real weights are trained there, and travel as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import InProcess

from hwnas.federated.client import client_app
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server import federate
from hwnas.federated.state import ServerState
from hwnas.files import validate

pytestmark = pytest.mark.gpu
TABLE = "minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128.json"
TARGET = "openvino:cpu:threads=1,batch=1,seq=128"


@pytest.mark.parametrize(
    "settings",
    [
        {"local": {"proximal": 0.01}},
        {"train": "adapters"},
        {"train": "prompt", "local": {"nested": 0}},
    ],
    ids=["all", "adapters", "prompt"],
)
def test_real_weights_are_trained_there(settings: dict[str, Any], tmp_path: Path) -> None:
    local = {"steps": 2, "batch": 8, "rate": 1e-4, "grow": 0, "reach": 0} | settings.get(
        "local", {}
    )
    value: dict[str, Any] = {
        "model": "demo:minilm",
        "task": {"data": "demo:tweets", "max_length": 32},
        "rounds": 2,
        "clients": {"count": 3, "rows": 60},
        "tiers": [
            {"name": "large", "target": TARGET, "table": TABLE},
            {"name": "small", "target": TARGET, "table": TABLE, "budget": "50%"},
        ],
        "local": local,
        "evaluation": {"every": 2, "rows": 50},
        "importance_rows": 8,
    }
    recipe = validate(FederatedRecipe, value | settings | {"local": local}, where="test")
    grid = InProcess(client_app(recipe), recipe.clients.count)
    torch.cuda.reset_peak_memory_stats()
    begin = torch.cuda.max_memory_allocated()
    summary = federate(grid, recipe, tmp_path / "run", resume=False)
    assert torch.cuda.max_memory_allocated() > begin
    assert all(tier.score is not None and tier.mean is not None for tier in summary.tiers)
    assert "failed" not in summary.events
    state = ServerState.find(tmp_path / "run", recipe)
    assert state is not None
    assert state.number == 2
    assert all(not t.is_cuda and t.isfinite().all() for t in state.tensors.values())
