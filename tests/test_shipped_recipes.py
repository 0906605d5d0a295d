"""The shipped recipes run as they are written, on real data that lies where the hub's would.

A folder named as a hub dataset, in the present folder, is what `load_dataset` reads first. So the
recipes' own names are resolved to the data beside the checkout; only the compute is cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED_DATA

from hwnas.cli import app
from hwnas.recipe import shipped_recipes

GLUE = {
    "sst2": ("sst2/train.jsonl", "sst2/dev.jsonl"),
    "mrpc": ("mrpc/train.jsonl", "mrpc/dev.jsonl"),
    "cola": ("cola/train.jsonl", "cola/dev.jsonl"),
    "rte": ("rte/train.jsonl", "rte/dev.jsonl"),
}
SUBJQA = ("subjqa/electronics_train.jsonl", "subjqa/electronics_dev.jsonl")
QUICK = ["--minutes", "0.2"]
NEEDS = {
    "stsb": "no STS-B data beside the checkout",
    "entities": "no data with words and tags beside the checkout",
}
"""Recipes whose data cannot be had offline."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders `nyu-mll/glue` and `rajpurkar/squad_v2` in the present folder."""
    configs = [_copied(tmp_path / "nyu-mll/glue", name, *files) for name, files in GLUE.items()]
    _card(tmp_path / "nyu-mll/glue", configs)
    _card(
        tmp_path / "rajpurkar/squad_v2",
        [_copied(tmp_path / "rajpurkar/squad_v2", "squad_v2", *SUBJQA)],
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _copied(folder: Path, config: str, train: str, dev: str) -> dict[str, Any]:
    """Rows as the hub has them, in files; the config's entry in the card."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for split, source in (("train", train), ("validation", dev)):
        name = f"{config}-{split}.jsonl"
        with (folder / name).open("w") as out:
            out.writelines(json.dumps(row) + "\n" for row in _rows(SHARED_DATA / source))
        files.append({"split": split, "path": name})
    return {"config_name": config, "data_files": files}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from islice(map(json.loads, file), 1200)


def _card(folder: Path, configs: list[dict[str, Any]]) -> None:
    import yaml

    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


@pytest.mark.slow  # one or two minutes each: a real model through the whole line
@pytest.mark.shared_data
@pytest.mark.parametrize("name", shipped_recipes())
def test_recipe_runs_as_written(name: str, hub: None, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.skip(NEEDS[name])
    app(["run", name, "--out", "out", *QUICK], standalone_mode=False)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert all(chosen["ms"]["ratio"] < 1 for chosen in summary["chosen"])
    assert (tmp_path / "out/report.html").exists()
