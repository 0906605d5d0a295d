"""The terminal's summary on consoles of several widths and encodings."""

from __future__ import annotations

import io

import pytest
from finished_run import HALF, chosen, make_summary
from rich.console import Console

from hwnas.report.terminal import render
from hwnas.summary import Summary


def shown(summary: Summary, width: int = 100, encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, newline="")
    Console(file=file, width=width, force_terminal=False).print(render(summary))
    file.flush()
    return buffer.getvalue().decode(encoding)


def test_it_fits_a_hundred_columns_on_one_line_a_model() -> None:
    lines = shown(make_summary()).splitlines()
    assert max(map(len, lines)) <= 100
    row = next(line for line in lines if "10.7 ms" in line)
    for figure in ("50%", "73.9 %", "99.1 %", "0.50", "67.2 MB", "17.3 M", "yes"):
        assert figure in row
    assert "At 0.50 of the baseline's latency, 99.1 % of its accuracy" in " ".join(lines)


@pytest.mark.parametrize("width", [10, 40, 60, 200])
def test_any_width(width: int) -> None:
    assert max(map(len, shown(make_summary(), width).splitlines())) <= width


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_consoles_without_utf8(encoding: str) -> None:
    assert "baseline" in shown(make_summary(), encoding=encoding)


def test_a_miss_and_a_near_miss() -> None:
    missed = chosen("50%", HALF, met=False, measured_ms=12.5, ratio=0.584)
    text = shown(make_summary(chosen=[missed]))
    assert "NO" in text
    assert "Budget 50% was NOT met" in " ".join(text.split())
    near = chosen("50%", HALF, measured_ms=10.75, ratio=0.502)
    assert "within noise" in shown(make_summary(chosen=[near]), width=120)


def test_nothing_chosen() -> None:
    assert "No smaller model was chosen" in shown(make_summary(chosen=[]))


def test_names_are_not_markup() -> None:
    text = shown(make_summary(model="[red]x[/oops]", chosen=[chosen("50%", HALF, path="[/a]")]))
    assert "[red]x[/oops]" in text
    assert "[/a]" in text
