"""A latency table's pictures: what each operator costs, and where the time of models goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwnas.latency.target import Target
from hwnas.report.drawing import FFN, FULL, GREY, HEADS, drawing
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable

_SHADES = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#332288")
_MARKERS = "osD^vP"


def curves(table: LatencyTable) -> str:
    """Cost of one block's attention over heads and of its FFN over width, at every length."""
    axis = Target.parse(table.target).axis
    with drawing("curves", height=4.4) as (figure, svg):
        panels = figure.subplots(1, 2)
        for panel, op, dim, title in (
            (panels[0], "attention", "heads", "Attention of one block"),
            (panels[1], "ffn", "width", "FFN of one block"),
        ):
            for number, length in enumerate(table.lengths):
                entries = sorted(
                    (e for e in table.entries if e.op == op and e.dims[axis] == length.tokens),
                    key=lambda e, dim=dim: e.dims[dim],  # type: ignore[misc]
                )
                widths = [e.dims[dim] for e in entries]
                colour = _SHADES[number % len(_SHADES)]
                panel.fill_between(
                    widths,
                    [e.ms.p10 for e in entries],
                    [e.ms.p90 for e in entries],
                    color=colour,
                    alpha=0.15,
                    linewidth=0,
                )
                panel.plot(
                    widths,
                    [e.ms.median for e in entries],
                    color=colour,
                    marker=_MARKERS[number % len(_MARKERS)],
                    label=f"{axis} {length.tokens}",
                )
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=0)
            panel.set_title(title)
            panel.set_xlabel("heads" if op == "attention" else "FFN width (neurons)")
            panel.set_ylabel("cost (ms)")
            panel.legend(loc="upper left")
    return svg()


def breakdown(table: LatencyTable) -> str:
    """Where the time goes: the full model, half of every width, and half of the blocks."""
    shape = table.model.shape
    full = Subnetwork.full(shape)
    half_width = [[max(shape.group, b.heads // 2), max(1, b.ffn // 2)] for b in full.blocks]
    kept = -(-shape.depth // 2)
    models = {
        "full model": full,
        "half of every width": Subnetwork.of(half_width),
        "half of the blocks": Subnetwork.of(
            [*full.genome[:kept], *[[0, 0]] * (shape.depth - kept)]
        ),
    }
    predictor = table.predictor()
    shown = list(models.values())[::-1]
    with drawing("breakdown", height=2.6) as (figure, svg):
        panel = figure.add_subplot()
        rows = list(models)[::-1]
        attention, ffn = (
            np.array([float(curve.at([getattr(b, width) for b in s.blocks]).sum()) for s in shown])
            for curve, width in ((predictor.attention, "heads"), (predictor.ffn, "ffn"))
        )
        left = np.zeros(len(rows))
        for label, colour, widths in (
            ("embeddings, head and call", FULL, np.full(len(rows), predictor.fixed_ms)),
            ("attention", HEADS, attention),
            ("FFN", FFN, ffn),
            ("caches", GREY, np.array([predictor.crowded_ms(s) for s in shown])),
        ):
            panel.barh(rows, widths, left=left, color=colour, edgecolor=GREY, label=label)
            left += widths
        panel.set_xlabel("predicted latency (ms)")
        panel.set_title("Where the time goes")
        panel.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=4)
    return svg()
