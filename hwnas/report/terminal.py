"""The end of a run and an export in the terminal: a table and the finding.

Plain ASCII of our own, so that consoles without UTF-8 show it; rich exchanges the lines of the
table itself there. Names come from the user, so none is read as rich markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.latency.target import Target
from hwnas.report import text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from hwnas.asking import Reply
    from hwnas.export import Verification
    from hwnas.export.verify import Recheck
    from hwnas.planning import Plan
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
    original = [("baseline", baseline.metric, baseline.latency_ms, baseline.size_mb)]
    if (exact := baseline.unquantized) is not None:
        original.insert(0, ("baseline, fp32", exact.metric, exact.latency_ms, exact.size_mb))
    for name, metric, latency_ms, size_mb in original:
        table.add_row(
            name,
            text.metric_value(summary.metric, metric),
            "",
            "",
            text.milliseconds(latency_ms),
            f"{latency_ms / baseline.latency_ms:.2f}",
            f"{size_mb:.1f} MB",
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
    own = Target.parse(summary.target)
    details = [
        Text(
            f"{c.budget}: {text.structure(c.genome)} ({c.kind}), "
            f"{text.served_at(c.served_at(own))}, {c.path}"
        )
        for c in summary.chosen
    ]
    details += [
        Text(f"{c.budget}: {one.name} {one.value:.3g} {one.unit}, {one.most:.3g} allowed")
        for c in summary.chosen
        for one in c.limits
    ]
    beside = [Text(f"beside: {text.beside(one)}") for one in summary.beside]
    return Group(table, *details, *beside, Text(text.headline(summary), style="bold"))


def _verdict(chosen: Chosen) -> Text:
    from rich.text import Text

    if not chosen.met:
        return Text("NO", style="bold red")
    return Text("yes" if chosen.measured_ms <= chosen.budget_ms else "within noise", style="green")


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
        apart = f"{record.parity[name]:.1e}" if name in record.parity else "quantized"
        table.add_row(Text(name), f"{size:.1f} MB", apart)
    finding = (
        f"{text.milliseconds(record.ms)} (p10 {text.milliseconds(record.p10_ms)}, "
        f"p90 {text.milliseconds(record.p90_ms)}, {record.samples} pairs): "
        f"{record.ratio:.2f} of the time of {record.reference}"
    )
    if record.cold_start_s is not None:
        finding += f"; serve.py's first answer after {record.cold_start_s:.1f} s"
    shown = [_tried(record)] if record.tried else []
    return Group(table, *shown, Text(finding, style="bold"))


def render_plan(plan: Plan) -> RenderableType:
    """What a recipe will need: subnetworks of its space, and its stages."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = (
        f"{plan.model} ({plan.family}): {text.count(plan.params)} parameters, "
        f"{text.count(plan.in_blocks)} of them in blocks, {text.count(plan.trained)} are trained; "
        f"batches of {plan.batch} x {plan.seq} tokens"
    )
    space = Table(title=Text(f"the space has {plan.space:.3g} subnetworks"))
    for name in ("subnetwork", "parameters", "operations", "predicted"):
        space.add_column(name, justify="right" if name != "subnetwork" else "left")
    for one in plan.subnetworks:
        ms = "" if one.predicted_ms is None else text.milliseconds(one.predicted_ms)
        space.add_row(one.name, text.count(one.params), text.percent(one.share), ms)
    stages = Table(title=Text("stages"))
    for name in ("stage", "memory", "of it", "steps", "operations", "hours", "fits"):
        stages.add_column(name, justify="left" if name in ("stage", "of it") else "right")
    for stage in plan.stages:
        parts = ", ".join(f"{name} {size:.2g}" for name, size in stage.parts.items())
        if stage.resting_gb:
            parts += f"; beside it, in main memory, {stage.resting_gb:.2g} GB of weights at rest"
        stages.add_row(
            stage.name,
            f"{stage.memory_gb:.1f} GB",
            Text(parts),
            str(stage.steps),
            f"{stage.petaflops:.3g} P",
            "" if stage.hours is None else f"{stage.hours:.1f}",
            "" if stage.fits is None else ("yes" if stage.fits else "NO"),
        )
    return Group(Text(facts), space, stages, *map(Text, plan.notes))


def render_replies(replies: Sequence[Reply]) -> RenderableType:
    """Answers of a run's language models, with the time that they took."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("model", "served by", "answer"):
        table.add_column(name, overflow="fold")
    for name in ("first token", "tokens/s"):
        table.add_column(name, justify="right")
    for one in replies:
        rate = "" if one.tokens_per_s is None else f"{one.tokens_per_s:.1f}"
        ms = text.milliseconds(one.first_ms)
        table.add_row(Text(one.name), Text(one.served), Text(one.text), ms, rate)
    return table


def _tried(record: Verification) -> Table:
    """Ways to serve the model, the fastest first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"tried, {text.metric_name(record.metric or '')}"))
    for name in ("runtime", "precision"):
        table.add_column(name, overflow="fold")
    for name in ("ratio", "time", "size", "score", "lost"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for t in record.tried:
        table.add_row(
            Text(t.runtime),
            Text(t.precision),
            "" if t.ratio is None else f"{t.ratio:.2f}",
            "" if t.ms is None else text.milliseconds(t.ms),
            "" if t.size_mb is None else f"{t.size_mb:.1f} MB",
            "" if t.metric is None else text.metric_value(record.metric or "", t.metric),
            "" if t.drop is None else f"{t.drop:.2f}",
            Text("chosen", style="green") if t.chosen else Text(t.note),
        )
    return table


def render_recheck(found: Recheck, out: Path) -> RenderableType:
    """A second look at an export: what it promises and what was found."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(f"{out}, {found.target}")]
    for name, difference in found.parity.items():
        lines.append(Text(f"{name}: largest difference of a logit from torch {difference:.1e}"))
    if found.ratio is not None:
        lines.append(Text(f"time: {found.ratio:.3f}, on record {found.promised_ratio:.3f}"))
    if found.drop is not None:
        lines.append(Text(f"lost: {found.drop:.2f} points"))
    verdict = "; ".join(found.broken) or "all that was promised holds"
    style = "bold red" if found.broken else "bold"
    return Group(*lines, Text(verdict, style=style))
