"""A model repository for OpenVINO Model Server, with the settings that were measured.

    docker run -v DIR/model_server:/models -p 9000:9000 openvino/model_server \\
        --config_path /models/config.json --port 9000

Versions are numbered folders, and `config.json` names the models: the encoder, and its tokenizer
where OpenVINO has one. Files are links to those of the exported folder, where the file system has
links, so that nothing is stored twice.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hwnas.anatomy.heads import generates
from hwnas.errors import UserError
from hwnas.export.folders import served_folder
from hwnas.export.serving import settings_of
from hwnas.files import replacing, write_json
from hwnas.latency.target import Target
from hwnas.models import load_config

REPOSITORY = "model_server"
_MOUNTED = "/models"  # where the container has the repository
_MODELS = {"model": "openvino_model", "tokenizer": "openvino_tokenizer"}


def require_servable(model: str, out: Path, target: Target) -> None:
    """Raise `UserError` unless the server could serve the model as it is exported for the target.

    Args:
        model: its name; no weights are read.
        out: where it is exported to; it may hold no repository yet.
    """
    if (out / REPOSITORY).exists():
        raise UserError(f"{out / REPOSITORY}: exists already; choose another --out or remove it")
    if target.runtime != "openvino":
        raise UserError(f"--model-server: serves OpenVINO's models, the target is {target}")
    if generates(load_config(model, shrinkable=False)):
        raise UserError(
            "--model-server: language models need a graph of the server's own there; "
            "leave the option out"
        )


def write_repository(out: Path, target: Target) -> Path:
    """Write `out/model_server` beside the folder that an OpenVINO target serves; its path."""
    served = out / served_folder(target)
    settings = {name: str(value) for name, value in settings_of(target).items()}
    found = [name for name, file in _MODELS.items() if (served / f"{file}.xml").is_file()]
    with replacing(out / REPOSITORY) as partial:
        for name in found:
            version = partial / name / "1"
            version.mkdir(parents=True)
            for ending in ("xml", "bin"):
                _link(served / f"{_MODELS[name]}.{ending}", version / f"{name}.{ending}")
        models = [
            {
                "config": {
                    "name": name,
                    "base_path": f"{_MOUNTED}/{name}",
                    "target_device": target.device.upper(),
                }
                | ({"plugin_config": settings} if name == "model" else {})
            }
            for name in found
        ]
        write_json(partial / "config.json", {"model_config_list": models})
    return out / REPOSITORY


def _link(source: Path, link: Path) -> None:
    try:
        os.link(source, link)
    except OSError:  # a file system without links
        shutil.copy(source, link)
