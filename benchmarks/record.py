"""What benchmarks share: options, runs, a result file that grows row by row, what it comes to.

`python benchmarks/NAME.py [--quick] [--json OUT.json]`. A row is written as soon as it is measured;
started again with the same file, a benchmark goes on with the rows that are missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hwnas.doctor import examine
from hwnas.files import read_json, write_json
from hwnas.latency.device import cpu_model
from hwnas.recipe import Recipe

_PACKAGES = ("torch", "transformers", "optimum", "onnxruntime", "openvino")
ROOT = Path(__file__).resolve().parent.parent


def options(
    name: str,
    description: str | None,
    more: Callable[[argparse.ArgumentParser], object] = lambda _: None,
) -> argparse.Namespace:
    """The command line of the benchmark `name`; `more` adds what only this one has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="five minutes, honest about being small"
    )
    default = ROOT / "benchmarks" / "results" / f"{name}.json"
    parser.add_argument("--json", type=Path, help=f"result file, e.g. {default.relative_to(ROOT)}")
    more(parser)
    return parser.parse_args()


def commit() -> str:
    """The commit that is measured, marked if the tree, apart from results, has changes."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return answer.stdout.strip()

    changes = git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"
    )
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changes else "")


def spread(values: Sequence[float], digits: int = 2) -> float | None:
    """The standard deviation; None of one value."""
    return round(statistics.stdev(values), digits) if len(values) > 1 else None


def rank(by_seed: Mapping[str, Mapping[int, float]], mine: str) -> int | None:
    """The place of one way among those that share a seed with it; the highest mean is the first.

    Over the seeds that all of them have; None where there are none, or no other way.

    Args:
        by_seed: of each way, its score with each seed.
    """
    own = by_seed.get(mine, {}).keys()
    beside = {way: scores for way, scores in by_seed.items() if scores.keys() & own}
    seeds = set.intersection(*map(set, beside.values())) if beside else set()
    if len(beside) < 2 or not seeds:
        return None
    means = {way: statistics.mean(scores[s] for s in seeds) for way, scores in beside.items()}
    return sorted(means, key=lambda way: -means[way]).index(mine) + 1


def largest_resident() -> float:
    """Of this program, MiB; `getrusage` counts what started it too."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def made(run: Path, recipe: Recipe, *more: object, command: str = "run") -> None:
    """Have hwnas make a run in a process of its own, or go on with it.

    Args:
        more: of the command line.
    """
    path = run.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe.save(path)
    words = [sys.executable, "-m", "hwnas", command, path, "--out", run, "--resume", *more]
    ended = subprocess.run([*map(str, words)], check=False, stdout=subprocess.DEVNULL).returncode
    if ended not in (0, 3):  # a missed budget is a result: the row says so
        raise SystemExit(ended)


class Results:
    """Rows by their key, kept in `path` if there is one."""

    def __init__(self, name: str, quick: bool, protocol: str, path: Path | None) -> None:
        self.name, self.quick, self.protocol, self.path = name, quick, protocol, path
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            stored = read_json(path)
            if stored["quick"] == quick and stored["protocol"] == protocol:
                self.rows = stored["rows"]

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The row `key`, if it was measured before."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def row(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row `key`: read if it was measured before, else measured and written."""
        if (found := self.find(key)) is not None:
            return found
        row = key | measure() | {"commit": commit(), "cpu": cpu_model()}
        self.rows.append(row)
        self._write({})
        print(json.dumps(row), flush=True)
        return row

    def forget(self, key: dict[str, Any]) -> None:
        """Take the row `key` out, if there is one, so that it is measured again."""
        self.rows = [row for row in self.rows if not key.items() <= row.items()]

    def finish(self, headline: dict[str, Any]) -> None:
        """Write and print the headline."""
        self._write(headline)
        print(json.dumps({"headline": headline}, indent=1))

    def _write(self, headline: dict[str, Any]) -> None:
        if self.path is None:
            return
        diagnosis = examine()
        write_json(
            self.path,
            {
                "name": self.name,
                "quick": self.quick,
                "command": " ".join(["python", *sys.argv]),
                "machine": diagnosis.model_dump(mode="json"),
                "versions": {package: version(package) for package in _PACKAGES},
                "protocol": self.protocol,
                "rows": self.rows,
                "headline": headline,
            },
        )
