"""The repository for OpenVINO Model Server, read as the server reads it: config, version, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.cli import app
from hwnas.errors import UserError
from hwnas.export import save_model

TARGET = "openvino:cpu:threads=1,batch=1,seq=16"


def test_the_server_finds_models_and_settings(tiny: Any, tmp_path: Path) -> None:
    import openvino

    model, tokenizer = tiny
    save_model(model, tokenizer, tmp_path / "dense")
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "dense"), "--out", str(out), "--target", TARGET]
    app([*command, "--precision", "int8", "--model-server"], standalone_mode=False)
    repository = out / "model_server"
    models = json.loads((repository / "config.json").read_text())["model_config_list"]
    assert models[0]["config"]["name"] == "model"
    for one in models:
        settings = one["config"]
        folder = repository / Path(settings["base_path"]).relative_to("/models")
        (version,) = folder.iterdir()
        assert version.name == "1"
        (file,) = version.glob("*.xml")
        assert (version / file.name).with_suffix(".bin").is_file()
        core = openvino.Core()
        compiled = core.compile_model(
            file, settings["target_device"], settings.get("plugin_config")
        )
        if settings["name"] == "model":
            assert settings["plugin_config"]["INFERENCE_NUM_THREADS"] == "1"
            ids = np.array([[2, 5, 3]])
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            if len(compiled.inputs) > 2:
                feed["token_type_ids"] = np.zeros_like(ids)
            served = core.compile_model(
                out / "openvino-int8-weights" / "openvino_model.xml",
                "CPU",
                settings["plugin_config"],
            )
            assert np.array_equal(compiled(feed)[0], served(feed)[0])


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [
        ("demo:minilm", "onnxruntime:cpu:seq=16", "serves OpenVINO's models"),
        ("demo:smollm2", "openvino:cpu:seq=16", "language models need a graph"),
    ],
)
def test_what_it_cannot_serve_is_refused_first(
    model: str, target: str, message: str, tmp_path: Path
) -> None:
    command = ["export", model, "--out", str(tmp_path / "out"), "--target", target]
    with pytest.raises(UserError, match=message):
        app([*command, "--model-server"], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_a_repository_that_is_there_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "out" / "model_server" / "config.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    command = ["export", "demo:minilm", "--out", str(tmp_path / "out"), "--target", TARGET]
    with pytest.raises(UserError, match="model_server: exists already; choose another --out"):
        app([*command, "--model-server"], standalone_mode=False)
    assert mine.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model_server"]
