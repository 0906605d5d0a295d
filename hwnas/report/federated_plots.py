"""A federated run's pictures: scores by tier and round, what travelled, and clients' own scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.report.drawing import GREY, drawing
from hwnas.report.text import metric_name

if TYPE_CHECKING:
    from hwnas.federated.summary import FederatedSummary, Round

_SHADES = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#332288")
_MARKERS = "osD^vP"
_MB = 1e6


def curves(summary: FederatedSummary, rounds: Sequence[Round]) -> str:
    """Each tier's score over the rounds, and all bytes that had travelled by then."""
    judged = [one for one in rounds if one.scores or one.clients]
    with drawing("federated", height=4.4) as (figure, svg):
        scores, sent = figure.subplots(1, 2)
        for at, tier in enumerate(summary.tiers):
            found = [(one.number, _score(one, tier.name)) for one in judged]
            points = [(number, score) for number, score in found if score is not None]
            scores.plot(
                [number for number, _ in points],
                [score for _, score in points],
                color=_SHADES[at % len(_SHADES)],
                marker=_MARKERS[at % len(_MARKERS)],
                label=tier.name,
            )
        scores.set_title(f"{metric_name(summary.metric)} of each tier's model")
        scores.set_xlabel("round")
        scores.legend(loc="lower right")
        numbers = [one.number for one in rounds]
        for name, values, colour in (
            ("to clients", [one.down_bytes for one in rounds], _SHADES[0]),
            ("from clients", [one.up_bytes for one in rounds], _SHADES[1]),
        ):
            sent.plot(numbers, np.cumsum(values) / _MB, color=colour, label=name)
        everything = summary.everything_bytes / max(1, len(rounds)) / 2 / _MB
        sent.plot(
            numbers,
            everything * np.arange(1, len(rounds) + 1),
            color=GREY,
            linestyle="--",
            label="the whole model, one way",
        )
        sent.set_title("Weights that travelled")
        sent.set_xlabel("round")
        sent.set_ylabel("MB, in all")
        sent.set_ylim(bottom=0)
        sent.legend(loc="upper left")
    return svg()


def _score(one: Round, tier: str) -> float | None:
    """On the server's rows, or, where it has none, the mean of the clients'."""
    if tier in one.scores:
        return one.scores[tier]
    mine = [client.score for client in one.clients if client.tier == tier]
    return sum(mine) / len(mine) if mine else None


def fairness(summary: FederatedSummary, last: Round) -> str:
    """Every client's score on its own held-out rows by its tier's model, the lowest first."""
    with drawing("fairness", height=3.2) as (figure, svg):
        axes = figure.subplots()
        ordered = sorted(last.clients, key=lambda client: (client.score, client.client))
        for at, tier in enumerate(summary.tiers):
            places = [i for i, client in enumerate(ordered) if client.tier == tier.name]
            axes.scatter(
                places,
                [ordered[i].score for i in places],
                color=_SHADES[at % len(_SHADES)],
                marker=_MARKERS[at % len(_MARKERS)],
                label=tier.name,
            )
        own = {one.client: one.own for one in summary.personal if one.kept}
        theirs = [i for i, client in enumerate(ordered) if client.client in own]
        if theirs:
            axes.scatter(
                theirs,
                [own[ordered[i].client] for i in theirs],
                facecolors="none",
                edgecolors="0.3",
                label="its own model",
            )
        axes.set_title(f"{metric_name(summary.metric)} on each client's own rows")
        axes.set_xlabel("clients, the lowest first")
        axes.legend(loc="lower right")
    return svg()
