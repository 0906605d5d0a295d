"""`report.html`: everything a run found, on one page that needs no network and runs no script.

The page is the Jinja2 template beside this file; here stand the figures that go into it. Every
name out of the run's files is escaped. A file that the run did not write leaves a sentence that
says so, where its picture would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.files import write_text
from hwnas.latency.target import Target
from hwnas.report import plots, text
from hwnas.report.pages import environment
from hwnas.report.records import RunRecords, read_run
from hwnas.report.rivals import compare, findings, read_rivals
from hwnas.summary import FRONT

if TYPE_CHECKING:
    from hwnas.summary import Summary

PARITY_LIMIT = 1e-3  # largest difference of logits between an exported file and torch
TEMPLATE = "report.html.j2"


def write_report(run: Path, rivals: Sequence[Path] = ()) -> Path:
    """Write `report.html` into the run directory and return its path.

    Args:
        run: the directory of a finished run.
        rivals: directories of other strategies' or other seeds' runs, to stand beside it.

    Raises:
        UserError: `run` or a rival has no summary, a file is damaged, or a rival is of another
            model, task, metric or target.
    """
    records = read_run(run)
    page = render_page(records, read_rivals(run, records.summary, rivals))
    out = run / "report.html"
    write_text(out, page)
    return out


def render_page(records: RunRecords, rivals: Sequence[Summary] = ()) -> str:
    """The page as text."""
    templates = environment()
    templates.filters |= {
        "ms": text.milliseconds,
        "percent": text.percent,
        "count": text.count,
        "duration": text.duration,
        "structure": text.structure,
        "served_at": lambda target: text.served_at(Target.parse(target)),
        "unbroken": lambda words: words.replace(" %", "\N{NO-BREAK SPACE}%"),
    }
    summary = records.summary
    rows = compare([summary, *rivals]) if rivals else []
    return templates.get_template(TEMPLATE).render(
        run=records.path.resolve().name,
        summary=summary,
        headline=text.headline(summary),
        metric=text.metric_name(summary.metric),
        score=lambda value: text.metric_value(summary.metric, value),
        parity_limit=PARITY_LIMIT,
        standard_error=text.standard_error(summary),
        compute_total=text.compute_total(summary.compute),
        rivals=rows,
        rival_findings=findings(rows, summary.metric),
        trust=text.trust(records.table) if records.table else None,
        machine=text.machine(records.table) if records.table else [],
        finalists=records.finalists,
        candidates=records.candidates,
        space=text.space_size(records.space, records.table),
        rounds=max((c.round for c in records.candidates), default=1),
        selections=records.selections,
        deployments=records.deployments,
        signal=records.signal,
        pictures=_pictures(records, rivals),
    )


def _pictures(records: RunRecords, rivals: Sequence[Summary]) -> dict[str, Any]:
    """The SVG of each picture that there are records for, else None."""
    from markupsafe import Markup

    summary = records.summary
    names = ("pareto", "convergence", "layers", "validation", "finalists")
    drawn: dict[str, str | None] = dict.fromkeys((*names, "importance", "sensitivity"))
    if records.importance:
        drawn["importance"] = plots.importance(records.importance)
        if records.table:
            drawn["sensitivity"] = plots.sensitivity(records.importance, records.table)
    drawn["results"] = plots.results(summary, rivals)
    if records.candidates:
        drawn["pareto"] = plots.pareto(
            records.candidates, summary.chosen, summary.baseline.latency_ms, records.signal
        )
    shared = [c for c in records.candidates if c.budget == FRONT]
    if len(shared) > 1:
        drawn["convergence"] = plots.convergence(shared)
    if summary.chosen:
        drawn["layers"] = plots.layers(summary.chosen, records.full)
    if records.table and records.table.validation:
        drawn["validation"] = plots.validation(records.table.validation)
    if records.finalists:
        drawn["finalists"] = plots.finalists(records.finalists)
    return {name: svg and Markup(svg) for name, svg in drawn.items()}
