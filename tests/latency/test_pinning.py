"""A measuring process keeps to as many processors as the target has threads, and no longer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from hwnas.latency.pinning import pinned
from hwnas.latency.target import Target

pytestmark = pytest.mark.alone  # processors are chosen by what others leave free

TWO_PROCESSORS = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="nothing to choose from: one processor, or a system that pins nothing",
)
# a process of its own, for OpenVINO notes the processors once
OPENVINO_WITH_ONE_THREAD_AND_THEN_TWO = """
import os
from transformers import BertConfig
from hwnas.anatomy import find_shape
from hwnas.latency.graphs import builder
from hwnas.latency.pinning import pinned
from hwnas.latency.plan import Plan
from hwnas.latency.session import Stopwatch
from hwnas.latency.target import Target

allowed = set(sorted(os.sched_getaffinity(0))[:2])
os.sched_setaffinity(0, allowed)
sizes = {"hidden_size": 64, "intermediate_size": 64}
config = BertConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
plan = Plan.of(find_shape(config))
for threads in (1, 2):
    target = Target.parse(f"openvino:cpu:threads={threads},seq=32")
    with pinned(target):
        stopwatch = Stopwatch(builder(config, target), target, plan.reference)
        assert stopwatch.time(plan.full, 3).points[0].ms > 0
        assert len(os.sched_getaffinity(0)) == threads, threads
    assert os.sched_getaffinity(0) == allowed, threads
    # nor does it bring this process back to them with what is timed later
    del stopwatch
    stopwatch = Stopwatch(builder(config, target), target, plan.reference)
    assert stopwatch.time(plan.full, 3).points[0].ms > 0
    assert os.sched_getaffinity(0) == allowed, threads
"""


@TWO_PROCESSORS
def test_pinned_to_as_many_processors_as_compute() -> None:
    allowed = os.sched_getaffinity(0)
    release, made = threading.Event(), threading.Event()

    def live() -> None:
        made.set()
        release.wait()

    with pinned(Target(threads=1)):
        assert len(os.sched_getaffinity(0)) == 1
        thread = threading.Thread(target=live)
        thread.start()
        made.wait()
        assert len(os.sched_getaffinity(thread.native_id or 0)) == 1
    assert os.sched_getaffinity(0) == allowed
    assert os.sched_getaffinity(thread.native_id or 0) == allowed
    release.set()
    thread.join()
    with pinned(Target(threads=len(allowed))):
        assert os.sched_getaffinity(0) == allowed


@TWO_PROCESSORS
def test_openvino_is_not_left_on_the_processors_of_an_earlier_measurement() -> None:
    script = [sys.executable, "-c", OPENVINO_WITH_ONE_THREAD_AND_THEN_TWO]
    ended = subprocess.run(script, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
