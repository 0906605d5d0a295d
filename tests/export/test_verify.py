"""Parity, times, sizes and scores of exported folders, and what is said of unusable ones."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hwnas.errors import HwnasError, UserError
from hwnas.export import (
    FORMATS,
    Verification,
    check_parity,
    export_and_check,
    export_model,
    find_format,
    folder_size_mb,
    load_exported,
    measure_against,
    parity,
    save_model,
    score_folder,
)
from hwnas.export.compare import random_rows
from hwnas.export.verify import verify
from hwnas.files import read_model
from hwnas.latency import runtimes
from hwnas.latency.target import Target
from hwnas.tasks.classification import Classification

QUICK = 3  # pairs


@pytest.mark.parametrize("kind", FORMATS)
def test_parity_on_real_inputs(kind: str, exported: Any, encoded: Any) -> None:
    assert len({len(ids) for ids in encoded["input_ids"]}) > 20, "many lengths"
    assert check_parity(exported.model, exported.out / kind, encoded) < 1e-4


@pytest.mark.parametrize("kind", FORMATS)
def test_parity_finds_another_model(kind: str, exported: Any, encoded: Any) -> None:
    other = copy.deepcopy(exported.model)
    with torch.no_grad():
        other.classifier.bias[1] += 0.25
    few, folder = encoded.select(range(8)), exported.out / kind
    assert parity(other, folder, few) == pytest.approx(0.25, abs=1e-4)
    with pytest.raises(HwnasError, match=f"the {kind} export's logits differ .* by 0.25"):
        check_parity(other, folder, few)
    check_parity(other, folder, few, tolerance=0.3)


def test_parity_of_nan_and_of_other_labels(exported: Any, encoded: Any) -> None:
    few, folder = encoded.select(range(4)), exported.out / "onnx"
    broken = copy.deepcopy(exported.model)
    with torch.no_grad():
        broken.classifier.bias[0] = math.nan
    assert math.isnan(parity(broken, folder, few))
    with pytest.raises(HwnasError, match="differ"):
        check_parity(broken, folder, few)
    broken.classifier = torch.nn.Linear(384, 5)
    assert parity(broken, folder, few) == math.inf


def test_nothing_to_compare_is_no_agreement(exported: Any, encoded: Any) -> None:
    with pytest.raises(HwnasError, match="no rows"):
        check_parity(exported.model, exported.out / "onnx", encoded.select([]))


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_one_folder_takes_any_batch_and_length(kind: str, exported: Any) -> None:
    served = load_exported(exported.out / kind, threads=1)
    generator = torch.Generator().manual_seed(0)
    for batch, seq in [(1, 1), (5, 17), (1, 512), (3, 64), (1, 1)]:
        ids = torch.randint(1000, 30000, (batch, seq), generator=generator)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }
        with torch.no_grad():
            wanted = exported.model(**inputs).logits
        found = torch.as_tensor(served(**inputs).logits)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_score_is_that_of_the_torch_model(exported: Any, encoded: Any) -> None:
    from hwnas.tasks.predict import predict

    some = encoded.select(range(40))
    labels = predict(exported.model, some).argmax(-1)
    labels[:10] = (labels[:10] + 1) % 3  # a quarter wrong
    rows = some.add_column("labels", labels.tolist())
    for kind in FORMATS:
        assert score_folder(
            exported.out / kind, rows, Classification(), "accuracy"
        ) == pytest.approx(75.0)


def test_size_is_of_all_files(exported: Any) -> None:
    folder = exported.out / "openvino"
    assert folder_size_mb(folder) == sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    values = sum(p.numel() for p in exported.model.parameters())
    assert folder_size_mb(folder) == pytest.approx(4e-6 * values, rel=0.1)


@pytest.mark.slow  # exports and times MiniLM at its full size too
def test_verify_times_a_small_model_beside_its_baseline(
    exported: Any, encoded: Any, minilm_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    out = tmp_path / "chosen"
    shutil.copytree(exported.out, out)
    whole = AutoModelForSequenceClassification.from_pretrained(minilm_dir, num_labels=3)
    export_model(whole, exported.tokenizer, tmp_path / "baseline", ["openvino"])
    target = Target("openvino", threads=1, batch=1, seq=64)

    record = verify(
        exported.model, out, tmp_path / "baseline" / "openvino", encoded, target, pairs=7
    )

    assert record == read_model(out / "export.json", Verification)
    assert set(record.parity) == set(record.size_mb) == set(FORMATS)
    assert max(record.parity.values()) < 1e-3
    # it does half of the work
    assert 0.2 < record.ratio < 0.85
    assert record.ms < record.reference_ms
    assert record.p10_ms <= record.ms <= record.p90_ms
    assert record.samples == 7


def test_a_model_beside_itself_takes_as_long(exported: Any) -> None:
    folder = exported.out / "openvino"
    paired = measure_against(folder, folder, Target(threads=1, seq=32))
    assert paired.ratio == pytest.approx(1.0, abs=0.25)


def test_each_side_has_its_own_threads(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[str, int]] = []
    load = runtimes.load_for_timing

    def spied(folder: Path, target: Target) -> Any:
        served.append((folder.name, target.threads))
        return load(folder, target)

    monkeypatch.setattr(runtimes, "load_for_timing", spied)
    mine, theirs = exported.out / "onnx", exported.out / "openvino"
    measure_against(mine, theirs, Target(threads=2, seq=8), reference_threads=1, pairs=QUICK)
    assert set(served) == {("onnx", 2), ("openvino", 1)}
    measure_against(mine, theirs, Target(threads=2, seq=8), pairs=QUICK)
    assert set(served) == {("onnx", 2), ("openvino", 1), ("openvino", 2)}


def test_failed_verification_writes_no_record(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny
    out = tmp_path / "out"
    export_model(model, tokenizer, out, ["model", "onnx"])
    rows = random_rows(model, tokenizer)
    with torch.no_grad():
        model.classifier.bias += 1.0
    target = Target("onnxruntime", seq=16)
    with pytest.raises(HwnasError, match="differ"):
        verify(model, out, out / "onnx", rows, target, pairs=QUICK)
    with pytest.raises(UserError, match="openvino: no such folder"):
        verify(model, out, out / "onnx", rows, Target("openvino", seq=16), pairs=QUICK)
    assert not (out / "export.json").exists()


def test_export_and_check_from_a_folder(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    save_model(*tiny, tmp_path / "source")
    out, target = tmp_path / "out", Target("openvino", threads=1, seq=16)

    record = export_and_check(str(tmp_path / "source"), out, target)

    assert read_model(out / "export.json", Verification) == record
    assert set(record.parity) == set(FORMATS)
    assert record.reference == str(out / "model") and record.ratio > 0
    with pytest.raises(UserError, match="model: exists already"):
        export_and_check(str(tmp_path / "source"), out, target)


@pytest.mark.parametrize("name", ["serve.py", "export.json"])
def test_files_of_others_are_not_overwritten(
    name: str, tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    save_model(*tiny, tmp_path / "source")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: exists already; choose another --out") as caught:
        export_and_check(str(tmp_path / "source"), out, Target("openvino", seq=16))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "mine"


def test_export_and_check_refuses_weights_without_a_head(minilm_dir: Path, tmp_path: Path) -> None:
    headless = tmp_path / "headless"
    shutil.copytree(minilm_dir, headless)
    config = json.loads((headless / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (headless / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its weights lack 2 tensors"):
        export_and_check(headless, tmp_path / "out", Target())
    assert not (tmp_path / "out").exists()


def test_random_rows_stay_within_what_the_model_reads(tiny: tuple[Any, Any]) -> None:
    rows = random_rows(*tiny)
    lengths = [len(ids) for ids in rows["input_ids"]]
    assert (min(lengths), max(lengths)) == (1, 64)


def test_folders_that_hold_no_export(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_format(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no exported model in it"):
        load_exported(tmp_path)
    with pytest.raises(UserError, match="no exported model in it"):
        folder_size_mb(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"no config\.json"):
        find_format(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        measure_against(exported.out / "onnx", tmp_path / "nowhere", Target())
