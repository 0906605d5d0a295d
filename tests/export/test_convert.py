"""Exported folders are whole, faithful and load without hwnas; a failed export leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.errors import UserError
from hwnas.export import FORMATS, export_model, export_onnx, export_openvino, save_model
from hwnas.progress import set_quiet

# run by an interpreter that has everything installed except hwnas
WITHOUT_HWNAS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "hwnas" or name.startswith("hwnas."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
LOAD = """
import json
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

torch.set_num_threads(1)
folder, texts, out = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3]
kind = sys.argv[4]
if kind == "model":
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
elif kind == "onnx":
    from optimum.onnxruntime import ORTModelForSequenceClassification
    model = ORTModelForSequenceClassification.from_pretrained(folder)
else:
    from optimum.intel import OVModelForSequenceClassification
    # processors with bf16 matrix units compute in bf16 unless they are told
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = OVModelForSequenceClassification.from_pretrained(folder, ov_config=exact)
tokenizer = AutoTokenizer.from_pretrained(folder)
logits = []
for start in range(0, len(texts), 7):  # batches of 7, and a last one of 2, each as long as it needs
    batch = tokenizer(texts[start : start + 7], truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits.append(np.asarray(model(**batch).logits))
np.save(out, np.concatenate(logits))
assert not [name for name in sys.modules if name == "hwnas" or name.startswith("hwnas.")]
print(json.dumps(model.config.id2label))
"""


def run_python(code: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(cwd / "hf"), "HOME": str(cwd)}
    environment["HF_MODULES_CACHE"] = str(cwd / "modules")
    return subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# slow: each starts an interpreter that imports torch, transformers and a runtime
@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_loads_without_hwnas_and_agrees_on_real_inputs(
    kind: str, exported: Any, texts: list[str], wanted_logits: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    found = tmp_path / "logits.npy"

    done = run_python(
        WITHOUT_HWNAS + LOAD,
        exported.out / kind,
        tmp_path / "texts.json",
        found,
        kind,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    labels = json.loads(done.stdout.splitlines()[-1])
    assert labels == {"0": "negative", "1": "neutral", "2": "positive"}
    assert len(wanted_logits) == 100
    assert np.ptp(wanted_logits, axis=0).min() > 0.1, "they must differ for the test to mean much"
    np.testing.assert_allclose(np.load(found), wanted_logits, rtol=0, atol=1e-3)


TEXT_TO_LOGITS = """
import json, sys
import numpy as np
import openvino
import openvino_tokenizers

folder, texts, found = sys.argv[1:]
core = openvino.Core()
tokenizer = core.compile_model(folder + "/openvino_tokenizer.xml", "CPU")
settings = {"INFERENCE_PRECISION_HINT": "f32"}
model = core.compile_model(folder + "/openvino_model.xml", "CPU", settings)
rows = []
for text in json.load(open(texts, encoding="utf-8")):
    encoded = {port.get_any_name(): value for port, value in tokenizer([text]).items()}
    feed = {name: encoded[name] for port in model.inputs for name in [port.get_any_name()]}
    rows.append(model(feed)[0][0])
np.save(found, np.array(rows))
assert not {"transformers", "torch", "hwnas"} & set(sys.modules)
"""


def test_openvino_alone_takes_text_and_agrees_on_real_inputs(
    exported: Any, texts: list[str], wanted_logits: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    found = tmp_path / "logits.npy"
    folder = exported.out / "openvino"
    done = run_python(TEXT_TO_LOGITS, folder, tmp_path / "texts.json", found, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(found), wanted_logits, rtol=0, atol=1e-3)


def test_the_blocker_of_these_tests_blocks(tmp_path: Path) -> None:
    assert run_python("import hwnas", cwd=tmp_path).returncode == 0
    done = run_python(WITHOUT_HWNAS + "import hwnas", cwd=tmp_path)
    assert "No module named 'hwnas'" in done.stderr


@pytest.mark.parametrize("kind", FORMATS)
def test_folder_is_whole(kind: str, exported: Any) -> None:
    folder = exported.out / kind
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = {path.name for path in folder.iterdir()}

    assert {"tokenizer.json", "tokenizer_config.json"} <= files
    assert not [name for name in files if "partial" in name]
    assert config["label2id"] == {"negative": 0, "neutral": 1, "positive": 2}
    if kind == "model":
        assert config["architectures"] == ["HwnasBertForSequenceClassification"]
        assert "modeling_hwnas.py" in files
        modes = {path.stat().st_mode for path in folder.iterdir()}
        assert len(modes) == 1, "every file is readable by the same people"
    else:
        assert config["architectures"] == ["BertForSequenceClassification"]
        assert "auto_map" not in config
        assert not [name for name in files if name.endswith(".py")]
        assert ("openvino_tokenizer.xml" in files) == (kind == "openvino")


def test_tokenizer_cuts_at_what_the_model_reads_and_pads_nothing_unasked(exported: Any) -> None:
    from tokenizers import Tokenizer

    # MiniLM's own file says: cut at 128, pad everything to 128
    alone = Tokenizer.from_file(str(exported.out / "onnx" / "tokenizer.json"))
    assert len(alone.encode("day").ids) == 3
    assert len(alone.encode("day " * 600).ids) == 512


def test_caller_s_model_and_tokenizer_are_left_alone(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    model.train()
    kind, config = type(model), model.config.to_dict()
    length, levels, ci = tokenizer.model_max_length, _levels(), os.environ.get("CI")

    export_model(model, tokenizer, tmp_path / "out")

    assert model.training
    assert type(model) is kind and kind._auto_class is None
    assert model.config.to_dict() == config
    assert tokenizer.model_max_length == length
    assert _levels() == levels
    assert os.environ.get("CI") == ci


def _levels() -> list[int]:
    import logging

    return [logging.getLogger(name).level for name in ("optimum", "transformers", "openvino")]


def test_exports_are_quiet(
    tiny: tuple[Any, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    set_quiet(True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            export_model(*tiny, tmp_path / "out")
    finally:
        set_quiet(False)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert caught == []


def test_model_of_equal_layers_needs_no_code(tiny_config: Any, tiny: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(tiny_config).eval()
    save_model(model, tiny[1], tmp_path / "model")

    assert not list((tmp_path / "model").glob("*.py"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[2, 5, 7, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, again(ids).logits, rtol=0, atol=1e-6)


def test_new_export_replaces_the_old_and_its_record(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "left_over.bin").write_bytes(b"old")
    (tmp_path / "export.json").write_text("{}", encoding="utf-8")

    made = export_model(model, tokenizer, tmp_path, ["onnx"])

    assert made == {"onnx": tmp_path / "onnx"}
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert not (tmp_path / "onnx" / "left_over.bin").exists()
    assert not (tmp_path / "export.json").exists()
    assert not (tmp_path / "openvino").exists()


@pytest.mark.parametrize("write", [save_model, export_onnx, export_openvino])
def test_failed_export_leaves_what_was_there(
    write: Any, tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = tiny
    out = tmp_path / "out"
    write(model, tokenizer, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    tokenizer.add_tokens(["new"])  # a later export would differ
    tokenizer.chat_template = object()  # cannot be written: fails after the weights are

    with pytest.raises(TypeError):
        write(model, tokenizer, out)

    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


KILLED = """
import sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoTokenizer
from hwnas.anatomy.dense import new_dense
from hwnas.export import export_model
from hwnas.subnetwork import Subnetwork

source, out = sys.argv[1:]
config = AutoConfig.from_pretrained(source)
model = new_dense(config, Subnetwork.of([[4, 384]] * 6))
export_model(model, AutoTokenizer.from_pretrained(source), Path(out))
"""


@pytest.mark.slow  # starts an interpreter and exports MiniLM's sizes
def test_killed_export_leaves_no_half_written_folder(minilm_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(minilm_dir), str(out)], stderr=subprocess.PIPE
    )
    while child.poll() is None:
        if list(out.glob(".onnx.partial-*/*")):
            child.kill()
        time.sleep(0.002)
    _, errors = child.communicate()

    assert child.returncode == -9, errors.decode()
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["model"]
    assert (out / "model" / "tokenizer.json").is_file()


def test_unknown_format(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'tflite'; known: model, onnx, openvino"):
        export_model(*tiny, tmp_path / "out", ["onnx", "tflite"])
    with pytest.raises(UserError, match="no export format chosen"):
        export_model(*tiny, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_model_of_another_task(tiny_config: Any, tiny: tuple[Any, Any], tmp_path: Path) -> None:
    from transformers import BertForMultipleChoice

    with pytest.raises(UserError, match="BertForMultipleChoice: this kind of task is not supp"):
        export_model(BertForMultipleChoice(tiny_config), tiny[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
