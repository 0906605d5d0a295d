"""This machine, as far as it decides how fast a network runs: the label of a latency table.

From Linux's /proc and /sys where they are readable; elsewhere from what Python knows. Needs only
the standard library, for it travels in profiling kits.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

# instructions that the runtimes' fast kernels need (int8: VNNI, AMX), as /proc/cpuinfo names them
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "amx_tile",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
BF16 = frozenset({"avx512_bf16", "amx_bf16"})  # those of them that multiply in bf16
_ROOT = Path("/")


def describe(root: Path = _ROOT) -> dict[str, Any]:
    """The fields of a table's `Device`."""
    return {
        "cpu": cpu_model(root),
        "flags": cpu_flags(root),
        "cores": os.cpu_count() or 1,
        "governor": governor(root),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those of the packages that are installed under this name."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # or another build of it, such as a -gpu one
            continue
    return found


def cpu_model(root: Path = _ROOT) -> str:
    """The processor's name."""
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def cpu_flags(root: Path = _ROOT) -> tuple[str, ...]:
    """Those of `FLAGS` that the processor has."""
    info = _cpuinfo(root)
    present = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(flag for flag in FLAGS if flag in present)


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def governor(root: Path = _ROOT) -> str | None:
    """Who sets the clock of the first processor."""
    return read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def read(path: Path) -> str | None:
    """The text of a small system file, stripped; None if it is not there or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _cpuinfo(root: Path) -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo."""
    first = (read(root / "proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory_gb() -> float:
    if not hasattr(os, "sysconf"):
        import psutil

        return round(float(psutil.virtual_memory().total) / 2**30, 1)
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
