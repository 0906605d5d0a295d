"""A latency table for people: in the terminal, as a page, and beside another one.

How far to trust it stands first, then the machine, then what each operator costs. The page needs no
network and runs no script; names out of the file are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.files import write_text
from hwnas.latency.target import Target
from hwnas.report import text
from hwnas.report.pages import environment

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from hwnas.latency.compare import Comparison
    from hwnas.latency.parts import Operator
    from hwnas.latency.table import LatencyTable

TEMPLATE = "table.html.j2"


def render_table(table: LatencyTable) -> RenderableType:
    """A latency table: how far to trust it first, then the machine and the costs."""
    from rich.console import Group
    from rich.text import Text

    axis = Target.parse(table.target).axis
    costs: list[RenderableType] = []
    for length in table.lengths:
        at = f", {axis} {length.tokens}" if len(table.lengths) > 1 else ""
        costs.append(_costs(table, "attention", "heads", axis, length.tokens, at))
        costs.append(_costs(table, "ffn", "width", axis, length.tokens, at))
    return Group(Text(text.trust(table), style="bold"), _facts(_all_facts(table)), *costs)


def _all_facts(table: LatencyTable) -> list[tuple[str, str]]:
    facts = [*text.machine(table), ("full model", text.milliseconds(table.reference_ms))]
    for length in table.lengths:
        fixed = text.milliseconds(table.predictor_at(length.tokens).fixed_ms)
        at = text.length_name(table, length)
        if len(table.lengths) > 1:
            facts.append((at, f"{text.milliseconds(length.reference_ms)} for the full model"))
        facts.append(("what every network costs", fixed))
        pressure = table.predictor_at(length.tokens).pressure_ms
        if pressure:
            facts.append(("caches, full model", text.milliseconds(pressure)))
    return facts


def _facts(rows: list[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    return grid


def _costs(table: LatencyTable, op: Operator, dim: str, axis: str, tokens: int, at: str) -> Table:
    """What one operator of one block costs at each measured width, at one length."""
    from rich.table import Table

    found = Table(title=f"{op} of one block{at}")
    for title in (dim, "median", "p10", "p90", "of the full model"):
        found.add_column(title, justify="right", overflow="fold")
    entries = [e for e in table.entries if e.op == op and e.dims[axis] == tokens]
    for entry in sorted(entries, key=lambda e: e.dims[dim]):
        ms = entry.ms
        found.add_row(
            str(entry.dims[dim]),
            *(text.milliseconds(value) for value in (ms.median, ms.p10, ms.p90)),
            text.percent(entry.ratio_to_reference),
        )
    return found


def render_comparison(
    found: Sequence[Comparison], first: LatencyTable, second: LatencyTable
) -> RenderableType:
    """Two tables of one model: what they say of the same networks first, then cost by cost."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(f"first:  {first.target}, {first.device.gpu or first.device.cpu}"),
        Text(f"second: {second.target}, {second.device.gpu or second.device.cpu}"),
    ]
    for comparison in found:
        parts.append(Text(text.comparison(comparison), style="bold"))
        at = f"{comparison.axis} {comparison.tokens}"
        table = Table(title=f"one block of a network of half the weights, at {at}")
        table.add_column("")
        for title in ("width", "first", "second", "second / first"):
            table.add_column(title, justify="right", overflow="fold")
        for cost in comparison.costs:
            table.add_row(
                cost.op,
                "" if cost.width is None else str(cost.width),
                text.milliseconds(cost.first),
                text.milliseconds(cost.second),
                f"{cost.second / cost.first:.2f}" if cost.first > 0 else "",
            )
        parts.append(table)
    return Group(*parts)


def write_page(table: LatencyTable, out: Path) -> None:
    """Write the table as a page: its record, its curves, and where the time of models goes.

    Raises:
        UserError: the folder of `out` cannot be written.
    """
    write_text(out, render_page(table))


def render_page(table: LatencyTable) -> str:
    """The page as text."""
    from markupsafe import Markup

    from hwnas.report import plots, table_plots

    validation = plots.validation(table.validation) if table.validation else None
    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            target=table.target,
            trust=text.trust(table),
            doubts=table.doubts(),
            warnings=table.protocol.warnings,
            facts=_all_facts(table),
            validation=validation and Markup(validation),
            curves=Markup(table_plots.curves(table)),
            breakdown=Markup(table_plots.breakdown(table)),
        )
    )
