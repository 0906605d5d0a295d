"""A kit measures where only numpy and the runtime can be imported, and comes back a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import TINY, TINY_LLAMA

from hwnas.errors import UserError
from hwnas.latency.kit import table_from, write_kit

# runs a kit where any other package than these cannot be imported
ALONE = """
import importlib.abc, runpy, sys
import numpy, openvino
allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed | {"hwnas"}:
            raise ImportError(f"{name} is not to be had on this device")
sys.meta_path.insert(0, Refuse())
assert "torch" not in sys.modules and "pydantic" not in sys.modules
sys.argv = sys.argv[1:]
sys.path = [entry for entry in sys.path if "work" not in entry or "site-packages" in entry]
# of an editable installation, which would find what the kit lacks
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    own = [module for name, module in sys.modules.items() if name.partition(".")[0] == "hwnas"]
    strangers = [m.__file__ for m in own if m.__file__ and not m.__file__.startswith(sys.argv[0])]
    assert not strangers, strangers
"""


def run(kit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", ALONE, str(kit), *arguments],
        capture_output=True,
        text=True,
        cwd=kit.parent,
        env=environment,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a kit of the tiny encoder wrote."""
    kit = tmp_path_factory.mktemp("kit") / "kit.zip"
    write_kit(TINY, "openvino:cpu:threads=1,batch=1,seq=8/16", kit, validate=2)
    done = run(kit, "--out", "result.json", "--minutes", "0")
    assert done.returncode == 0, done.stderr
    assert "hwnas tables import" in done.stdout
    return kit.with_name("result.json")


def test_result_is_a_table(result: Path) -> None:
    table = table_from(result)
    assert table.target == "openvino:cpu:threads=1,batch=1,seq=8/16"
    assert table.model.heads == (4, 4)
    assert table.validation is not None and table.validation.n == 2
    assert table.versions.keys() == {"openvino", "numpy"}
    assert table.device.cores >= 1
    assert not [p for p in result.parent.iterdir() if "partial" in p.name]


def test_kit_is_small_and_holds_no_two_equal_weights(tmp_path: Path) -> None:
    kit = tmp_path / "kit.zip"
    write_kit(TINY_LLAMA, "openvino:cpu:phase=decode,cache=16,precision=int8-weights", kit)
    with zipfile.ZipFile(kit) as archive:
        names = set(archive.namelist())
        assert {"__main__.py", "graph.xml", "graph.bin", "job.json", "template.json"} <= names
        assert not any("pipeline" in name or "training" in name for name in names)
    assert kit.stat().st_size < 200_000
    done = run(kit, "--out", "result.json", "--minutes", "0")
    assert done.returncode == 0, done.stderr
    assert table_from(tmp_path / "result.json").model.group == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("fitted"),
        lambda r: r["machine"]["device"].pop("cpu"),
        lambda r: r["fitted"][0].pop("points"),
        lambda r: r["job"].update(target="tpu:pod"),
        lambda r: r.update(format=99),
        lambda r: r["job"]["model"].update(heads=[]),
    ],
)
def test_damaged_results(
    result: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    value = json.loads(result.read_text())
    damage(value)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError) as refused:
        table_from(path)
    assert "\n" not in str(refused.value)


def test_kits_of_other_runtimes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made for openvino"):
        write_kit(TINY, "onnxruntime:cpu:seq=16", tmp_path / "kit.zip")
    with pytest.raises(UserError, match="at most 64"):
        write_kit(TINY, "openvino:cpu:seq=128", tmp_path / "kit.zip")
    assert not list(tmp_path.iterdir())
