"""The run directory: stages noted, measurements kept, and nothing overwritten by accident."""

import pytest

from hwnas.errors import UserError
from hwnas.recipe import Recipe, load_recipe, override
from hwnas.rundir import RunDirectory


def test_a_new_run_keeps_its_recipe(tmp_path):
    recipe = Recipe(seed=3)
    RunDirectory.open(tmp_path / "run", recipe, resume=False)
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_an_existing_run_needs_resume(tmp_path):
    run = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    run.close()
    with pytest.raises(UserError, match="--resume"):
        RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    RunDirectory.open(tmp_path / "run", Recipe(), resume=True)


def test_another_recipe_is_refused_and_named(tmp_path):
    RunDirectory.open(tmp_path / "run", Recipe(), resume=False).close()
    other = override(Recipe(), "options", {"budgets": ["40%"]})
    with pytest.raises(UserError, match="budgets"):
        RunDirectory.open(tmp_path / "run", other, resume=True)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        RunDirectory.open(tmp_path, Recipe(), resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_processes_cannot_share_a_run(tmp_path):
    first = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    with pytest.raises(UserError, match="another hwnas process"):
        RunDirectory.open(tmp_path / "run", Recipe(), resume=True)
    first.close()


def test_a_process_that_does_not_lead_reads_and_leaves_no_trace(tmp_path, monkeypatch):
    leader = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    with leader.stage("table"):
        leader.measured("a", lambda: {"ms": 1.0})
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setenv("RANK", "1")
    other = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    with other.stage("table"):
        assert other.measured("a", lambda: {"ms": 2.0}) == {"ms": 1.0}
    other.append("candidates.jsonl", {"a": 1})
    other.rewrite("finalists.jsonl", [])
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_measurement_is_made_once(tmp_path):
    run = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    values = iter([1.0, 2.0])
    assert run.measured("a", lambda: {"ms": next(values)}) == {"ms": 1.0}
    assert run.measured("a", lambda: {"ms": next(values)}) == {"ms": 1.0}
    run.close()
    again = RunDirectory.open(tmp_path / "run", Recipe(), resume=True)
    assert again.measured("a", lambda: {"ms": next(values)}) == {"ms": 1.0}
    assert again.measured("b", lambda: {"ms": next(values)}) == {"ms": 2.0}


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    run = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    run.append("candidates.jsonl", {"a": 1})
    with open(tmp_path / "run" / "candidates.jsonl", "a") as file:
        file.write('{"a": 2, "b"')
    assert run.lines("candidates.jsonl") == [{"a": 1}]
    run.append("candidates.jsonl", {"a": 3})
    assert run.lines("candidates.jsonl") == [{"a": 1}, {"a": 3}]


def test_stage_seconds_add_up(tmp_path):
    run = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    for _ in range(2):
        with run.stage("search"):
            pass
    with pytest.raises(ZeroDivisionError), run.stage("supernet"):
        1 / 0  # noqa: B018
    assert set(run.seconds()) == {"search"}


def test_what_is_noted_next_never_goes_on_a_line_cut_short(tmp_path):
    run = RunDirectory.open(tmp_path / "run", Recipe(), resume=False)
    with run.stage("one\u2028two"):
        pass
    run.close()
    with open(tmp_path / "run" / "events.jsonl", "a") as file:
        file.write('{"stage": "cut sho')
    again = RunDirectory.open(tmp_path / "run", Recipe(), resume=True)
    with again.stage("three"):
        pass
    assert set(again.seconds()) == {"one\u2028two", "three"}
