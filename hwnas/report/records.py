"""What the report reads from a run directory: the summary must be there, the rest may not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hwnas.deployments import Anchor, read_anchors
from hwnas.errors import UserError
from hwnas.files import read_model, validate
from hwnas.recipe import load_recipe
from hwnas.search.spec import Signal
from hwnas.selection import Selection
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Candidate, Finalist, Record, Summary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hwnas.latency.table import LatencyTable

    Floats = npt.NDArray[np.float32]

Line = TypeVar("Line", bound=Record)


@dataclass(frozen=True)
class RunRecords:
    """The records of one run; optional files that are missing are None or empty."""

    path: Path
    summary: Summary
    candidates: tuple[Candidate, ...]
    finalists: tuple[Finalist, ...]
    table: LatencyTable | None
    full: tuple[tuple[int, int], ...]  # (heads, ffn) of every block at its largest
    space: SearchSpace | None = None
    # scores by name, as `importance.safetensors` has them: heads.0, ffn.0, ..., layers, residual
    importance: Mapping[str, Floats] | None = None
    signal: Signal = "divergence"  # by which the search compared candidates
    selections: Mapping[str, Selection] = field(default_factory=dict)  # by budget, what was timed
    deployments: tuple[Anchor, ...] = ()  # beside the target's own


def read_summary(run: Path) -> Summary:
    """The summary of a finished run.

    Raises:
        UserError: `run` is no run directory, or its run did not end, or the summary is damaged.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    file = run / "summary.json"
    if not file.is_file():
        raise UserError(
            f"{file}: missing, so the run has not ended; "
            f"end it with `hwnas run --out {run} --resume` first"
        )
    return read_model(file, Summary)


def read_run(run: Path) -> RunRecords:
    """All records of a finished run.

    Raises:
        UserError: as `read_summary`, or another file of the run is damaged; names file and line.
    """
    summary = read_summary(run)
    candidates = read_lines(run / "candidates.jsonl", Candidate)
    table_file, space_file = run / "table.json", run / "space.json"
    space = read_model(space_file, SearchSpace) if space_file.is_file() else None
    return RunRecords(
        path=run,
        summary=summary,
        candidates=candidates,
        finalists=read_lines(run / "finalists.jsonl", Finalist),
        table=_read_table(table_file) if table_file.is_file() else None,
        full=_full_widths(summary, candidates, space),
        space=space,
        importance=_read_importance(run / "importance.safetensors"),
        signal=_read_signal(run / "recipe.yaml"),
        selections=_read_selections(run, summary),
        deployments=read_anchors(run),
    )


def _read_selections(run: Path, summary: Summary) -> dict[str, Selection]:
    files = {c.budget: run / "selection" / f"{Path(c.path).name}.json" for c in summary.chosen}
    return {b: read_model(file, Selection) for b, file in files.items() if file.is_file()}


def _read_signal(file: Path) -> Signal:
    return load_recipe(file).search.signal if file.is_file() else "divergence"


def _read_importance(file: Path) -> Mapping[str, Floats] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        return None
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error})") from None


def _read_table(file: Path) -> LatencyTable:
    from hwnas.latency.table import LatencyTable

    return read_model(file, LatencyTable)


def read_lines(file: Path, kind: type[Line]) -> tuple[Line, ...]:
    """The records of a JSONL file, none if it is missing, without a last line cut short by a kill.

    Raises:
        UserError: a whole line does not fit; names file and line.
    """
    if not file.is_file():
        return ()
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
    records = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}: line {number}: not valid JSON: {error.msg}") from None
        records.append(validate(kind, value, where=f"{file}: line {number}"))
    return tuple(records)


def _full_widths(
    summary: Summary, candidates: tuple[Candidate, ...], space: SearchSpace | None
) -> tuple[tuple[int, int], ...]:
    """The largest heads and FFN of each block: of the space, or of all that was looked at."""
    genomes = [c.genome for c in summary.chosen] + [c.genome for c in candidates]
    found = [Subnetwork.of(genome).blocks for genome in genomes]
    if space is not None:
        found.append(space.largest.blocks)
    depth = max((len(blocks) for blocks in found), default=0)
    return tuple(
        (
            max(blocks[i].heads for blocks in found if i < len(blocks)),
            max(blocks[i].ffn for blocks in found if i < len(blocks)),
        )
        for i in range(depth)
    )
