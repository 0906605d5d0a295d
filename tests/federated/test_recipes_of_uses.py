"""The shipped federated recipes, one for each use: they are valid, and run on real data as written.

But for the compute, which is cut; all of them take minutes, too long for continuous integration.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from in_process import run

from hwnas.federated.recipe import SHIPPED, FederatedRecipe, load_federated
from hwnas.files import validate
from hwnas.recipe import shipped_recipes

NAMES = sorted(shipped_recipes(SHIPPED))
EVERY = os.environ.get("HWNAS_EVERY_RECIPE") == "1"
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: train
    path: train.jsonl
  - split: validation
    path: dev.jsonl
  - split: test
    path: dev.jsonl
---
"""


def _little(recipe: FederatedRecipe) -> FederatedRecipe:
    value: dict[str, Any] = recipe.model_dump(mode="json")
    value["rounds"] = max(2, recipe.continual.phases if recipe.continual else 2)
    value["clients"] |= {"count": 3, "rows": 40, "least": 1}
    value["local"] |= {"steps": 2, "batch": 4}
    value["evaluation"] |= {"every": 1, "rows": 30}
    value["table_minutes"] = 0.2
    value["importance_rows"] = 4
    return validate(FederatedRecipe, value, where="little")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid(name: str) -> None:
    assert load_federated(Path(name)).rounds >= 2


@pytest.mark.slow  # real models learn for some rounds
@pytest.mark.shared_data
@pytest.mark.skipif(not EVERY, reason="takes minutes; HWNAS_EVERY_RECIPE=1 runs it")
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_real_data(
    name: str, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "Salesforce" / "wikitext"  # where the hub's is looked for first
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split in ("train", "dev"):
        lines = (shared_data / "wikitext2" / f"{split}.jsonl").read_text().splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:400]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    recipe = _little(load_federated(Path(name)))
    summary, _ = run(recipe, tmp_path / "run")
    assert "failed" not in summary.events
    assert all(tier.score is not None for tier in summary.tiers)
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    each = json.loads(lines[-1])
    assert each["answered"] >= 1
    if recipe.train == "prompt":
        assert each["up_bytes"] < 3 * 20_000
    if recipe.continual:
        assert all(tier.forgetting is not None for tier in summary.tiers)
