"""A small recipe on real tweets with a measured latency table, for tests of the rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hwnas.federated.recipe import FederatedRecipe
from hwnas.files import validate

Make = Callable[..., FederatedRecipe]
TARGET = "openvino:cpu:threads=1,batch=1,seq=32"


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """The latency table of the tiny BERT here."""
    from hwnas.latency.profiling import profile
    from hwnas.latency.target import Target
    from hwnas.models import load_config

    model = yaml.safe_load(tiny_recipe.read_text())["model"]
    path = tmp_path_factory.mktemp("table") / "table.json"
    profile(load_config(model), Target.parse(TARGET), validate=0, minutes=0.05).save(path)
    return path


@pytest.fixture(scope="session")
def make_recipe(tiny_recipe: Path, tiny_table: Path) -> Make:
    """Makes a recipe of four clients in two tiers, with these top-level settings changed."""
    given = yaml.safe_load(tiny_recipe.read_text())

    def make(**changes: Any) -> FederatedRecipe:
        value: dict[str, Any] = {
            "model": given["model"],
            "task": given["task"],
            "rounds": 2,
            "clients": {"count": 4, "split": {"kind": "dirichlet", "alpha": 1.0}},
            "tiers": [
                {"name": "large", "target": TARGET, "table": str(tiny_table)},
                {"name": "small", "target": TARGET, "table": str(tiny_table), "budget": "60%"},
            ],
            "local": {"steps": 2, "batch": 8, "rate": 1e-3, "grow": 0, "reach": 0},
            "evaluation": {"every": 2, "rows": 50},
            "importance_rows": 8,
        }
        for key, change in changes.items():
            old = value.get(key)
            value[key] = old | change if isinstance(old, dict) else change
        return validate(FederatedRecipe, value, where="test")

    return make
