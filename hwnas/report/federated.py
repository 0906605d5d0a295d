"""A federated run's summary for a terminal."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

if TYPE_CHECKING:
    from hwnas.federated.summary import FederatedSummary

_MB = 1e6


def render(summary: FederatedSummary) -> Group:
    """Every tier's model, what travelled, and what went wrong with clients."""
    table = Table(title=f"{summary.model} on {summary.task}, {summary.rounds} rounds")
    names = ("tier", "params", "predicted", "measured", "of whole", summary.metric)
    for name in (*names, "clients", "lowest"):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for tier in summary.tiers:
        table.add_row(
            tier.name if tier.served == tier.name else f"{tier.name}: {tier.served}'s",
            f"{tier.params / _MB:.1f} M",
            f"{tier.predicted_ms:.3g} ms",
            "-" if tier.measured_ms is None else f"{tier.measured_ms:.3g} ms",
            f"{100 * (tier.ratio or tier.predicted_ms / tier.whole_ms):.0f} %",
            _number(tier.score),
            _number(tier.mean),
            _number(tier.least),
        )
    moved = summary.down_bytes + summary.up_bytes
    share = moved / summary.everything_bytes if summary.everything_bytes else 0.0
    lines = [
        f"sent {summary.down_bytes / _MB:.0f} MB down and {summary.up_bytes / _MB:.0f} MB up, "
        f"{share:.2f} of the whole model to everybody; "
        f"{summary.steps:.0f} whole-model steps at {summary.clients} clients",
    ]
    lines += [
        f"{tier.name} as it is served, {tier.target}: {tier.served_score:.1f}"
        for tier in summary.tiers
        if tier.served_score is not None
    ]
    if own := summary.personal:
        shared, after = ([getattr(one, name) for one in own] for name in ("shared", "own"))
        lines.append(
            f"own models: {statistics.mean(shared):.1f} -> {statistics.mean(after):.1f} on "
            f"clients' own rows, the lowest {min(shared):.1f} -> {min(after):.1f}; "
            f"{sum(one.kept for one in own)} of {len(own)} clients keep theirs"
        )
    if summary.epsilon is not None:
        lines.append(f"privacy of a client: ({summary.epsilon:.3g}, {summary.delta:g})")
    wrong = {name: n for name, n in summary.events.items() if name != "joined"}
    if wrong:
        said = ", ".join(f"{n} {name}" for name, n in wrong.items())
        lines.append(f"clients: {said}; see events.jsonl")
    return Group(table, *lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
