"""The terminal's summary on consoles of several widths and encodings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from finished_run import HALF, chosen, make_summary, make_table, make_validation
from rich.console import Console

from hwnas.export import Verification
from hwnas.report.tables import render_table
from hwnas.report.terminal import render, render_export
from hwnas.summary import Summary


def shown(summary: Summary, width: int = 100, encoding: str = "utf-8") -> str:
    return printed(render(summary), width, encoding)


def printed(renderable: Any, width: int = 100, encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, newline="")
    Console(file=file, width=width, force_terminal=False).print(renderable)
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


def test_a_table_says_first_how_far_to_trust_it() -> None:
    text = printed(render_table(make_table()))
    words = " ".join(text.split())
    assert words.startswith(
        "On 2 subnetworks that the table had not seen, its predictions are off by 2.0 % in the "
        "mean, 2.0 % too fast on the whole, and rank them with a Kendall tau of 0.95."
    )
    assert "differ by 1.0 %, which is the machine's own noise" in words
    assert "A straight line through FLOPs is off by 10.0 %." in words
    for fact in ("Some CPU, 8 logical cores", "avx2 avx512f", "openvino 2026.0", "21.4 ms"):
        assert fact in words, fact
    assert (
        "40 networks, 9 pairs for each, processor time, against the full model; 1 min 15 s" in words
    )
    widths = [line.split()[1] for line in text.splitlines() if "ms" in line and "│" in line]
    assert widths == ["1", "6", "12", "128", "768", "1536"]
    assert max(map(len, text.splitlines())) <= 100


def test_tables_with_less_and_with_more() -> None:
    text = printed(render_table(make_table(validation=None)))
    assert "The table was not validated on unseen networks" in text
    covered = make_table(validation=make_validation(bias=3.0, coverage_90=0.87))
    words = " ".join(printed(render_table(covered), encoding="ascii").split())
    assert "3.0 % too slow on the whole" in words
    assert "87.0 % of the measurements lie in the 90 % intervals." in words


def test_an_export() -> None:
    record = Verification(
        target="openvino:cpu:threads=1,batch=1,seq=64",
        reference="small[/x]/model",
        ratio=0.534,
        ratio_spread=0.01,
        ms=10.7,
        p10_ms=10.5,
        p90_ms=11.0,
        reference_ms=20.04,
        samples=15,
        parity={"model": 0.0, "onnx": 3.4e-7, "openvino": 4.1e-7},
        size_mb={"model": 67.2, "onnx": 67.31, "openvino": 67.4},
    )
    text = printed(render_export(record, Path("small[/x]")))
    row = next(line for line in text.splitlines() if "onnx" in line)
    assert "67.3 MB" in row and "3.4e-07" in row
    assert (
        "10.7 ms (p10 10.5 ms, p90 11.0 ms, 15 pairs): 0.53 of the time of small[/x]/model"
        in " ".join(text.split())
    )
