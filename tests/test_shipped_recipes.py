"""The shipped recipes run as they are written, on real data that lies where the hub's would.

A folder named as a hub dataset, in the present folder, is what `load_dataset` reads first. So the
recipes' own names are resolved to the data beside the checkout; only the compute is cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from hwnas.cli import app
from hwnas.errors import BudgetError
from hwnas.files import read_model
from hwnas.latency.profiling import profile
from hwnas.pipeline import Given, prepare
from hwnas.recipe import load_recipe, shipped_recipes
from hwnas.summary import Summary

GLUE = {
    "sst2": ("sst2/train.jsonl", "sst2/dev.jsonl"),
    "mrpc": ("mrpc/train.jsonl", "mrpc/dev.jsonl"),
    "cola": ("cola/train.jsonl", "cola/dev.jsonl"),
    "rte": ("rte/train.jsonl", "rte/dev.jsonl"),
}
SUBJQA = ("subjqa/electronics_train.jsonl", "subjqa/electronics_dev.jsonl")
QUICK = ["--minutes", "0.2"]
# Recipes whose data cannot be had offline.
NEEDS = {
    "stsb": "no STS-B data beside the checkout",
    "entities": "no data with words and tags beside the checkout",
}
# All of them take twenty minutes, too long for continuous integration.
EVERY = os.environ.get("HWNAS_EVERY_RECIPE") == "1"


@pytest.fixture
def hub(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders `nyu-mll/glue` and `rajpurkar/squad_v2` in the present folder."""
    glue, squad = tmp_path / "nyu-mll/glue", tmp_path / "rajpurkar/squad_v2"
    parts = {name: tuple(shared_data / file for file in files) for name, files in GLUE.items()}
    _card(glue, [_copied(glue, name, *files) for name, files in parts.items()])
    _card(squad, [_copied(squad, "squad_v2", *(shared_data / file for file in SUBJQA))])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _copied(folder: Path, config: str, train: Path, dev: Path) -> dict[str, Any]:
    """Rows as the hub has them, in files; the config's entry in the card."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for split, source in (("train", train), ("validation", dev)):
        name = f"{config}-{split}.jsonl"
        with (folder / name).open("w") as out:
            out.writelines(json.dumps(row) + "\n" for row in _rows(source))
        files.append({"split": split, "path": name})
    return {"config_name": config, "data_files": files}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from islice(map(json.loads, file), 1200)


def _card(folder: Path, configs: list[dict[str, Any]]) -> None:
    import yaml

    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


@pytest.mark.shared_data
@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name not in NEEDS])
def test_recipe_fits_its_data_and_model(name: str, hub: None, tmp_path: Path) -> None:
    recipe = load_recipe(Path(name))
    inputs = prepare(
        recipe.model_copy(update={"compute": recipe.compute.model_copy(update={"minutes": None})}),
        tmp_path / "out",
        resume=False,
        given=Given(),
    )
    inputs.directory.close()
    assert min(inputs.task.splits.values()) > 10
    assert inputs.task.metric == recipe.task.usual_metric


@pytest.mark.slow  # two to four minutes each: a real model through the whole line
@pytest.mark.shared_data
@pytest.mark.parametrize("name", shipped_recipes())
def test_recipe_runs_as_written(name: str, hub: None, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.skip(NEEDS[name])
    if not EVERY:
        pytest.skip("HWNAS_EVERY_RECIPE=1 runs it, in two to four minutes")
    recipe = load_recipe(Path(name))
    profile(recipe.model, recipe.target, minutes=0.2, hidden=recipe.space.hidden).save(
        tmp_path / "table.json"
    )
    table = ["--table", str(tmp_path / "table.json")]
    with suppress(BudgetError):  # training for seconds is not what decides that
        app(["run", name, "--out", "out", *QUICK, *table], standalone_mode=False)
    summary = read_model(tmp_path / "out/summary.json", Summary)
    assert all(chosen.ratio < 1 for chosen in summary.chosen)
    assert (tmp_path / "out/report.html").exists()
