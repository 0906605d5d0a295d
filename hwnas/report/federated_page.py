"""`report.html` of a federated run: what was learned for whom, what travelled, what went wrong."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from hwnas.federated.summary import FederatedSummary, Round
from hwnas.files import read_model, write_text
from hwnas.report import federated_plots, text
from hwnas.report.pages import environment

TEMPLATE = "federated.html.j2"
_MOST_EVENTS = 200  # lines of them on the page


def write_page(run: Path) -> Path:
    """Write the report into the directory of a finished run; returns its path.

    Raises:
        UserError: the run has no summary, or a file is damaged.
    """
    summary = read_model(run / "summary.json", FederatedSummary)
    rounds = [Round.model_validate(line) for line in _lines(run / "rounds.jsonl")]
    events = [line for line in _lines(run / "events.jsonl") if line["event"] != "joined"]
    judged = next((one for one in reversed(rounds) if one.clients), None)
    templates = environment()
    templates.filters |= {
        "ms": text.milliseconds,
        "percent": text.percent,
        "count": text.count,
        "megabytes": lambda count: f"{count / 1e6:,.0f} MB",
    }
    page = templates.get_template(TEMPLATE).render(
        run=run.resolve().name,
        summary=summary,
        metric=text.metric_name(summary.metric),
        rounded=any(tier.served_score is not None for tier in summary.tiers),
        score=lambda value: text.metric_value(summary.metric, value),
        curves=_svg(federated_plots.curves(summary, rounds)) if rounds else None,
        fairness=_svg(federated_plots.fairness(summary, judged)) if judged else None,
        own=_own(summary),
        events=events[:_MOST_EVENTS],
        more=max(0, len(events) - _MOST_EVENTS),
        share=(summary.down_bytes + summary.up_bytes) / max(1, summary.everything_bytes),
        share_trained=(summary.down_bytes + summary.up_bytes) / max(1, summary.trained_bytes),
    )
    out = run / "report.html"
    write_text(out, page)
    return out


def _own(summary: FederatedSummary) -> dict[str, float] | None:
    """Of clients' own models together."""
    if not summary.personal:
        return None
    shared, own = ([getattr(p, name) for p in summary.personal] for name in ("shared", "own"))
    return {
        "shared": statistics.mean(shared),
        "own": statistics.mean(own),
        "lowest_shared": min(shared),
        "lowest_own": min(own),
        "kept": sum(one.kept for one in summary.personal),
        "clients": len(summary.personal),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # not by all that Unicode takes for the end of a line, which a client's name may hold
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _svg(drawn: str) -> Any:
    from markupsafe import Markup

    return Markup(drawn)
