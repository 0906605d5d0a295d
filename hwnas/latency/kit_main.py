"""What a kit runs: `python kit.zip --out result.json [--minutes 5]`, with numpy and OpenVINO only.

Beside this file in the zip are the modules of hwnas that measure, the plan of networks and the
exported graph.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def main() -> int:
    """Measure this device; the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("result.json"), help="the result")
    parser.add_argument("--minutes", type=float, default=None, help="of measuring, at most")
    args = parser.parse_args()
    kit = Path(sys.argv[0]).resolve()
    if not zipfile.is_zipfile(kit):
        print("hwnas kit: run the zip file itself: python kit.zip", file=sys.stderr)
        return 2
    from hwnas.telemetry import hide

    hide()
    try:
        import numpy  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        print(f"hwnas kit: {error}; pip install numpy openvino", file=sys.stderr)
        return 2
    from hwnas.errors import HwnasError

    if args.out.is_dir():
        print(f"hwnas kit: --out {args.out}: is a folder; name a file", file=sys.stderr)
        return 2
    partial = args.out.with_name(f".{args.out.name}.partial-{os.getpid()}")
    try:  # before measuring takes its minutes
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        print(f"hwnas kit: --out {args.out}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        partial.write_text(json.dumps(_measure(kit, args.minutes)), encoding="utf-8")
        partial.replace(args.out)
    except HwnasError as error:
        print(f"hwnas kit: {error}", file=sys.stderr)
        return 2
    finally:
        partial.unlink(missing_ok=True)
    print(f"{args.out}: bring it back, and run: hwnas tables import {args.out.name} --out TABLE")
    return 0


def _measure(kit: Path, minutes: float | None) -> dict[str, Any]:
    from hwnas.latency.device import describe, versions_of
    from hwnas.latency.openvino_graphs import OpenVinoTemplate
    from hwnas.latency.plan import Plan
    from hwnas.latency.runtimes import openvino_core, openvino_inferences
    from hwnas.latency.session import run
    from hwnas.latency.target import Target

    with zipfile.ZipFile(kit) as archive, tempfile.TemporaryDirectory() as folder:
        job = json.loads(archive.read("job.json"))
        stored = json.loads(archive.read("template.json"))
        for name in ("graph.xml", "graph.bin"):
            archive.extract(name, folder)
        core = openvino_core()
        core.set_property({"ENABLE_MMAP": False})  # the folder goes away
        graph = core.read_model(Path(folder) / "graph.xml")
    template = OpenVinoTemplate.from_json(graph, stored)
    target, plan = Target.parse(job["target"]), Plan.from_json(job["plan"])

    def build(subnetwork: Any, compilations: int) -> Any:
        graph = template.resized(subnetwork)
        return [openvino_inferences(graph, target, job["vocab"]) for _ in range(compilations)]

    session = run(plan, build, target, _bar, minutes)
    return {
        "format": job["format"],
        "job": job,
        "machine": {
            "device": describe(),
            "versions": versions_of(("openvino", "numpy")),
            "warnings": _load_warning(),
        },
        "seconds": session.seconds,
        "fitted": [m.to_json() for m in session.fitted],
        "unseen": [[first.to_json(), second.to_json()] for first, second in session.unseen],
    }


def _load_warning() -> list[str]:
    """Whether other programs ran: more than this one was busy in the last minute."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return [f"load average {load:.1f} at the end of measuring"] if load > 1.5 else []


@contextmanager
def _bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Prints the share done and the time left, in one line that is written over."""
    begin, done = time.perf_counter(), 0.0

    def advance(amount: float) -> None:
        nonlocal done
        done += amount
        took = time.perf_counter() - begin
        left = took / done * (total - done) if done else 0.0
        end = "\n" if done >= total else ""
        print(
            f"\r{what}: {done / total:4.0%}, {left:4.0f} s left ",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    yield advance


if __name__ == "__main__":
    sys.exit(main())
