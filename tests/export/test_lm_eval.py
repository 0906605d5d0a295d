"""Exported language models in lm-evaluation-harness as it is: the scores are hwnas's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hwnas.anatomy import find_shape
from hwnas.cli import app
from hwnas.elastic.supernet import SuperNetwork
from hwnas.export import export_model
from hwnas.models import load_model
from hwnas.subnetwork import Subnetwork

pytestmark = [
    pytest.mark.slow,  # a real language model in three formats, and a process for each
    pytest.mark.skipif(
        find_spec("lm_eval") is None,
        reason="lm-eval is not installed; it cannot be beside constraints.txt (python-dateutil 4): "
        "pip install --no-deps lm-eval sacrebleu rouge-score sqlitedict word2number "
        "more-itertools pytablewriter DataProperty tabledata typepy mbstrdecoder pathvalidate "
        "tcolorpy portalocker lxml colorama chardet",
    ),
]

ROWS = [
    ("What do bees make?", ["honey", "milk", "bread"], 0),
    ("Which of these is hot?", ["ice", "snow", "fire", "rain"], 2),
    ("What is the capital of France?", ["Berlin", "Paris", "Madrid"], 1),
    ("Where do fish live?", ["in trees", "in the water"], 1),
    ("What falls from clouds?", ["rain", "sand", "leaves of grass"], 0),
    ("Which animal barks?", ["a cat", "a dog", "a fish", "a bird"], 1),
]
TASK = {
    "task": "six_questions",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with a few blocks of several widths, as torch, ONNX and OpenVINO; rows and a task."""
    out = tmp_path_factory.mktemp("lm-eval")
    model, tokenizer = load_model("demo:smollm2", task="text-generation")
    genome = [[0, 0]] * len(Subnetwork.full(find_shape(model.config)).blocks)
    genome[0], genome[1], genome[15], genome[29] = [9, 1536], [3, 1024], [6, 1536], [9, 768]
    export_model(SuperNetwork(model).extract(Subnetwork.of(genome)), tokenizer, out)
    rows = [dict(zip(("question", "choices", "answer"), row, strict=True)) for row in ROWS]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TASK | {"dataset_kwargs": {"data_files": {"test": str(out / "rows.jsonl")}}}
    (out / "tasks").mkdir()
    (out / "tasks" / "six_questions.yaml").write_text(yaml.safe_dump(task))
    (out / "ov.json").write_text(json.dumps({"INFERENCE_PRECISION_HINT": "f32"}))
    return out


def _ours(folder: Path, form: str) -> dict[str, Any]:
    """What `hwnas evaluate` says."""
    command = ["evaluate", str(folder / form), "--data", str(folder / "rows.jsonl"), "--json"]
    command += ["--kind", "choice", "--text", "question", "--text", "choices", "--label", "answer"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("model", "form", "more"),
    [
        ("hf", "model", ",trust_remote_code=True"),
        ("openvino", "openvino", ",ov_config=ov.json"),
        ("onnxruntime", "onnx", ""),
    ],
)
def test_lm_eval_scores_the_folder_as_we_do(folder: Path, model: str, form: str, more: str) -> None:
    command = [sys.executable, "-m", "lm_eval", "--model", model, "--device", "cpu"]
    command += ["--model_args", f"pretrained={form}{more}", "--tasks", "six_questions"]
    command += ["--include_path", "tasks", "--output_path", f"said-{form}", "--log_samples"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (folder / f"said-{form}").rglob("results_*.json")
    said = json.loads(path.read_text())["results"]["six_questions"]
    ours = _ours(folder, form)["metrics"]
    assert ours["accuracy"] == pytest.approx(100 * said["acc,none"])
    assert ours["accuracy_norm"] == pytest.approx(100 * said["acc_norm,none"])
    (path,) = (folder / f"said-{form}").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    theirs = [[float(one[0]) for one in sample["filtered_resps"]] for sample in samples]
    exact = _ours(folder, "model")["loss"]
    assert exact == pytest.approx(_cross_entropy(theirs), abs=1e-3)


def _cross_entropy(scores: list[list[float]]) -> float:
    """Of the right choices among those of their questions, nats."""
    import torch

    losses = [
        torch.log_softmax(torch.tensor(row, dtype=torch.float64), 0)[right].neg()
        for row, (_, _, right) in zip(scores, ROWS, strict=True)
    ]
    return float(torch.stack(losses).mean())
