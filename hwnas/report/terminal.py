"""The end of a run, a latency table and an export in the terminal: a table and the finding.

Plain ASCII of our own, so that consoles without UTF-8 show it; rich exchanges the lines of the
table itself there. Names come from the user, so none is read as rich markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.report import text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from hwnas.export import Verification
    from hwnas.latency.table import LatencyTable, Operator
    from hwnas.summary import Chosen, Summary


def render(summary: Summary) -> RenderableType:
    """The summary for a console of about 100 columns; narrower ones fold the cells."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{summary.model} on {summary.task}, {summary.target}"))
    table.add_column("", overflow="fold")
    for title in (text.metric_name(summary.metric), "kept", "budget", "measured", "ratio"):
        table.add_column(Text(title), justify="right", overflow="fold")
    for title in ("size", "params"):
        table.add_column(title, justify="right", overflow="fold")
    table.add_column("met", overflow="fold")

    baseline = summary.baseline
    table.add_row(
        "baseline",
        text.metric_value(summary.metric, baseline.metric),
        "",
        "",
        text.milliseconds(baseline.latency_ms),
        "1.00",
        f"{baseline.size_mb:.1f} MB",
        text.count(baseline.params),
        "",
    )
    for c in summary.chosen:
        table.add_row(
            Text(c.budget),
            text.metric_value(summary.metric, c.metric),
            text.percent(c.kept),
            text.milliseconds(c.budget_ms),
            text.milliseconds(c.measured_ms),
            f"{c.ratio:.2f}",
            f"{c.size_mb:.1f} MB",
            text.count(c.params),
            _verdict(c),
        )
    details = [
        Text(
            f"{c.budget}: {text.structure(c.genome)} ({c.kind}), "
            f"{c.runtime} {c.precision}, {c.path}"
        )
        for c in summary.chosen
    ]
    return Group(table, *details, Text(text.headline(summary), style="bold"))


def _verdict(chosen: Chosen) -> Text:
    from rich.text import Text

    if not chosen.met:
        return Text("NO", style="bold red")
    return Text("yes" if chosen.measured_ms <= chosen.budget_ms else "within noise", style="green")


def render_table(table: LatencyTable) -> RenderableType:
    """A latency table: how far to trust it first, then the machine and the costs."""
    from rich.console import Group
    from rich.text import Text

    fixed = next(entry for entry in table.entries if entry.op == "fixed")
    facts = [
        *text.machine(table),
        ("full model", text.milliseconds(table.reference_ms)),
        ("what every network costs", text.milliseconds(fixed.ms.median)),
    ]
    return Group(
        Text(text.trust(table), style="bold"),
        _facts(facts),
        _costs(table, "attention", "heads"),
        _costs(table, "ffn", "width"),
    )


def _facts(rows: list[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    return grid


def _costs(table: LatencyTable, op: Operator, dim: str) -> Table:
    """What one operator of one block costs at each measured width."""
    from rich.table import Table

    found = Table(title=f"{op} of one block")
    for title in (dim, "median", "p10", "p90", "of the full model"):
        found.add_column(title, justify="right", overflow="fold")
    for entry in sorted((e for e in table.entries if e.op == op), key=lambda e: e.dims[dim]):
        ms = entry.ms
        found.add_row(
            str(entry.dims[dim]),
            *(text.milliseconds(value) for value in (ms.median, ms.p10, ms.p90)),
            text.percent(entry.ratio_to_reference),
        )
    return found


def render_export(record: Verification, out: Path) -> RenderableType:
    """An export: its folders, how faithful they are, and its time on the target."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{out}, {record.target}"))
    table.add_column("folder", overflow="fold")
    table.add_column("size", justify="right", overflow="fold")
    table.add_column("largest difference of a logit from torch", justify="right", overflow="fold")
    for name, size in record.size_mb.items():
        table.add_row(Text(name), f"{size:.1f} MB", f"{record.parity[name]:.1e}")
    finding = (
        f"{text.milliseconds(record.ms)} (p10 {text.milliseconds(record.p10_ms)}, "
        f"p90 {text.milliseconds(record.p90_ms)}, {record.samples} pairs): "
        f"{record.ratio:.2f} of the time of {record.reference}"
    )
    return Group(table, Text(finding, style="bold"))
