"""Tiers that are served in int8 or int4: files of weights alone, timed and scored as they serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_process import run

from hwnas.export import load_exported, served_folder
from hwnas.federated.handover import hand_over
from hwnas.federated.judging import server_rows
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.summary import FederatedSummary
from hwnas.files import read_model
from hwnas.latency.target import Target
from hwnas.report.federated import render
from hwnas.tasks.predict import predict

Make = Callable[..., FederatedRecipe]
EXACT = "openvino:cpu:threads=1,batch=1,seq=32"
TARGETS = {
    "exact": EXACT,
    "dynamic": "onnxruntime:cpu:threads=1,batch=1,seq=32,precision=int8-dynamic",
    "halved": f"{EXACT},precision=int4-weights",
}


@pytest.fixture(scope="module")
def handed(
    make_recipe: Make, tiny_table: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FederatedRecipe, Path, FederatedSummary]:
    """A run of three tiers, the last two within 90 % of the whole model in their precision."""
    tiers = [{"name": name, "target": target} for name, target in TARGETS.items()]
    tiers[0]["table"] = str(tiny_table)
    for tier in tiers[1:]:
        tier["budget"] = "90%"
    recipe = make_recipe(tiers=tiers, table_minutes=0.05)
    out = tmp_path_factory.mktemp("handed") / "run"
    summary, _ = run(recipe, out)
    return recipe, out, hand_over(recipe, out, summary)


@pytest.mark.slow  # two latency tables, and files in three precisions
def test_tiers_are_served_in_their_precision(
    handed: tuple[FederatedRecipe, Path, FederatedSummary],
) -> None:
    recipe, out, summary = handed
    assert summary == read_model(out / "summary.json", FederatedSummary)
    rows = server_rows(recipe)
    exact, *rounded = summary.tiers
    assert exact.served_score is None
    kind, metric = recipe.task.task_kind, recipe.task.usual_metric
    for tier in rounded:
        folder = out / "tiers" / tier.name
        target = Target.parse(tier.target)
        name = served_folder(target)
        answers = predict(load_exported(folder / name, 1), rows)
        assert tier.served_score == pytest.approx(kind.score(metric, answers, rows))
        whole = np.asarray(predict(load_exported(folder / name.split("-")[0], 1), rows))
        assert not np.allclose(answers, whole, atol=1e-6), "nothing was rounded"
        assert np.corrcoef(np.ravel(answers), np.ravel(whole))[0, 1] > 0.9
        assert tier.ratio is not None and tier.measured_ms is not None
        served = sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file())
        assert tier.size_mb == pytest.approx(served / 1e6)
        assert (out / "whole" / name).is_dir(), "the reference is in the tier's precision"
    page = (out / "report.html").read_text()
    assert page.count(" as served)") == 2
    assert "dynamic as it is served" in "".join(map(str, render(summary).renderables[1:]))


@pytest.mark.slow  # of the same run
def test_what_is_there_is_not_written_again(
    handed: tuple[FederatedRecipe, Path, FederatedSummary],
) -> None:
    recipe, out, summary = handed
    names = ("openvino_model.xml", "model.onnx")
    files = [p for name in names for p in out.rglob(name) if "int" in p.parent.name]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert len(before) == 4, "two tiers' and the whole model's"
    again = hand_over(recipe, out, summary)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert [t.served_score for t in again.tiers] == [t.served_score for t in summary.tiers]
