"""Runtimes and precisions that compete with the target's own for a budget."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hwnas import deployments
from hwnas.choosing import choose_structures
from hwnas.contest import Contest
from hwnas.deployments import Anchor, Anchors, Deployment, name_of, targets_of
from hwnas.errors import BudgetError, UserError
from hwnas.export import load_exported, served_folder
from hwnas.files import read_json, read_model, validate
from hwnas.latency.target import Target
from hwnas.pipeline import run
from hwnas.recipe import Recipe, load_recipe
from hwnas.report.records import read_lines
from hwnas.report.text import served_at
from hwnas.search.evolution import Evaluated, finalists
from hwnas.selection import Proposer, Selection, TimedStructure, best_of
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Candidate, Summary

TARGET = "openvino:cpu:threads=1,batch=1,seq=32"
THREADS, THEIRS = (":threads=2", "-2threads") if deployments.processors() > 1 else ("", "")
DEPLOYMENTS = ["openvino:int8-static", f"onnxruntime:fp32{THREADS}"]
NAMES = ["openvino-int8-static", f"onnxruntime-fp32{THEIRS}"]
OWN = Target.parse(TARGET)


@pytest.fixture(scope="module")
def finished(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A run whose budget two other deployments compete for."""
    settings = yaml.safe_load(tiny_recipe.read_text())
    settings |= {"target": TARGET, "budgets": ["80%"], "deployments": DEPLOYMENTS}
    settings["search"] = {"enough": 0}  # the whole model in int8 may be
    settings["measure"] |= {"validate_table": 0}
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, run(validate(Recipe, settings, where="recipe"), out)


def _selection(*structures: tuple[str, float | None, float]) -> Selection:
    timed = [
        TimedStructure(
            kind="exact",
            genome=genome,
            signal=signal,
            predicted_ms=ms,
            measured_ms=ms,
            round=1,
        )
        for text, signal, ms in structures
        for genome in [[[2, 64], [0, 0]] if text == "shallow" else [[2, 64], [2, 64]]]
    ]
    return Selection(structures=timed, timed=timed, rounds=1, scales={"whole": 1.0})


def test_of_each_kind_of_structure_the_best_deployment_is_kept() -> None:
    found = best_of(
        {
            "": _selection(("whole", 0.5, 1.0), ("shallow", 0.2, 1.0)),
            "openvino:cpu:precision=int8-static": _selection(("whole", 0.4, 0.9)),
        }
    )
    kept = {len([b for b in s.genome if b[0]]): s for s in found.structures}
    assert kept[2].deployment == "openvino:cpu:precision=int8-static" and kept[2].signal == 0.4
    assert kept[1].deployment == "" and kept[1].signal == 0.2
    assert len(found.timed) == 3


WIDE, NARROW = Subnetwork.of([[4, 64], [4, 64]]), Subnetwork.of([[2, 32], [2, 32]])


@dataclass(frozen=True)
class _Table:
    """A latency table that is one factor of what a structure takes at the run's target."""

    factor: float = 1.0
    reference_ms: float = 10.0

    def predictor(self, _confidence: float) -> _Table:
        return self

    def scaled(self, factor: float) -> _Table:
        return _Table(self.factor * factor)

    def predict(self, subnetwork: Subnetwork) -> float:
        return self.factor * {WIDE: 10.0, NARROW: 5.5}[subnetwork]


class _Front:
    """The search of a front that is known: wide is better, by the same at any deployment."""

    def proposer(self, _budget: str) -> Proposer:
        def propose(predictor: Any, budget_ms: float, number: int) -> list[Evaluated]:
            signals = {WIDE: 0.1, NARROW: 0.3}
            every = [Evaluated("guided", s, x, predictor.predict(s)) for s, x in signals.items()]
            if found := finalists(every, budget_ms):
                return found
            raise BudgetError("nothing fits")

        return propose


@pytest.mark.parametrize(
    ("ratio", "signal", "wins", "expected"),
    [
        (0.5, 0.05, True, WIDE),  # twice as fast and hardly worse: the whole fits
        (0.5, 0.35, False, NARROW),  # as fast, but worse than what is cut out of the exact one
        (1.2, 0.05, False, NARROW),  # slower here: nothing of it fits
        (0.9, -0.05, True, NARROW),  # what is cut out of it is better
    ],
)
def test_what_a_deployment_saves_and_costs_decides_whether_it_wins(
    ratio: float, signal: float, wins: bool, expected: Subnetwork, tmp_path: Path
) -> None:
    target = replace(OWN, precision="int8-static")
    recipe = Recipe.model_validate(
        {"target": TARGET, "budgets": ["60%"], "search": {"algorithm": "guided"}}
    )
    plan = SimpleNamespace(entrants=2)
    inputs: Any = SimpleNamespace(recipe=recipe, path=tmp_path, plan=plan)
    table: Any = _Table()
    anchor = Anchor(target=str(target), ratio=ratio, signal=signal, loss=0.0)
    other = Deployment(name_of(target, OWN), target, table, anchor, 10.0, 0.0)
    anything: Any = SimpleNamespace(hidden=())
    contest = Contest(inputs, table, *[anything] * 5, deployments=[other])
    for one, factor in ((contest, 1.0), (contest.elsewhere[0], ratio)):
        one.front = _Front()  # type: ignore[assignment]
        one.clock = SimpleNamespace(time=_Table(factor).predict)  # type: ignore[assignment]
    (found,) = choose_structures(contest, "60%").structures
    assert found.deployment == (str(target) if wins else "") and found.subnetwork == expected
    cost = signal if wins else 0.0
    assert found.signal == pytest.approx((0.1 if expected == WIDE else 0.3) + cost)
    assert found.measured_ms == pytest.approx(_Table(ratio if wins else 1.0).predict(expected))


def test_all_that_run_here_are_meant_by_auto() -> None:
    recipe = Recipe(target=TARGET, deployments=("auto", "openvino:int8-static"))
    found = targets_of(recipe)
    assert len(set(found)) == len(found) and Target.parse(TARGET) not in found
    assert {name_of(t, OWN) for t in found} >= {"onnxruntime-fp32", "openvino-int8-static"}
    assert all((t.threads, t.batch, t.seq) == (1, 1, 32) for t in found)
    assert targets_of(Recipe(target=TARGET)) == []


def test_threads_may_be_others_than_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "processors", lambda: 4)
    texts = ("openvino:fp32:threads=4", "openvino:int8-static:threads=1", "onnxruntime:fp32")
    found = targets_of(Recipe(target=TARGET, deployments=texts))
    assert [t.threads for t in found] == [4, 1, 1]
    names = ["openvino-fp32-4threads", "openvino-int8-static", "onnxruntime-fp32"]
    assert [name_of(t, OWN) for t in found] == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openvino:fp32:threads=5", "'openvino:fp32:threads=5': 5 threads; 1 to 4"),
        ("openvino:fp32:threads=0", "0 threads; 1 to 4"),
        ("openvino:fp32:threads=", "no threads; 1 to 4"),
        ("openvino:fp32:threads=two", "two threads; 1 to 4"),
        ("openvino:fp32:batch=2", "is unknown"),
    ],
)
def test_threads_that_cannot_be_measured_are_refused(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "processors", lambda: 4)
    with pytest.raises(UserError, match=re.escape("deployments.0: ") + ".*" + re.escape(said)):
        targets_of(Recipe(target=TARGET, deployments=(text,)))


@pytest.mark.parametrize("text", ["openvino:int9", "toaster:fp32", "int8-static", "torch:fp64"])
def test_unknown_deployments_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"deployments\.0: .* is unknown; known: auto, openvino:"):
        targets_of(Recipe(target=TARGET, deployments=(text,)))


def test_a_rule_chooses_among_no_deployments(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("strategy: uniform\ndeployments: [auto]\n")
    with pytest.raises(UserError, match="searches nothing, leave them out"):
        load_recipe(recipe)


@pytest.mark.slow  # a whole run at three deployments
def test_the_baseline_is_measured_at_each_deployment(finished: tuple[Path, Summary]) -> None:
    out, _ = finished
    anchors = read_model(out / "deployments.json", Anchors).anchors
    assert [name_of(Target.parse(a.target), OWN) for a in anchors] == NAMES
    int8, exact = anchors
    assert exact.signal == pytest.approx(0, abs=1e-6) and exact.loss == pytest.approx(0, abs=1e-6)
    assert int8.signal != 0
    assert all(0.05 < a.ratio < 20 for a in anchors)
    assert {p.stem for p in (out / "tables").iterdir()} == set(NAMES)


@pytest.mark.slow  # a whole run at three deployments
def test_candidates_of_all_deployments_are_on_one_clock(finished: tuple[Path, Summary]) -> None:
    out, _ = finished
    lines = read_lines(out / "candidates.jsonl", Candidate)
    assert {c.deployment for c in lines} == {"", *NAMES}
    selection = read_model(out / "selection" / "80pct.json", Selection)
    reference = read_json(out / "table.json")["reference_ms"]
    assert all(s.measured_ms <= 0.8 * reference * 1.25 for s in selection.structures)
    shares = {a.target: a.ratio for a in read_model(out / "deployments.json", Anchors).anchors}
    assert {t.deployment for t in selection.timed} == {"", *shares}
    lines = map(json.loads, (out / "measurements.jsonl").read_text().splitlines())
    measured = {line["key"]: line["value"] for line in lines}
    for timed in selection.timed:
        name = name_of(Target.parse(timed.deployment), OWN) if timed.deployment else ""
        kept = measured[f"{name} structure {Subnetwork.of(timed.genome)}".strip()]
        share = shares.get(timed.deployment, 1.0)  # of the baseline's latency, the whole model's
        assert timed.measured_ms == pytest.approx(kept["ratio"] * share * reference)


@pytest.mark.slow  # a whole run at three deployments
def test_the_winner_is_served_by_its_deployment(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    (chosen,) = summary.chosen
    target = chosen.served_at(OWN)
    load_exported(out / chosen.path / served_folder(target))
    assert summary.target == str(Target.parse(TARGET))
    script = (out / chosen.path / "serve.py").read_text()
    assert served_folder(target) in script
    hint = {"openvino": "INFERENCE_NUM_THREADS", "onnxruntime": "intra_op_num_threads"}
    assert re.search(rf"{hint[target.runtime]}\W+{target.threads}\b", script)
    card = (out / chosen.path / served_folder(target) / "README.md").read_text()
    assert f"Measured with {served_at(target)}" in card
    page = (out / "report.html").read_text()
    assert "Ways to serve that competed" in page and "openvino int8-static" in page
    finalists = [Path(p).name for p in (out / "finalists").iterdir()]
    assert finalists == ["80pct"]
