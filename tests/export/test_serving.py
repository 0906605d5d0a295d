"""`serve.py` answers as torch does, in a process that has no hwnas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.export import export_model
from hwnas.export.serving import cold_start, settings_of, write_serve
from hwnas.latency.target import Target

TEXTS = ("good day", "a bad bad day", "good")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_script_answers_as_torch_does(runtime: str, tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    out = tmp_path / "a folder {with} signs"
    target = Target.parse(f"{runtime}:cpu:threads=1,batch=1,seq=16")
    export_model(model, tokenizer, out, ["onnx" if runtime == "onnxruntime" else "openvino"])
    write_serve(out, target)
    (tmp_path / "hwnas").mkdir()
    (tmp_path / "hwnas" / "__init__.py").write_text("raise ImportError('no hwnas here')\n")
    process = subprocess.run(
        [sys.executable, out / "serve.py"],
        input="\n".join(TEXTS) + "\n",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    lines = process.stdout.splitlines()
    assert len(lines) == len(TEXTS)
    for text, line in zip(TEXTS, lines, strict=True):
        with torch.inference_mode():
            shares = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        said, ms = line.split("\t")
        label, share = said.split()
        assert label == model.config.id2label[int(shares.argmax())]
        assert float(share) == pytest.approx(float(shares.max()), abs=2e-3)
        assert float(ms.removesuffix(" ms")) > 0


def test_a_script_that_does_not_answer_is_a_bug(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    assert cold_start(tmp_path) is None
    export_model(model, tokenizer, tmp_path / "out", ["openvino"])
    write_serve(tmp_path / "out", Target.parse("openvino:cpu:threads=1,batch=1,seq=16"))
    seconds = cold_start(tmp_path / "out")
    assert seconds is not None and seconds > 0
    (tmp_path / "out" / "openvino" / "openvino_model.xml").unlink()
    with pytest.raises(HwnasError, match=r"serve\.py: does not answer \("):
        cold_start(tmp_path / "out")


def test_settings_are_those_that_were_measured() -> None:
    bf16 = settings_of(Target.parse("openvino:cpu:threads=2,precision=bf16"))
    assert bf16["INFERENCE_PRECISION_HINT"] == "bf16" and bf16["INFERENCE_NUM_THREADS"] == 2
    assert settings_of(Target.parse("onnxruntime:cpu:threads=2"))["intra_op_num_threads"] == 2


def test_torchs_folder_needs_no_script(tmp_path: Path) -> None:
    write_serve(tmp_path, Target.parse("torch:cpu:threads=1"))
    assert list(tmp_path.iterdir()) == []
