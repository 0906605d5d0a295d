"""The run directory: what a run has done, what it measured, and how it goes on after a stop.

Every stage's result is a file or folder written at once (`files.replacing`), so what exists is
whole and is not made again. `events.jsonl` says when stages began and ended. A measurement is an
input: `measurements.jsonl` keeps each one the moment it is made, and a resumed run reads it there
rather than measure again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError
from hwnas.files import write_text
from hwnas.processes import leading

if TYPE_CHECKING:
    from hwnas.recipe import Settings


class RunDirectory:
    """A folder that holds one run, locked while a process (with those it leads) works in it.

    Args:
        read_only: take no lock; nothing may then be appended or measured.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        if read_only:
            return
        self._lock = open(path / "events.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        if not leading():
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another hwnas process is working here; wait for it") from None
        self.lines("events.jsonl")  # what is appended next must not go on a line cut short

    @classmethod
    def open(
        cls,
        path: Path,
        recipe: Settings,
        resume: bool,
        load: Callable[[Path], Settings] | None = None,
    ) -> RunDirectory:
        """Start a run in `path`, or go on with the one that is there.

        Args:
            load: reads a recipe of this kind; by default `load_recipe`.

        Raises:
            UserError: the folder holds something else, or a run and `resume` is off, or a run
                of another recipe.
        """
        recipe_file = path / "recipe.yaml"
        if recipe_file.exists():
            if not resume and leading():  # the others find what the leader has made
                raise UserError(
                    f"{path}: holds a run already; give --resume to go on with it, or another --out"
                )
            from hwnas.recipe import load_recipe

            difference = recipe.difference((load or load_recipe)(recipe_file))
            if difference:
                raise UserError(
                    f"{path}: holds a run of another recipe ({difference}); "
                    "give the same options, or another --out"
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path}: exists and holds no run; give another --out")
        else:
            recipe.save(recipe_file)
        return cls(path)

    def close(self) -> None:
        """Let other processes work in the folder."""
        self._lock.close()

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON line to a file of the run, if this process leads."""
        if not leading():
            return
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSONL file of the run; a last one cut short by a kill is dropped."""
        path = self.path / name
        if not path.exists():
            return []
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text and leading():
            os.truncate(path, len(whole))  # where it stands: a lock may be on this very file
        return [json.loads(line) for line in whole.decode("utf-8").split("\n")[:-1]]

    def rewrite(self, name: str, records: list[dict[str, Any]]) -> None:
        """Replace a JSONL file of the run by these records, if this process leads."""
        if not leading():
            return
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(self.path / name, text)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note a stage's begin and end, with its seconds."""
        self.append("events.jsonl", {"stage": name, "event": "begin", "time": time.time()})
        begin = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - begin, 3)
        self.append(
            "events.jsonl",
            {"stage": name, "event": "end", "time": time.time(), "seconds": seconds},
        )

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage, over all sittings that ended it."""
        total: dict[str, float] = defaultdict(float)
        for event in self.lines("events.jsonl"):
            if event["event"] == "end":
                total[event["stage"]] += event["seconds"]
        return {name: round(value, 1) for name, value in total.items()}

    def measured(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement `key`: from `measurements.jsonl` if it was made before, else made now."""
        for record in self.lines("measurements.jsonl"):
            if record["key"] == key:
                value: dict[str, Any] = record["value"]
                return value
        value = measure()
        self.append("measurements.jsonl", {"key": key, "value": value})
        return value
