"""What this machine can do, and what would make its measurements unreliable.

Facts come from Linux's /proc and /sys where they are readable (elsewhere they are left out), the
runtimes' own lists of devices, and a second of timing one fixed small computation again and again:
its spread is the noise that any measurement here has to live with.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwnas.latency.device import cpu_flags, cpu_model, governor, read

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROOT = Path("/")
_SECONDS = 1.0  # of timing


class Facts(BaseModel):
    """Base of what is found: fixed once made, no fields but the known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cpu(Facts):
    """The processor, and how much of it this process may use."""

    model: str
    logical: int  # cores of the machine, counting hyper-threads
    physical: int | None
    usable: float  # cores for this process: its affinity, and the cgroup's quota
    quota: float | None  # cores' worth of time that the cgroup allows
    hyperthreads: bool  # two of the usable cores may be one
    flags: tuple[str, ...]  # of those that matter
    governor: str | None
    turbo: bool | None


class Runtime(Facts):
    """A runtime that is installed, and the devices that it sees."""

    name: str
    version: str
    devices: tuple[str, ...]
    problem: str | None = None  # it is installed but does not load


class Noise(Facts):
    """The times of one fixed computation, repeated."""

    repeats: int
    median_ms: float
    spread: float  # (p90 - p10) / median
    worst: float  # slowest / median
    steal: float  # share of the machine's time that its host took away meanwhile


class Diagnosis(Facts):
    """Everything that `hwnas doctor` says."""

    system: str
    python: str
    cpu: Cpu
    memory_gb: float
    memory_free_gb: float
    runtimes: tuple[Runtime, ...]
    torch_threads: int | None  # threads that torch takes unless told
    load: float | None  # average of the last minute, before the timing
    throttled: float  # share of the cgroup's periods in which it was held back, since its start
    noise: Noise
    warnings: tuple[str, ...]  # what makes measurements unreliable, and what to do


def examine() -> Diagnosis:
    """Look at this machine; takes a few seconds, most of them to load the runtimes."""
    import psutil

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    noise = measure_noise(_SECONDS)  # before torch and its threads are loaded
    memory = psutil.virtual_memory()
    runtimes = tuple(r for r in (_openvino(), _onnxruntime(), _torch()) if r is not None)
    diagnosis = Diagnosis(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpu=examine_cpu(),
        memory_gb=memory.total / 2**30,
        memory_free_gb=memory.available / 2**30,
        runtimes=runtimes,
        torch_threads=_torch_threads(runtimes),
        load=load,
        throttled=_throttled(_ROOT),
        noise=noise,
        warnings=(),
    )
    return diagnosis.model_copy(update={"warnings": tuple(judge(diagnosis))})


def judge(diagnosis: Diagnosis) -> Iterable[str]:
    """What would make measurements unreliable, each with what to do about it."""
    cpu, noise = diagnosis.cpu, diagnosis.noise
    if not diagnosis.runtimes or all(r.problem for r in diagnosis.runtimes):
        yield "no runtime works; install one: pip install openvino"
    for runtime in diagnosis.runtimes:
        if runtime.problem:
            yield f"{runtime.name} is installed but does not load ({runtime.problem}); reinstall it"
    if diagnosis.load is not None and diagnosis.load > max(0.5, 0.25 * cpu.usable):
        yield (
            f"load average {diagnosis.load:.1f} on {cpu.usable:g} cores: other programs are "
            "running; stop them while measuring"
        )
    if cpu.usable < 2:
        yield (
            f"{cpu.usable:g} cores to use: the measured program shares its core with everything "
            "else; give this machine or container two"
        )
    if diagnosis.torch_threads is not None and diagnosis.torch_threads > cpu.usable:
        yield (
            f"torch takes {diagnosis.torch_threads} threads for {cpu.usable:g} usable cores; "
            f"set OMP_NUM_THREADS={max(1, int(cpu.usable))}"
        )
    if cpu.hyperthreads:
        yield (
            "two usable cores may be hyper-threads of one; pin the measurement to one a core "
            "(taskset), or measure with threads=1"
        )
    if cpu.governor in ("powersave", "ondemand", "conservative", "schedutil"):
        yield (
            f"frequency governor {cpu.governor} changes the clock while measuring; "
            "cpupower frequency-set -g performance (as root)"
        )
    if diagnosis.throttled > 0.01:
        yield (
            f"the cgroup's quota held this container back in {diagnosis.throttled:.0%} of its "
            "periods; raise its CPU limit or use fewer threads"
        )
    if noise.steal > 0.01:
        yield (
            f"the host took {noise.steal:.0%} of this virtual machine's time; "
            "measure on one that is not shared"
        )
    if noise.spread > 0.05:
        yield (
            f"one fixed computation varies by {noise.spread:.0%}: read latencies as ratios to a "
            "baseline measured in turn with it, as hwnas does, not as absolute times"
        )
    if diagnosis.memory_free_gb < 2:
        yield (
            f"{diagnosis.memory_free_gb:.1f} GB of memory free; close programs, "
            "or swapping will be measured"
        )


def examine_cpu(root: Path = _ROOT) -> Cpu:
    """The processor by /proc and /sys under `root`, and this process's share of it."""
    import psutil

    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    logical = os.cpu_count() or 1
    quota = cgroup_quota(root)
    siblings = {
        read(root / f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list") or str(i)
        for i in allowed
    }
    usable = float(len(allowed) or logical)
    return Cpu(
        model=cpu_model(root),
        logical=logical,
        physical=psutil.cpu_count(logical=False),
        usable=min(usable, quota) if quota else usable,
        quota=quota,
        hyperthreads=0 < len(siblings) < len(allowed),
        flags=cpu_flags(root),
        governor=governor(root),
        turbo=_turbo(root),
    )


def _turbo(root: Path) -> bool | None:
    off = read(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    if off is not None:
        return off == "0"
    boost = read(root / "sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def cgroup_quota(root: Path = _ROOT) -> float | None:
    """Cores' worth of time that the cgroup (version 2 or 1) allows; None if it sets no limit.

    The tightest of this process's cgroup and those above it counts.
    """
    quotas = []
    for folder in _cgroups(root):
        limit = read(folder / "cpu.max")  # version 2: "200000 100000" or "max 100000"
        if limit is None:
            quota = read(folder / "cpu.cfs_quota_us")
            period = read(folder / "cpu.cfs_period_us")
            limit = f"{quota} {period}" if quota and period else ""
        numbers = limit.split()
        if len(numbers) == 2 and numbers[0].isdigit() and int(numbers[0]) > 0:
            quotas.append(int(numbers[0]) / int(numbers[1]))
    return min(quotas, default=None)


def _cgroups(root: Path) -> list[Path]:
    """This process's folders in the cgroup trees that may limit CPU time, and those above them."""
    folders: list[Path] = []
    for line in (read(root / "proc/self/cgroup") or "0::/").splitlines():
        number, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if number != "0" and "cpu" not in names:
            continue
        base = root / "sys/fs/cgroup" / ("" if number == "0" else "cpu")
        inner = base / path.lstrip("/")
        # in a container the path may be the host's, which does not exist here; its root then does
        folders += [f for f in (inner, *inner.parents) if f.is_relative_to(base) and f.is_dir()]
    return folders


def _throttled(root: Path) -> float:
    """Share of the periods in which the quota held this process's cgroup back."""
    for folder in _cgroups(root):
        pairs = (line.split() for line in (read(folder / "cpu.stat") or "").splitlines())
        counts = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
        if counts.get("nr_periods"):
            return counts.get("nr_throttled", 0) / counts["nr_periods"]
    return 0.0


def measure_noise(seconds: float, root: Path = _ROOT) -> Noise:
    """Time one fixed computation of a few milliseconds again and again for `seconds`."""
    values = np.linspace(0.1, 1.0, 20_000)

    def work() -> float:
        total = 0.0
        for i in range(20_000):
            total += i * 0.5
        return total + float(np.exp(np.sin(values)).sum())

    for _ in range(5):
        work()
    before = _ticks(root)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 20:
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    after = _ticks(root)
    total = after[0] - before[0]
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return Noise(
        repeats=len(times),
        median_ms=float(median),
        spread=float((p90 - p10) / median),
        worst=float(max(times) / median),
        steal=(after[1] - before[1]) / total if total > 0 else 0.0,
    )


def _ticks(root: Path) -> tuple[int, int]:
    """All the clock ticks of the machine so far, and those that its host stole (/proc/stat)."""
    first = (read(root / "proc/stat") or "").partition("\n")[0].split()[1:9]
    ticks = [int(number) for number in first]
    return sum(ticks), ticks[7] if len(ticks) > 7 else 0


def _openvino() -> Runtime | None:
    try:
        from hwnas.latency.runtimes import openvino_core

        core = openvino_core()
        names = (
            f"{d} ({core.get_property(d, 'FULL_DEVICE_NAME')})" for d in core.available_devices
        )
        return Runtime(name="openvino", version=_version("openvino"), devices=tuple(names))
    except ModuleNotFoundError:
        return None
    # a broken runtime is a finding of the doctor's, whatever it raises
    except Exception as error:
        return _broken("openvino", error)


def _onnxruntime() -> Runtime | None:
    try:
        import onnxruntime

        providers = tuple(onnxruntime.get_available_providers())
        return Runtime(name="onnxruntime", version=_version("onnxruntime"), devices=providers)
    except ModuleNotFoundError:
        return None
    except Exception as error:
        return _broken("onnxruntime", error)


def _torch() -> Runtime | None:
    try:
        import torch

        gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        devices = ("cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in gpus))
        return Runtime(name="torch", version=torch.__version__, devices=devices)
    except ModuleNotFoundError:
        return None
    except Exception as error:
        return _broken("torch", error)


def _broken(name: str, error: Exception) -> Runtime:
    problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Runtime(name=name, version=_version(name), devices=(), problem=problem)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # another distribution of it, such as onnxruntime-gpu
        return "unknown"


def _torch_threads(runtimes: Iterable[Runtime]) -> int | None:
    if not any(r.name == "torch" and not r.problem for r in runtimes):
        return None
    import torch

    return torch.get_num_threads()


def render(diagnosis: Diagnosis) -> RenderableType:
    """The diagnosis for a terminal: a table of facts, then the warnings."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    cpu, noise = diagnosis.cpu, diagnosis.noise
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, value: str) -> None:
        table.add_row(name, escape(value))

    row("system", f"{diagnosis.system}, Python {diagnosis.python}")
    row("processor", cpu.model)
    physical = f", {cpu.physical} physical" if cpu.physical else ""
    quota = f", cgroup quota {cpu.quota:g}" if cpu.quota else ""
    row("cores", f"{cpu.usable:g} usable of {cpu.logical}{physical}{quota}")
    row("instructions", " ".join(cpu.flags) or "none of those that fast kernels need")
    turbo = {True: "on", False: "off", None: "unknown"}[cpu.turbo]
    row("clock", f"governor {cpu.governor or 'unknown'}, turbo {turbo}")
    row("memory", f"{diagnosis.memory_free_gb:.1f} of {diagnosis.memory_gb:.1f} GB free")
    for runtime in diagnosis.runtimes:
        found = runtime.problem or ", ".join(runtime.devices) or "no devices"
        row(runtime.name, f"{runtime.version}: {found}")
    if diagnosis.load is not None:
        row("load average", f"{diagnosis.load:.2f}")
    row(
        "timer noise",
        f"spread {noise.spread:.1%}, worst {noise.worst:.2f} times the median of "
        f"{noise.median_ms:.2f} ms, {noise.repeats} repeats; stolen {noise.steal:.1%}",
    )
    lines = [Text(f"! {warning}", style="yellow") for warning in diagnosis.warnings]
    calm = Text("Nothing found that would make measurements unreliable.", style="green")
    return Group(table, Text(), *(lines or [calm]))
