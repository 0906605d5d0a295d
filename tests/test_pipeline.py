"""The whole line on a tiny BERT and real tweets: run, killed in every stage, resumed, rivals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from optimum.intel import OVModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hwnas.files import read_model
from hwnas.summary import Summary

STAGES = (
    "table",
    "baseline",
    "importance",
    "teacher",
    "supernet",
    "search",
    "finalists",
    "export",
    "verify",
    "test",
)
BUDGETS = ("85%", "75%")
NOISE = 1.25  # of a tiny model's ratio; the recipe's own tolerance would forgive any miss


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Path:
    return tiny_recipe


def hwnas(*arguments: object) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hwnas", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def in_two_processes(*arguments: object) -> subprocess.Popen[str]:
    """The same, twice, as one run."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # any free port
    return subprocess.Popen(
        [sys.executable, *command, "-m", "hwnas", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate()
    assert process.returncode == 0, err[-2000:]


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(hwnas("run", recipe, "--out", out))
    return out


@pytest.mark.slow
def test_run_leaves_what_the_design_says(finished: Path) -> None:
    expected = (
        "recipe.yaml",
        "events.jsonl",
        "table.json",
        "importance.safetensors",
        "space.json",
        "supernet/model.safetensors",
        "candidates.jsonl",
        "finalists.jsonl",
        "summary.json",
        "report.html",
        *(f"baseline/{form}/config.json" for form in ("model", "onnx", "openvino")),
        *(
            f"chosen/{budget}/{form}/config.json"
            for budget in ("85pct", "75pct")
            for form in ("model", "onnx", "openvino")
        ),
    )
    assert [name for name in expected if not (finished / name).exists()] == []
    leftovers = [p for p in finished.rglob("*") if ".partial" in p.name or "-training" in p.name]
    assert leftovers == []


@pytest.mark.slow
def test_summary_says_what_was_measured(finished: Path) -> None:
    summary = read_model(finished / "summary.json", Summary)
    table = json.loads((finished / "table.json").read_text())
    assert [c.budget for c in summary.chosen] == list(BUDGETS)
    for chosen, share in zip(summary.chosen, (0.85, 0.75), strict=True):
        assert chosen.predicted_ms <= share * table["reference_ms"]
        assert chosen.measured_ms == pytest.approx(chosen.ratio * summary.baseline.latency_ms)
        assert max(chosen.parity.values()) <= 1e-3
        assert 0 <= chosen.metric <= 100
        assert chosen.params < summary.baseline.params
    assert summary.chosen[1].ratio <= 0.75 * NOISE, "of so tiny a model 85 % are hardly told apart"
    assert sum(summary.splits.values()) == 900
    assert set(summary.seconds) == set(STAGES)
    assert table["validation"]["n"] == 3


@pytest.mark.slow
def test_killed_in_every_stage_and_resumed(
    finished: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One run is killed in each stage in turn; it ends with what the whole run chose.

    Measurements are inputs: the killed run is given the whole one's, and makes none twice.
    """
    out = tmp_path_factory.mktemp("runs") / "killed"
    rng = random.Random(0)
    command = ("run", recipe, "--out", out, "--table", finished / "table.json", "--resume")
    for stage in STAGES:
        process = hwnas(*command)
        killed = kill_in(process, out, stage, rng.uniform(0.0, 0.3))
        assert killed, f"{stage}: the run ended first: {process.stderr.read()[-2000:]}"  # type: ignore[union-attr]
        if stage == "table":
            shutil.copy(finished / "measurements.jsonl", out)
    finish(hwnas(*command))
    for name in ("table.json", "measurements.jsonl", "space.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    assert chosen(out) == chosen(finished)
    for name in ("candidates.jsonl", "finalists.jsonl"):
        assert rounded(out / name) == rounded(finished / name), name


def kill_in(process: subprocess.Popen[str], out: Path, stage: str, delay: float) -> bool:
    """Kill -9 the process once it has been in `stage` for `delay` seconds, or at its end."""
    seen = events(out)
    while process.poll() is None:
        begun = [e for e in events(out)[len(seen) :] if e["stage"] == stage]
        if any(e["event"] == "begin" for e in begun):
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    return False


def events(out: Path) -> list[dict[str, Any]]:
    path = out / "events.jsonl"
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def chosen(out: Path) -> list[Any]:
    summary = json.loads((out / "summary.json").read_text())
    return [(c["budget"], c["kind"], c["genome"], round(c["metric"], 6)) for c in summary["chosen"]]


def rounded(path: Path) -> list[dict[str, Any]]:
    """A JSONL file's records, floats to five digits."""
    return [
        {k: round(v, 5) if isinstance(v, float) else v for k, v in json.loads(line).items()}
        for line in path.read_text().splitlines()
    ]


@pytest.mark.slow
def test_a_measurement_is_never_made_again(finished: Path, tmp_path: Path) -> None:
    keys = [
        json.loads(line)["key"]
        for line in (finished / "measurements.jsonl").read_text().splitlines()
    ]
    assert len(keys) == len(set(keys))
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    finish(hwnas("run", out / "recipe.yaml", "--out", out, "--resume"))
    for name in ("measurements.jsonl", "table.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    ["uniform", pytest.param("layers", marks=pytest.mark.variant)],
)
def test_rivals_shrink_by_their_rule_with_the_same_compute(
    finished: Path, recipe: Path, tmp_path: Path, strategy: str
) -> None:
    out = tmp_path / strategy
    finish(hwnas("run", recipe, "--out", out, "--baseline", strategy, "--reuse", finished))
    searched = read_model(finished / "summary.json", Summary)
    rival = read_model(out / "summary.json", Summary)
    assert rival.strategy == strategy
    for c in rival.chosen:
        kept = [tuple(block) for block in c.genome if block[0]]
        if strategy == "layers":  # the last one may be narrower, to use the budget up
            assert set(kept[:-1]) <= {(4, 512)}
            assert c.genome[len(kept) :] == [[0, 0]] * (4 - len(kept))
        else:
            assert len(kept) == 4
            assert len(set(kept)) == 1
    spent = searched.compute
    total = spent.supernet + spent.search + spent.finalists
    assert rival.compute.supernet == rival.compute.search == 0
    assert rival.compute.finalists == pytest.approx(total, rel=0.1)
    assert rival.baseline.metric == searched.baseline.metric
    finish(hwnas("report", finished, "--rival", out))
    assert strategy in (finished / "report.html").read_text()


@pytest.mark.slow
def test_a_residual_width_is_searched_too(recipe: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())
    settings["space"] = {"hidden": [96]}
    settings["target"] = "openvino:cpu:threads=1,batch=1,seq=32"
    settings["compute"]["evaluations"] = 12
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(settings))
    finish(hwnas("run", tmp_path / "narrow.yaml", "--out", tmp_path / "out"))
    table = json.loads((tmp_path / "out/table.json").read_text())
    assert [part["hidden"] for part in table["narrower"]] == [96]
    lines = (tmp_path / "out/finalists.jsonl").read_text().splitlines()
    finalists = [json.loads(line) for line in lines]
    assert any(len(f["genome"][-1]) == 1 for f in finalists)
    read_model(tmp_path / "out/summary.json", Summary)


@pytest.mark.slow
def test_a_baseline_serves_another_search_in_two_stages(
    finished: Path, recipe: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load(recipe.read_text())
    paragraphs = [f"The {i}th paragraph is about the number {i}." for i in range(40)]
    text = "".join(json.dumps({"text": p}) + "\n\n" for p in paragraphs)
    (tmp_path / "text.jsonl").write_text(text)
    settings["unlabelled"] = {"data": str(tmp_path / "text.jsonl")}
    settings["compute"] |= {"general_steps": 4, "winner_steps": 12}
    settings["importance"] = {"kind": "magnitude"}
    settings["search"] = {"signal": "metric"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "out"
    finish(hwnas("run", tmp_path / "other.yaml", "--out", out, "--reuse", finished))
    mine, theirs = (read_model(run / "summary.json", Summary) for run in (out, finished))
    assert mine.baseline.metric == theirs.baseline.metric
    assert mine.compute.supernet > 1.2 * theirs.compute.supernet
    weights = [load_file(out / name / "model.safetensors") for name in ("general", "supernet")]
    moved = {name for name, w in weights[0].items() if not torch.equal(w, weights[1][name])}
    assert "classifier.weight" in moved
    start = load_file(out / "baseline" / "start" / "model.safetensors")
    assert torch.equal(weights[0]["classifier.weight"], start["classifier.weight"])
    lines = (out / "candidates.jsonl").read_text().splitlines()
    signals = [json.loads(line)["signal"] for line in lines]
    rows = settings["compute"]["evaluation_rows"]
    right = [(100 - signal) / 100 * rows for signal in signals]
    assert right == pytest.approx([round(r) for r in right]), "shares of the rows that are right"
    assert "100 - metric" in (out / "report.html").read_text()


@pytest.mark.variant
@pytest.mark.slow
def test_a_target_in_int8_is_served_in_int8(recipe: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())
    settings["target"] = "openvino:cpu:threads=1,batch=1,seq=32,precision=int8-static"
    settings["budgets"] = ["75%"]
    settings["vocabulary"] = {"trim": True}
    (tmp_path / "int8.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "out"
    finish(hwnas("run", tmp_path / "int8.yaml", "--out", out))
    summary = read_model(out / "summary.json", Summary)
    (chosen,) = summary.chosen
    exact = summary.baseline.unquantized
    assert exact is not None
    assert chosen.precision == "int8-static"
    assert chosen.size_mb < summary.baseline.size_mb < exact.size_mb
    assert chosen.kept == pytest.approx(chosen.metric / exact.metric)
    served = out / chosen.path / "openvino-int8-static"
    graph = (served / "openvino_model.xml").read_text()
    assert "FakeQuantize" in graph and 'element_type="i8"' in graph
    assert "openvino-int8-static" in (served / "README.md").read_text()
    assert "baseline, fp32" in (out / "report.html").read_text()
    model = OVModelForSequenceClassification.from_pretrained(served)
    tokenizer = AutoTokenizer.from_pretrained(served)
    assert model(**tokenizer("good morning", return_tensors="pt")).logits.shape == (1, 3)


@pytest.mark.slow
def test_another_baseline_is_refused(finished: Path, recipe: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(recipe.read_text())
    for change, advice in (
        ({"batch": 4}, "compute.batch: 8 there, 4 now"),
        ({"winner_steps": 40}, "would be fair now"),
    ):
        changed = settings | {"compute": settings["compute"] | change}
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(changed))
        run = hwnas("run", tmp_path / "other.yaml", "--out", tmp_path / "out", "--reuse", finished)
        _, err = run.communicate()
        assert run.returncode == 2
        assert advice in err and err.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.variant
@pytest.mark.slow  # Python processes that import torch, and measure
def test_two_processes_make_one_run(finished: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = finished / "table.json"
    finish(in_two_processes("supernet", recipe, "--out", out, "--table", table))
    start, mine, theirs = (
        load_file(path / "model.safetensors")
        for path in (finished / "baseline" / "start", out / "supernet", finished / "supernet")
    )
    # of weights that no reordering moves
    fixed = [n for n in start if "LayerNorm" in n or "classifier" in n]
    moved = sum(float((theirs[n] - start[n]).square().sum()) for n in fixed)
    apart = sum(float((theirs[n] - mine[n]).square().sum()) for n in fixed)
    assert apart < 0.01 * moved
    events = (out / "events.jsonl").read_text().splitlines()
    assert sum(json.loads(e)["stage"] == "supernet" for e in events) == 2, "one process writes"
    finish(in_two_processes("run", recipe, "--out", out, "--resume", "--json"))
    both, one = (read_model(run / "summary.json", Summary) for run in (out, finished))
    assert len(both.chosen) == len(BUDGETS)
    assert both.baseline.metric == pytest.approx(one.baseline.metric, abs=3)
    assert both.compute.supernet == one.compute.supernet
