"""Evaluating structures in several processes, of this machine or of a Ray cluster.

Each worker loads what it needs once. A structure's signal is the same whoever evaluates it (every
worker computes with one thread), and results are handed back in the order of the structures, so an
archive does not depend on how many workers there are. What a lost worker was at is evaluated again
by another; what takes far longer than the others is given to an idle worker as well, and whoever
is first counts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from hwnas.errors import HwnasError
from hwnas.subnetwork import Subnetwork

# the quality signal of one structure; made once in each worker by a `Maker`, which must pickle
Evaluate = Callable[[Subnetwork], float]
Maker = Callable[[], Evaluate]

_ATTEMPTS = 3  # at a structure, whose workers die
_SLOW = 4.0  # times the median time, after which a structure is given to an idle worker as well
_LOOK = 0.5  # seconds between two looks at who is slow


class Backend(Protocol):
    """Where structures are evaluated."""

    workers: int

    def submit(self, subnetwork: Subnetwork) -> Future[float]:
        """Start evaluating one."""

    def recover(self) -> None:
        """Replace lost workers."""

    def close(self) -> None:
        """Stop all of them."""


@dataclass
class _Attempts:
    """One structure's evaluations under way."""

    begun: float
    running: list[Future[float]] = field(default_factory=list)
    lost: int = 0


class Workers:
    """`EvaluateAll` by a backend's workers."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seconds: list[float] = []  # that evaluations took

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.backend.close()

    def __call__(self, subnetworks: Sequence[Subnetwork]) -> list[float]:
        """The signals of these, in their order.

        Raises:
            HwnasError: a structure's workers died again and again.
            Exception: whatever evaluating raised, where it did.
        """
        waiting = list(range(len(subnetworks)))[::-1]
        under_way: dict[int, _Attempts] = {}
        lost: dict[int, int] = {}
        found: dict[int, float] = {}
        while len(found) < len(subnetworks):
            busy = sum(len(a.running) for a in under_way.values())
            broken = False
            try:
                while waiting and busy < self.backend.workers:
                    at = waiting.pop()
                    under_way[at] = _Attempts(time.perf_counter(), lost=lost.get(at, 0))
                    self._start(under_way[at], subnetworks[at])
                    busy += 1
                if busy < self.backend.workers:
                    self._help_the_slowest(under_way, subnetworks)
            except BrokenExecutor:  # a worker died before it was given anything more
                broken = True
            running = [f for a in under_way.values() for f in a.running]
            done, _ = wait(running, timeout=_LOOK, return_when=FIRST_COMPLETED)
            for at, attempts in list(under_way.items()):
                for future in [f for f in attempts.running if f in done]:
                    attempts.running.remove(future)
                    if at in found:
                        continue
                    try:
                        found[at] = future.result()
                        self.seconds.append(time.perf_counter() - attempts.begun)
                    except BrokenExecutor:
                        broken = True
                if at in found:
                    del under_way[at]
            if broken:
                # all that ran there is lost; who was at fault is not known, so each counts it
                for at, attempts in under_way.items():
                    lost[at] = attempts.lost + 1
                    if lost[at] >= _ATTEMPTS:
                        raise HwnasError(self._why_lost(subnetworks[at]))
                    waiting.append(at)
                under_way.clear()
                self.backend.recover()
        return [found[at] for at in range(len(subnetworks))]

    def _why_lost(self, subnetwork: Subnetwork) -> str:
        number = self.backend.workers
        if not self.seconds:  # nothing was ever evaluated
            return (
                f"search: of {number} workers none lived long enough to evaluate anything, in "
                f"{_ATTEMPTS} attempts; is there memory for so many? A script that searches needs "
                'its work under `if __name__ == "__main__":`, since each worker imports it'
            )
        return (
            f"search: the workers that evaluated {subnetwork} died {_ATTEMPTS} times; is there "
            f"memory enough for {number} workers?"
        )

    def _start(self, attempts: _Attempts, subnetwork: Subnetwork) -> None:
        attempts.running.append(self.backend.submit(subnetwork))

    def _help_the_slowest(
        self, under_way: dict[int, _Attempts], subnetworks: Sequence[Subnetwork]
    ) -> None:
        """Give an idle worker what has taken far too long, unless two are at it."""
        if not self.seconds:
            return
        patience = _SLOW * statistics.median(self.seconds)
        alone = [at for at, a in under_way.items() if len(a.running) == 1]
        slowest = min(alone, key=lambda at: under_way[at].begun, default=None)
        if slowest is not None and time.perf_counter() - under_way[slowest].begun > patience:
            self._start(under_way[slowest], subnetworks[slowest])


class Processes:
    """Workers in processes of this machine; each computes with one thread."""

    def __init__(self, make: Maker, workers: int) -> None:
        self.make = make
        self.workers = workers
        self.others = {process.pid for process in multiprocessing.active_children()}
        self.pool = self._pool()

    def _pool(self) -> ProcessPoolExecutor:
        # spawned, since a forked process may wait for a lock that a thread of ours held
        return ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self.make,),
        )

    def submit(self, subnetwork: Subnetwork) -> Future[float]:
        return self.pool.submit(_evaluate, subnetwork)

    def recover(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self._pool()

    def close(self) -> None:
        for process in multiprocessing.active_children():
            if process.pid not in self.others:
                process.terminate()  # a straggler is not waited for
        self.pool.shutdown(wait=True, cancel_futures=True)


_evaluator: Evaluate | None = None  # of this worker process


def _begin(make: Maker) -> None:
    global _evaluator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asked, not for us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _one_thread()
    _evaluator = make()


def _end_with_parent() -> None:
    """A worker waits for its next structure for ever, also of a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _evaluate(subnetwork: Subnetwork) -> float:
    assert _evaluator is not None
    return _evaluator(subnetwork)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


class Cluster:
    """Workers as actors of a Ray cluster, which starts lost ones again by itself.

    Raises:
        HwnasError: no worker can start there.
    """

    def __init__(self, make: Maker, workers: int, address: str) -> None:
        ray = _ray()
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        self.workers = workers

        class Actor:
            def __init__(self, make: Maker) -> None:
                _one_thread()
                self.evaluate_one = make()

            def ready(self) -> None:
                """Answers as soon as the worker has started."""

            def evaluate(self, subnetwork: Subnetwork) -> float:
                return self.evaluate_one(subnetwork)

        remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_ATTEMPTS)(Actor)
        self.actors: list[Any] = [remote.remote(make) for _ in range(workers)]
        self.busy: dict[Future[float], Any] = {}
        started, _ = ray.wait([actor.ready.remote() for actor in self.actors], num_returns=1)
        try:
            ray.get(started)
        except ray.exceptions.RayError as error:
            why = [line for line in str(error).splitlines() if line.strip()][-1].strip()
            self.close()
            raise HwnasError(
                f"search: workers cannot start on the cluster ({why}); are hwnas and the run's "
                "folder there as they are here?"
            ) from None

    def submit(self, subnetwork: Subnetwork) -> Future[float]:
        self.busy = {future: actor for future, actor in self.busy.items() if not future.done()}
        loads = {id(actor): 0 for actor in self.actors}
        for actor in self.busy.values():
            loads[id(actor)] += 1
        idle = min(self.actors, key=lambda actor: loads[id(actor)])
        future: Future[float] = idle.evaluate.remote(subnetwork).future()
        self.busy[future] = idle
        return future

    def recover(self) -> None:
        pass

    def close(self) -> None:
        _ray().shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise HwnasError(
            "search: a cluster needs Ray; install it with pip install 'hwnas[cluster]'"
        ) from None
    return ray
