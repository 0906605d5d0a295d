"""A latency table for people: the page says how far to trust it, and holds every picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from finished_run import make_table
from rich.console import Console

from hwnas.latency.compare import compare
from hwnas.report.tables import render_comparison, render_page, write_page


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(make_table())


def test_page_says_how_far_to_trust_it_first(page: str) -> None:
    assert page.index("off by") < page.index("<svg")
    assert page.count("<svg") == 3
    assert "Some CPU" in page and "openvino:cpu:threads=1,batch=1,seq=64" in page


def test_page_needs_no_network_and_runs_no_script(page: str) -> None:
    assert "<script" not in page
    assert not re.search(r'(src|href)="https?://', page)


def test_page_of_a_table_that_was_never_checked() -> None:
    page = render_page(make_table(validation=None))
    assert page.count("<svg") == 2
    assert "not validated" in page and "was not checked" in page


def test_warnings_of_the_doctor_are_shown_and_escaped(tmp_path: Path) -> None:
    table = make_table()
    protocol = table.protocol.model_copy(update={"warnings": ("load <b>9</b>",)})
    path = tmp_path / "page.html"
    write_page(table.model_copy(update={"protocol": protocol}), path)
    text = path.read_text(encoding="utf-8")
    assert "load &lt;b&gt;9&lt;/b&gt;" in text and "<b>9" not in text


def test_comparison_in_the_terminal() -> None:
    table = make_table()
    console = Console(width=110)
    with console.capture() as captured:
        console.print(render_comparison(compare(table, table), table, table))
    words = " ".join(captured.get().split())
    assert "1.00 of the first's" in words
    assert "attention" in words and "1536" in words
