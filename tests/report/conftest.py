"""A run directory as a run leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finished_run import (
    SPACE,
    Write,
    make_candidates,
    make_finalists,
    make_summary,
    make_table,
    write_importance,
    write_lines,
)

from hwnas.files import write_json


@pytest.fixture
def write_run(tmp_path: Path) -> Write:
    """Writes a run directory; the summary's fields may be changed."""

    def write(name: str = "demo", bare: bool = False, **changes: Any) -> Path:
        run = tmp_path / name
        run.mkdir()
        write_json(run / "summary.json", make_summary(**changes))
        if not bare:
            write_json(run / "space.json", SPACE)
            make_table().save(run / "table.json")
            write_importance(run / "importance.safetensors")
            write_lines(run / "candidates.jsonl", make_candidates())
            write_lines(run / "finalists.jsonl", make_finalists())
        return run

    return write
