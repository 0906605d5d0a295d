"""What a user may get wrong in a federated recipe or command: exit 2, one line that says what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hwnas.errors import UserError
from hwnas.federated.checks import check_simulated
from hwnas.federated.recipe import FederatedRecipe, load_federated

Make = Callable[..., FederatedRecipe]
PRIVATE = {"kind": "central", "clip": 1.0, "noise": 1.0}

# what is changed in a good recipe -> words of the one line
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"roundz": 3}, "roundz"),
    "no rounds": ({"rounds": 0}, "rounds"),
    "a tier twice": ({"tiers": [{"name": "a"}, {"name": "a"}]}, "'a' is given twice"),
    "a tier without a unit": ({"tiers": [{"name": "a", "budget": "50"}]}, "milliseconds like 8ms"),
    "a tier that needs rows to be calibrated": (
        {"tiers": [{"name": "a", "target": "openvino:cpu:seq=32,precision=int8-static"}]},
        "served in fp32, int8-dynamic, int8-weights",
    ),
    "a decoder's target": (
        {"tiers": [{"name": "a", "target": "openvino:cpu:phase=decode,cache=64"}]},
        "has phase=encode",
    ),
    "a table that is not there": (
        {"tiers": [{"name": "a", "table": "nowhere.json"}]},
        "nowhere.json",
    ),
    "another model's table": (
        {
            "tiers": [
                {
                    "name": "a",
                    "table": "minilm-l6_openvino_cpu_xeon-amx_t1_b1_s128.json",
                    "target": "openvino:cpu:threads=1,batch=1,seq=128",
                }
            ]
        },
        "tiers: a:",
    ),
    "too few clients asked": ({"clients": {"least": 4, "share": 0.5}}, "clients.least: 4 answers"),
    "more answers than clients": ({"clients": {"least": 9}}, "there are 4 clients"),
    "krum with too few": (
        {"aggregation": {"rule": "krum", "malicious": 2}},
        "krum needs 7 clients",
    ),
    "an unknown split": ({"clients": {"split": {"kind": "random"}}}, "clients.split"),
    "more clients than rows": ({"clients": {"count": 600}}, "fewer clients"),
    "groups that are not there": (
        {"clients": {"split": {"kind": "groups", "column": "author"}}},
        "no column 'author'",
    ),
    "a task that cannot be": (
        {"task": {"data": "x.jsonl", "kind": "embedding"}},
        "kind: embedding",
    ),
    "a language model's task": (
        {"task": {"data": "x.jsonl", "kind": "choice"}},
        "a task of kind choice has phase=prefill or decode",
    ),
    "data that is not there": ({"task": {"data": "nowhere.csv"}}, "nowhere.csv: no such file"),
    "a model that is not there": ({"model": "./nowhere"}, "nowhere: no such folder"),
    "text longer than the model": ({"task": {"max_length": 512}}, "reads at most 64 tokens"),
    "privacy with scores": (
        {
            "privacy": PRIVATE,
            "importance": "magnitude",
            "aggregation": {"weigh": "clients"},
            "labels": ["a", "b"],
        },
        "evaluation.clients: true would tell",
    ),
    "privacy with counts": ({"privacy": PRIVATE, "importance": "magnitude"}, "aggregation.weigh"),
    "privacy without labels": (
        {
            "privacy": PRIVATE,
            "importance": "magnitude",
            "aggregation": {"weigh": "clients"},
            "evaluation": {"clients": False},
        },
        "labels: with privacy",
    ),
    "secure with single updates": (
        {"secure": {}, "aggregation": {"rule": "median"}},
        "aggregation.rule: median looks at single updates",
    ),
    "secure with a norm": (
        {"secure": {}, "aggregation": {"largest_norm": 1.0}},
        "aggregation.largest_norm: is of single updates",
    ),
    "own head of adapters": (
        {"personal": {"kind": "head"}, "train": "adapters"},
        "personal.kind: head is for train: all",
    ),
    "candidates of a prompt": (
        {"search": {}, "train": "prompt", "local": {"nested": 0}},
        "search: a prompt was learned",
    ),
    "candidates that nobody judges": (
        {"search": {}, "evaluation": {"clients": False}},
        "search: clients judge the candidates",
    ),
    "secure rounds of two": (
        {"secure": {}, "clients": {"count": 2}},
        "secure.least: 3 clients of a tier in a sum, a round asks 2",
    ),
    "secure with two of a tier": (
        {"secure": {}},
        "has 2 of 4 clients, a sum needs 3 of one tier",
    ),
    "secure among two": ({"secure": {"least": 2}}, "secure.least"),
    "noise below zero": ({"privacy": PRIVATE | {"noise": -1}}, "privacy.noise"),
    "a prompt for smaller ones too": ({"train": "prompt"}, "local.nested"),
    "a prompt for larger ones": (
        {"train": "prompt", "local": {"nested": 0, "reach": 0.5}},
        "local.reach",
    ),
    "more phases than rounds": ({"continual": {"phases": 9}}, "9 phases in 2 rounds"),
    "a topic without a column": (
        {"continual": {"phases": 2, "by": "column"}},
        "continual.column: belongs to by: column",
    ),
    "a label twice": ({"labels": ["a", "a"]}, "labels: give two or more different names"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_recipe_is_one_line(name: str, make_recipe: Make, tmp_path: Path) -> None:
    changes, words = WRONG[name]
    good = make_recipe().model_dump(mode="json", exclude_none=True)
    for key, change in changes.items():
        old = good.get(key)
        good[key] = old | change if isinstance(old, dict) else change
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(good))
    with pytest.raises(UserError) as error:
        check_simulated(load_federated(path))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["RECIPE", "--simulate", "0"], "--simulate"),
        (["RECIPE", "--superlink", "localhost:1", "--simulate", "3"], "give one of them"),
        (["RECIPE", "--root-certificates", "ca.pem"], "is for --superlink"),
        (["RECIPE", "--superlink", "127.0.0.1:9", "--root-certificates", "no.pem"], "no such file"),
        (["RECIPE", "--app", "."], "exists"),
    ],
)
def test_a_bad_command_exits_2(
    options: list[str], words: str, make_recipe: Make, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    make_recipe().save(recipe)
    given = [str(recipe) if option == "RECIPE" else option for option in options]
    command = [sys.executable, "-m", "hwnas", "federate", *given, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
