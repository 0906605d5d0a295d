"""Evaluation in several processes: the same archive whoever evaluates, and however many die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_front import PROBLEM, error

from hwnas.errors import HwnasError
from hwnas.search.front import search_front
from hwnas.search.guided import Guided, starts
from hwnas.search.workers import Cluster, Evaluate, Processes, Workers
from hwnas.subnetwork import Subnetwork


@dataclass(frozen=True)
class Plain:
    """Makes what evaluates a structure in a worker."""

    def __call__(self) -> Evaluate:
        return error


@dataclass(frozen=True)
class Dying:
    """The first worker that gets a certain structure dies of it; with `always`, each."""

    folder: Path
    victim: Subnetwork
    always: bool = False

    def __call__(self) -> Evaluate:
        def evaluate(subnetwork: Subnetwork) -> float:
            if subnetwork == self.victim:
                died = self.folder / "died"
                if self.always or not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return error(subnetwork)

        return evaluate


@dataclass(frozen=True)
class Straggling:
    """The first worker that gets the whole model never ends; all others are quick."""

    folder: Path

    def __call__(self) -> Evaluate:
        def evaluate(subnetwork: Subnetwork) -> float:
            stuck = self.folder / "stuck"
            if subnetwork == PROBLEM.space.largest and not stuck.exists():
                stuck.touch()
                time.sleep(20)
            return error(subnetwork)

        return evaluate


@dataclass(frozen=True)
class Failing:
    def __call__(self) -> Evaluate:
        def evaluate(subnetwork: Subnetwork) -> float:
            raise ValueError(f"cannot evaluate {subnetwork}")

        return evaluate


def archive(workers: Workers) -> list[tuple[Subnetwork, float]]:
    found = search_front(PROBLEM, Guided(PROBLEM, 30, seed=1), workers, 30)
    return [(c.subnetwork, c.signal) for c in found]


ALONE = [
    (c.subnetwork, c.signal)
    for c in search_front(
        PROBLEM, Guided(PROBLEM, 30, seed=1), lambda all_: [error(s) for s in all_], 30
    )
]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_archive_is_the_same_with_any_number_of_workers(number: int) -> None:
    with Workers(Processes(Plain(), number)) as workers:
        assert archive(workers) == ALONE


def test_the_archive_is_the_same_when_a_worker_is_killed(tmp_path: Path) -> None:
    with Workers(Processes(Dying(tmp_path, ALONE[12][0]), 2)) as workers:
        assert archive(workers) == ALONE
    assert (tmp_path / "died").exists()


def test_a_structure_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    with (
        Workers(Processes(Dying(tmp_path, ALONE[12][0], always=True), 2)) as workers,
        pytest.raises(HwnasError, match=r"the workers that evaluated .* died 3 times; is there"),
    ):
        archive(workers)


@dataclass(frozen=True)
class Telling:
    """Notes the worker's process."""

    file: Path

    def __call__(self) -> Evaluate:
        def evaluate(subnetwork: Subnetwork) -> float:
            self.file.write_text(str(os.getpid()))
            return error(subnetwork)

        return evaluate


def _killed_while_searching(file: Path) -> None:
    with Workers(Processes(Telling(file), 1)) as workers:
        workers([PROBLEM.space.largest])
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_who_asked(tmp_path: Path) -> None:
    import psutil

    process = multiprocessing.get_context("spawn").Process(
        target=_killed_while_searching, args=(tmp_path / "pid",)
    )
    process.start()
    process.join()
    worker = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not psutil.pid_exists(worker):
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {worker} is still there")


def test_a_straggler_does_not_hold_up_the_search(tmp_path: Path) -> None:
    with Workers(Processes(Straggling(tmp_path), 2)) as workers:
        begin = time.perf_counter()
        found = workers([PROBLEM.space.largest, *starts(PROBLEM, 6)])
        took = time.perf_counter() - begin
        assert (tmp_path / "stuck").exists()
        assert found == [error(s) for s in (PROBLEM.space.largest, *starts(PROBLEM, 6))]
        assert took < 20  # which the straggler alone would have taken


def test_a_script_whose_workers_cannot_import_it_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from hwnas.search.workers import Processes, Workers\n"
        "from hwnas.subnetwork import Subnetwork\n"
        "def make(): return lambda subnetwork: 0.0\n"
        "Workers(Processes(make, 1))([Subnetwork.of([[1, 32]])])\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ended.returncode == 1
    said = ended.stderr.splitlines()[-1]
    assert "none lived long enough" in said and '`if __name__ == "__main__":`' in said


def test_what_evaluating_raises_reaches_the_caller() -> None:
    with (
        Workers(Processes(Failing(), 2)) as workers,
        pytest.raises(ValueError, match="cannot evaluate"),
    ):
        archive(workers)


@pytest.mark.slow  # starting Ray takes most of a minute
def test_the_archive_is_the_same_on_a_ray_cluster_where_a_worker_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="a cluster needs Ray")
    with pytest.raises(HwnasError, match=r"cannot start .*No module named .*are hwnas and the run"):
        Cluster(Plain(), 2, address="local")
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    with Workers(Cluster(Dying(tmp_path, ALONE[12][0]), 2, address="local")) as workers:
        assert archive(workers) == ALONE
    assert (tmp_path / "died").exists()
