"""The doctor: true facts of this machine, of machines described in files, and fitting warnings."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hwnas.doctor import (
    Cpu,
    Diagnosis,
    Noise,
    Runtime,
    cgroup_quota,
    examine,
    examine_cpu,
    judge,
    measure_noise,
    render,
)

CPU = Cpu(
    model="Some CPU @ 2 GHz",
    logical=8,
    physical=4,
    usable=4.0,
    quota=None,
    hyperthreads=False,
    flags=("avx2",),
    governor="performance",
    turbo=False,
)
CALM = Diagnosis(
    system="Linux 6.1 x86_64",
    python="3.12.1",
    cpu=CPU,
    memory_gb=16.0,
    memory_free_gb=12.0,
    runtimes=(Runtime(name="openvino", version="2026.0", devices=("CPU (Some CPU)",)),),
    torch_threads=4,
    load=0.1,
    throttled=0.0,
    noise=Noise(repeats=300, median_ms=2.0, spread=0.01, worst=1.1, steal=0.0),
    warnings=(),
)


@pytest.fixture(scope="module")
def here() -> Diagnosis:
    return examine()


def test_this_machine_is_described(here: Diagnosis) -> None:
    import torch

    names = [runtime.name for runtime in here.runtimes]
    assert names == ["openvino", "onnxruntime", "torch"]
    assert all(runtime.problem is None and runtime.devices for runtime in here.runtimes)
    assert any("CPU" in device for device in here.runtimes[0].devices)
    assert here.runtimes[2].version == torch.__version__
    assert 0 < here.cpu.usable <= here.cpu.logical == os.cpu_count()
    assert 0 < here.memory_free_gb <= here.memory_gb
    assert here.noise.repeats >= 20
    assert list(here.warnings) == list(judge(here))


def test_its_json_is_whole(here: Diagnosis) -> None:
    assert Diagnosis.model_validate_json(here.model_dump_json()) == here


def shown(diagnosis: Diagnosis, width: int = 120) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(render(diagnosis))
    return file.getvalue()


def test_the_terminal_shows_facts_and_warnings(here: Diagnosis) -> None:
    text = shown(here, width=1000)
    for fact in (here.system, here.cpu.model, "openvino", "onnxruntime", "torch", "timer noise"):
        assert fact in text
    for warning in here.warnings:
        assert f"! {warning}" in text


def test_a_calm_machine_has_no_warnings() -> None:
    assert list(judge(CALM)) == []
    text = shown(CALM)
    assert "Nothing found that would make measurements unreliable." in text
    assert "4 usable of 8, 4 physical" in text
    assert "governor performance, turbo off" in text


def test_names_are_not_markup() -> None:
    cpu = CPU.model_copy(update={"model": "[red]x[/oops]"})
    assert "[red]x[/oops]" in shown(CALM.model_copy(update={"cpu": cpu}))


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"runtimes": ()}, "no runtime works; install one: pip install openvino"),
        ({"load": 3.0}, "load average 3.0 on 4 cores: other programs are running; stop them"),
        ({"torch_threads": 64}, "torch takes 64 threads for 4 usable cores; set OMP_NUM_THREADS=4"),
        ({"throttled": 0.2}, "held this container back in 20% of its periods; raise its CPU limit"),
        ({"memory_free_gb": 0.5}, "0.5 GB of memory free; close programs"),
        ({"cpu": {"usable": 1.5}}, "1.5 cores to use: the measured program shares its core"),
        ({"cpu": {"hyperthreads": True}}, "may be hyper-threads of one; pin the measurement"),
        ({"cpu": {"governor": "powersave"}}, "governor powersave changes the clock"),
        ({"noise": {"steal": 0.05}}, "the host took 5% of this virtual machine's time"),
        ({"noise": {"spread": 0.3}}, "varies by 30%: read latencies as ratios"),
    ],
)
def test_each_trouble_is_named_with_its_remedy(changes: dict[str, Any], warning: str) -> None:
    values = {
        name: getattr(CALM, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    found = list(judge(CALM.model_copy(update=values)))
    assert any(warning in line for line in found), found
    assert all("\n" not in line for line in found)


def test_a_runtime_that_does_not_load() -> None:
    broken = Runtime(name="openvino", version="1", devices=(), problem="no libtbb")
    found = list(judge(CALM.model_copy(update={"runtimes": (broken,)})))
    assert "no runtime works" in found[0]
    assert "openvino is installed but does not load (no libtbb); reinstall it" in found[1]
    assert "no libtbb" in shown(CALM.model_copy(update={"runtimes": (broken,)}))


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


def test_a_processor_described_in_proc_and_sys(tmp_path: Path) -> None:
    first = min(os.sched_getaffinity(0))
    root = put(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 avx512_vnni\n"
            "\nprocessor\t: 1\nmodel name\t: other",
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/cpu.max": "50000 100000",
            f"sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list": "0,1",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0",
        },
    )
    cpu = examine_cpu(root)
    assert (cpu.model, cpu.flags) == ("Xeon", ("avx2", "avx512_vnni"))
    assert (cpu.quota, cpu.usable) == (0.5, 0.5)
    assert (cpu.governor, cpu.turbo) == ("powersave", True)


def test_hyperthreads_are_seen(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one core alone has no sibling")
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    put(tmp_path, {topology.format(i): "0-1" for i in allowed})
    assert examine_cpu(tmp_path).hyperthreads
    put(tmp_path, {topology.format(i): str(i) for i in allowed})
    assert not examine_cpu(tmp_path).hyperthreads


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    cpu = examine_cpu(tmp_path)
    assert cpu.model
    assert (cpu.quota, cpu.governor, cpu.turbo, cpu.flags) == (None, None, None, ())
    noise = measure_noise(0.0, tmp_path)
    assert noise.repeats == 20 and noise.steal == 0.0
    assert noise.median_ms > 0 and noise.spread >= 0 and noise.worst >= 1


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        (  # the tightest of a group and those above it
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "100000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            },
            1.0,
        ),
        (  # version 1
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/job",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (  # in a container, the path is the host's
            {"proc/self/cgroup": "0::/host/path", "sys/fs/cgroup/cpu.max": "50000 100000"},
            0.5,
        ),
    ],
)
def test_quotas_of_cgroups(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    assert cgroup_quota(put(tmp_path, files)) == quota
