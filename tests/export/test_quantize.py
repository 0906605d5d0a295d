"""Quantized copies of exported folders: smaller, loadable, and near what they were made of."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hwnas.export import (
    calibration,
    export_and_check,
    folder_size_mb,
    load_exported,
    quantize_folder,
)
from hwnas.latency.target import Target
from hwnas.tasks.predict import predict


@pytest.mark.parametrize(
    ("source", "precision", "share", "agree"),
    [
        ("openvino", "int8-static", 0.55, 0.85),
        ("openvino", "int8-weights", 0.35, 0.95),
        ("openvino", "int4-weights", 0.35, 0.7),
        ("onnx", "int8-dynamic", 0.35, 0.85),
        ("onnx", "int8-static", 0.55, 0.7),
    ],
)
def test_it_is_smaller_and_says_much_the_same(
    source: str,
    precision: str,
    share: float,
    agree: float,
    exported: Any,
    encoded: Any,
    tmp_path: Path,
) -> None:
    exact = exported.out / source
    before = {file.name: file.read_bytes() for file in exact.iterdir()}
    out = tmp_path / f"{source}-{precision}"
    quantize_folder(exact, out, precision, calibration(encoded, exported.tokenizer))
    assert {file.name: file.read_bytes() for file in exact.iterdir()} == before
    assert {file.name for file in out.iterdir()} == set(before)
    assert folder_size_mb(out) < share * folder_size_mb(exact)
    few = encoded.select(range(60))
    small, large = (predict(load_exported(folder), few) for folder in (out, exact))
    assert np.mean(small.argmax(-1) == large.argmax(-1)) >= agree
    assert np.abs(small - large).max() > 0


def test_export_writes_what_the_target_serves(exported: Any, tmp_path: Path) -> None:
    target = Target.parse("onnxruntime:cpu:threads=1,batch=1,seq=16,precision=int8-dynamic")
    record = export_and_check(exported.out / "model", tmp_path / "out", target)
    assert set(record.parity) == {"model", "onnx", "openvino"}
    assert record.size_mb["onnx-int8-dynamic"] < 0.5 * record.size_mb["onnx"]


def test_a_question_with_choices_calibrates_by_its_first() -> None:
    rows = {
        "input_ids": [[5, 6, 11, 12, 21], [7, 31, 41, 42]],
        "attention_mask": [[1] * 5, [1] * 4],
        "branch": [[-1, -1, 0, 0, 1], [-1, 0, 1, 1]],
    }
    tokenizer: Any = SimpleNamespace(model_input_names=["input_ids", "attention_mask"])
    feeds = calibration(Dataset.from_dict(rows), tokenizer)
    assert [feed["input_ids"].tolist() for feed in feeds] == [[[5, 6, 11, 12]], [[7, 31]]]
    assert [feed["attention_mask"].shape for feed in feeds] == [(1, 4), (1, 2)]
