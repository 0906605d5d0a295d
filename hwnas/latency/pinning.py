"""Keeping this process, while it measures, on as many processors as the target has threads.

The system then moves no thread to another processor, where its caches are cold.

OpenVINO notes which processors the process has when it is first used, and keeps to them for good.
Used first by a pinned process, it would have later networks of two threads share one processor (on
two processors they were as slow as with one thread). So it looks around before the process is
pinned. It also notes where the calling thread was when it first computed, and brings it back there
after every inference, of other models too; so what is compiled meanwhile pins nothing itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hwnas.latency.runtimes import openvino_core
from hwnas.latency.target import Target


@contextmanager
def pinned(target: Target) -> Iterator[None]:
    """Keep this process on as many processors as the target has threads, the least busy ones.

    Nothing happens where the system does not let it, or where there are no more processors. Threads
    that are made meanwhile, such as a runtime's pool, would stay pinned for as long as they live;
    they too are let go at the end.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    if target.threads >= len(allowed):
        yield
        return
    if target.runtime == "openvino":
        _ = openvino_core().available_devices  # notes the processors; see the module
    before = _busy()
    time.sleep(0.2)
    after = _busy()
    busy = {cpu: after.get(cpu, 0) - before.get(cpu, 0) for cpu in allowed}
    os.sched_setaffinity(0, sorted(allowed, key=lambda cpu: (busy[cpu], -cpu))[: target.threads])
    try:
        yield
    finally:
        for thread in _threads():
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(thread, allowed)


def _threads() -> list[int]:
    """This process's threads as the system numbers them; 0, the calling one, where it does not."""
    tasks = Path("/proc/self/task")
    return [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]


def _busy() -> dict[int, int]:
    """Clock ticks that each processor has worked, by /proc/stat; empty where there is none."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(field) for field in fields]
            found[int(name.removeprefix("cpu"))] = sum(ticks) - ticks[3] - ticks[4]  # idle, iowait
    return found
