"""Damaged models and exports: one line that names them, exit 2, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import load_file, save_file

from hwnas.anatomy.dense import new_dense
from hwnas.cli import app
from hwnas.errors import HwnasError
from hwnas.export import save_model
from hwnas.exporting import Rows, export_model_as
from hwnas.latency.target import Target
from hwnas.subnetwork import Subnetwork

TARGET = "openvino:cpu:threads=1,batch=1,seq=16"


def _without(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            for found in folder.glob(name):
                shutil.rmtree(found) if found.is_dir() else found.unlink()

    return spoil


def _cut(name: str) -> Callable[[Path], None]:
    """The file's first hundred bytes are left."""

    def spoil(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])

    return spoil


def _written(name: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return spoil


def _pickled(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def _no_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def given(
    tmp_path_factory: pytest.TempPathFactory, new_tiny_config: Any, tiny_tokenizer: Any
) -> Path:
    """A dense model in `model`, and an export of it in `export`."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    model = new_dense(new_tiny_config(), Subnetwork.of([[2, 32], [4, 64], [1, 16]]))
    save_model(model, tiny_tokenizer, folder / "model")
    export_model_as(str(folder / "model"), folder / "export", Target.parse(TARGET), None, Rows())
    return folder


def _refusal(*arguments: str) -> str:
    with pytest.raises((HwnasError, click.ClickException)) as caught:
        app(["export", *arguments], standalone_mode=False)
    assert getattr(caught.value, "exit_code", 2) == 2
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut("model.safetensors"), "cannot be loaded"),
        (_without("model.safetensors"), "has no model.safetensors"),
        (_pickled, "pickled weights are not loaded"),
        (_no_numbers, "classifier.bias holds NaN or infinity"),
        (_without("config.json"), "has no config.json"),
        (_cut("config.json"), "config.json: not valid JSON"),
        (_written("config.json", '"bert"', '"no-such-family"'), "not a usable config"),
        (_written("config.json", '"vocab_size": 120', '"vocab_size": 130'), "do not belong"),
        (_without("tokenizer*", "vocab*", "special*"), "its tokenizer cannot be read"),
        (_without("*"), "has no config.json"),
    ],
)
def test_damaged_models(
    given: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(given / "model", tmp_path / "m")
    spoil(tmp_path / "m")
    out = tmp_path / "out"
    said = _refusal(str(tmp_path / "m"), "--out", str(out), "--target", TARGET)
    assert message in said and str(tmp_path / "m") in said
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("export.json"), "has no export.json"),
        (_cut("export.json"), "export.json: not valid JSON"),
        (_written("export.json", "openvino:cpu", "toaster:cpu"), "unknown runtime 'toaster'"),
        (_without("model"), "model: no such folder"),
        (_without("openvino/*.xml"), "no exported model in it"),
        (_cut("openvino/openvino_model.bin"), "openvino: cannot be loaded"),
        (_cut("openvino/openvino_model.xml"), "openvino: cannot be loaded"),
        (_cut("onnx/model.onnx"), "onnx: cannot be loaded"),
    ],
)
def test_damaged_exports_are_looked_at_again(
    given: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(given / "export", tmp_path / "e")
    spoil(tmp_path / "e")
    before = sorted(tmp_path.rglob("*"))
    assert message in _refusal("--check", str(tmp_path / "e"))
    assert sorted(tmp_path.rglob("*")) == before


def test_out_that_is_a_file_or_lies_below_one(given: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        said = _refusal(str(given / "model"), "--out", str(out), "--target", TARGET)
        assert "cannot write here" in said
    assert (tmp_path / "file").read_text() == "mine"
