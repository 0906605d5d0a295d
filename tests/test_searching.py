"""`hwnas search` on a tiny trained run: what it delivers, resumed, stopped, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from optimum.intel import OVModelForSequenceClassification

from hwnas.errors import BudgetError
from hwnas.files import read_json, read_model, write_json
from hwnas.front_search import FrontSearch, one_by_one
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.table import LatencyTable
from hwnas.models import load
from hwnas.report.records import read_lines
from hwnas.rundir import RunDirectory
from hwnas.search.evolution import Evaluated
from hwnas.search.front import front
from hwnas.searching import warm_start
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Candidate, Summary
from hwnas.trained import TrainedRun


def hwnas(*arguments: object, **more: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hwnas", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | more,
        start_new_session=True,  # as a shell does, so that Ctrl-C reaches all of its processes
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    return out


@pytest.fixture(scope="module")
def trained(tiny_trained: Path) -> Path:
    return tiny_trained


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> tuple[Path, Summary]:
    """Of 30 evaluations by two workers, for two budgets that are not the run's."""
    out = tmp_path_factory.mktemp("searched") / "found"
    found = finish(search(trained, out, workers=2))
    return out, Summary.model_validate_json(found)


def search(
    trained: Path,
    out: Path,
    *more: object,
    workers: int = 1,
    budgets: Sequence[str] = ("90%", "60%"),
) -> subprocess.Popen[str]:
    options = [option for budget in budgets for option in ("--budget", budget)]
    options += ["--evaluations", "30", "--workers", str(workers), "--json"]
    return hwnas("search", trained, "--out", out, *options, *more)


def candidates(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]


def first_round(out: Path) -> list[dict[str, object]]:
    """The candidates that do not depend on what was measured."""
    return [c for c in candidates(out) if c["round"] == 1]


@pytest.mark.slow  # a search of two budgets
def test_both_budgets_are_met_by_files_that_optimum_loads(
    searched: tuple[Path, Summary],
) -> None:
    out, summary = searched
    assert [c.budget for c in summary.chosen] == ["90%", "60%"]
    reference = LatencyTable.load(out / "table.json").reference_ms
    # of so tiny a model a measurement tells the smaller budget only, with a margin for noise
    assert summary.chosen[1].ratio <= 0.6 * 1.25
    for chosen, share in zip(summary.chosen, (0.9, 0.6), strict=True):
        assert chosen.predicted_ms <= share * reference and chosen.kind == "guided"
        folder = out / chosen.path
        OVModelForSequenceClassification.from_pretrained(folder / "openvino")
        assert max(chosen.parity.values()) < 1e-3
    assert (out / "report.html").stat().st_size > 10_000
    assert read_model(out / "summary.json", Summary) == summary


@pytest.mark.slow  # a search of two budgets
def test_what_is_chosen_is_the_best_that_was_looked_at_and_has_the_networks_weights(
    searched: tuple[Path, Summary], trained: Path
) -> None:
    out, summary = searched
    run = TrainedRun.open(trained)
    for chosen in summary.chosen:
        subnetwork = Subnetwork.of(chosen.genome)
        timed = read_json(out / "selection" / f"{chosen.budget.replace('%', 'pct')}.json")
        best = min(timed["structures"], key=lambda t: t["signal"])
        assert best["genome"] == chosen.genome
        ours = load(out / chosen.path / "model").state_dict()
        theirs = run.network.extract(subnetwork).state_dict()
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
        (line,) = [c for c in candidates(out) if c["genome"] == chosen.genome]
        assert line["signal"] == pytest.approx(run.judge.of(run.network, subnetwork), rel=1e-3)


@pytest.mark.slow  # a search of two budgets
def test_the_trained_run_is_only_read(searched: tuple[Path, Summary], trained: Path) -> None:
    assert sorted(p.name for p in trained.iterdir()) == [
        "baseline",
        "events.jsonl",
        "importance.safetensors",
        "recipe.yaml",
        "space.json",
        "supernet",
        "table.json",
        "teacher.safetensors",
    ]


@pytest.mark.variant
@pytest.mark.slow  # two searches
def test_a_killed_search_of_one_worker_goes_on_to_what_two_found(
    searched: tuple[Path, Summary], trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    process = search(trained, out)
    wait_for(lambda: len(candidates(out)) >= 10, out / "candidates.jsonl")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = candidates(out)
    assert 0 < len(before) < 30
    again = search(trained, out)
    _, err = again.communicate()
    assert again.returncode == 2 and "--resume" in err
    finish(search(trained, out, "--resume"))
    assert candidates(out)[: len(before)] == before
    assert first_round(out) == first_round(searched[0])


@pytest.mark.slow  # a whole search
def test_ctrl_c_ends_the_search_with_the_best_so_far(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    process = search(trained, out, "--evaluations", 3000, workers=2, budgets=["80%"])
    wait_for(lambda: len(candidates(out)) >= 10, out / "candidates.jsonl")
    os.killpg(process.pid, signal.SIGINT)
    stdout, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    assert "search stopped; going on with the best of the" in err
    summary = Summary.model_validate_json(stdout)
    assert len(candidates(out)) < 3000
    assert [c.budget for c in summary.chosen] == ["80%"]


def wait_for(holds: object, file: Path, seconds: float = 120) -> None:
    end = time.time() + seconds
    while not (file.exists() and holds()):  # type: ignore[operator]
        assert time.time() < end, f"{file} did not come to be"
        time.sleep(0.02)


@pytest.mark.slow  # a table and a search
def test_another_targets_table_is_searched_for_that_target(trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    target = "onnxruntime:cpu:threads=1,batch=1,seq=32"
    model = trained / "baseline" / "model"
    finish(hwnas("profile", model, "--target", target, "--minutes", "0.1", "--out", table))
    out = tmp_path / "found"
    summary = Summary.model_validate_json(
        finish(search(trained, out, "--table", table, "--algorithm", "exact", budgets=["80%"]))
    )
    assert summary.target == LatencyTable.load(table).target == target
    assert {c.runtime for c in summary.chosen} == {"onnxruntime"}
    assert {c.kind for c in summary.chosen} == {"exact"}
    # the texts are cut as they were in training
    assert yaml.safe_load((out / "recipe.yaml").read_text())["task"]["max_length"] == 32


def test_a_warm_start_looks_at_the_older_front_first(
    searched: tuple[Path, Summary], trained: Path, tmp_path: Path
) -> None:
    run, table = TrainedRun.open(trained), LatencyTable.load(trained / "table.json")
    older = [
        Evaluated("", Subnetwork.of(c.genome), c.signal, c.predicted_ms)
        for c in read_lines(searched[0] / "candidates.jsonl", Candidate)
    ]
    best = [c.subnetwork for c in front(older)]
    assert warm_start(searched[0], run.space) == tuple(best)
    aims, more = [0.8 * table.reference_ms], {"evaluations": len(best) + 8, "seed": 7}
    again = front_of(run, tmp_path, aims, start=best, **more)
    again.proposer("80%")(table.predictor(), 0.8 * table.reference_ms, 1)
    assert list(again.evaluated)[: len(best)] == best
    assert len(again.evaluated) == len(best) + 8


def front_of(run: TrainedRun, folder: Path, aims: Sequence[float], **more: Any) -> FrontSearch:
    """A search of the front in this process."""
    return FrontSearch(
        space=run.space,
        loss=run.scores.loss(),
        judge=run.judge,
        evaluate_all=one_by_one(lambda s: run.judge.of(run.network, s)),
        directory=RunDirectory(folder),
        algorithm="guided",
        aims=aims,
        **{"evaluations": 8, "seed": 0} | more,
    )


def test_where_all_of_the_space_is_within_the_budget_the_largest_can_be_chosen(
    trained: Path, tmp_path: Path
) -> None:
    run, table = TrainedRun.open(trained), LatencyTable.load(trained / "table.json")
    budget = 5 * table.reference_ms
    search = front_of(run, tmp_path, [budget])
    found = list(search.proposer("500%")(table.predictor(), budget, 1))
    assert run.space.largest in search.evaluated and found


def test_a_width_at_which_nothing_is_allowed_does_not_end_the_search(
    trained: Path, tmp_path: Path
) -> None:
    run, table = TrainedRun.open(trained), LatencyTable.load(trained / "table.json")
    refused: list[int] = []

    def within(predictor: LatencyPredictor, ms: float, hidden: int) -> LatencyPredictor:
        if hidden == 0:
            refused.append(hidden)
            raise BudgetError("max_size_mb: nothing is so small")
        return predictor

    budget = 0.8 * table.reference_ms
    alone = front_of(run, tmp_path, [budget], within_size=within)
    with pytest.raises(BudgetError, match="nothing is so small"):
        list(alone.proposer("80%")(table.predictor(), budget, 1))
    assert refused == [0] and not alone.evaluated


def test_a_resumed_search_has_what_earlier_budgets_looked_at(trained: Path, tmp_path: Path) -> None:
    run, table = TrainedRun.open(trained), LatencyTable.load(trained / "table.json")
    aims = [share * table.reference_ms for share in (0.85, 0.75)]
    first = front_of(run, tmp_path, aims)
    propose = first.proposer("85%")
    propose(table.predictor(), aims[0], 1)
    front_alone = set(first.evaluated)
    propose(table.predictor(), aims[0], 2)
    assert set(first.evaluated) > front_alone
    first.directory.close()
    for chosen in (False, True):  # whether 85 % had its structures when the search was killed
        if chosen:
            write_json(tmp_path / "selection" / "85pct.json", {})
        again = front_of(run, tmp_path, aims)
        again.proposer("75%")(table.predictor(), aims[1], 1)
        again.directory.close()
        assert set(again.evaluated) == (set(first.evaluated) if chosen else front_alone)


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, ["--budget", "8"], "budget '8': expected milliseconds"),
        (None, ["--budget", "101%"], "must be below 100%"),
        (None, ["--algorithm", "magic"], "options: search.algorithm: 'magic' is unknown"),
        (None, ["--signal", "beauty"], "options: search.signal: 'beauty' is unknown"),
        (None, ["--confidence", "2"], "options: measure.confidence"),
        (None, ["--seed", "-1"], "options: seed"),
        (None, ["--evaluations", "0"], "0 is not in the range x>=1"),
        (None, ["--workers", "0"], "0 is not in the range x>=1"),
        (None, ["--table", "nowhere.json"], "nowhere.json: no such file"),
        (
            None,
            ["--table", "bert-base_openvino_cpu_xeon-amx_t2_b1_s128"],
            "latency table: measured for a model of",
        ),
        (None, ["--warm-start", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ("supernet", [], "has no supernet; train a super-network there first"),
        ("recipe.yaml", [], "no run here"),
        ("space.json", [], "has no space.json"),
        ("importance.safetensors", [], "has no importance.safetensors"),
        ("teacher.safetensors", [], "has no teacher.safetensors"),
        ("baseline", [], "has no baseline/model"),
        ("table.json", [], "has no table.json"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    trained: Path, tmp_path: Path, spoil: str | None, arguments: list[str], message: str
) -> None:
    from hwnas.cli import app
    from hwnas.errors import HwnasError

    run = trained
    if spoil:
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        gone = run / spoil
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    out = tmp_path / "out"
    with pytest.raises((HwnasError, click.ClickException)) as caught:
        app(["search", str(run), "--out", str(out), *arguments], standalone_mode=False)
    said = str(caught.value)
    assert message in said and "\n" not in said
    assert getattr(caught.value, "exit_code", 2) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("supernet/model.safetensors", lambda old: old[:100], "supernet"),
        ("importance.safetensors", lambda old: old[:100], "importance.safetensors"),
        ("teacher.safetensors", lambda old: old[:100], "teacher.safetensors"),
        ("table.json", lambda old: old[:100], "table.json: not valid JSON"),
        ("table.json", lambda old: old.replace(b'"reference_ms": ', b'"reference_ms": -'), "table"),
        ("recipe.yaml", lambda old: old + b"colour: red\n", "recipe.yaml: colour: unknown key"),
        ("space.json", lambda old: b"[]", "space.json"),
        ("warm/candidates.jsonl", lambda _: b"{nonsense\n", "candidates.jsonl"),
    ],
)
def test_damaged_files_are_named(
    trained: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    from hwnas.cli import app
    from hwnas.errors import HwnasError

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    damaged = run / name
    damaged.parent.mkdir(exist_ok=True)
    before = damaged.read_bytes() if damaged.exists() else b""
    damaged.write_bytes(damage(before))
    assert damaged.read_bytes() != before
    warm = ["--warm-start", str(damaged)] if damaged.parent.name == "warm" else []
    with pytest.raises(HwnasError) as caught:
        app(["search", str(run), "--out", str(tmp_path / "out"), *warm], standalone_mode=False)
    said = str(caught.value)
    assert message in said and "\n" not in said and caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_an_impossible_budget_exits_3(trained: Path, tmp_path: Path) -> None:
    process = search(trained, tmp_path / "found", "--budget", "0.001ms")
    _, err = process.communicate()
    assert process.returncode == 3 and "budget 0.001ms cannot be met" in err
    assert not (tmp_path / "found").exists()


def test_a_candidate_of_another_space_is_no_warm_start(
    searched: tuple[Path, Summary], trained: Path, tmp_path: Path
) -> None:
    line = candidates(searched[0])[0] | {"genome": [[1, 7]] * 4}
    (tmp_path / "candidates.jsonl").write_text(json.dumps(line) + "\n")
    process = search(trained, tmp_path / "found", "--warm-start", tmp_path)
    _, err = process.communicate()
    assert process.returncode == 2 and "none of its 1 candidates is in this run's" in err


def test_a_damaged_space_is_named(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    space = read_json(run / "space.json")
    space["blocks"][2]["heads"] = [1, 14]
    write_json(run / "space.json", space)
    process = search(run, tmp_path / "found")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "block 2 has 14 heads, the model has 4" in err
