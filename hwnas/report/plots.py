"""The pictures of a run's report: candidates, results, structures, importance, finalists.

Kinds and strategies look the same in all of them; see `drawing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.report.drawing import (
    DARK,
    FFN,
    FULL,
    GREY,
    HEADS,
    drawing,
    legend_below,
    legend_outside,
    logarithmic,
    looks_of,
    short,
    side_label,
)
from hwnas.report.text import metric_name
from hwnas.search.spec import Signal
from hwnas.subnetwork import Block, Subnetwork
from hwnas.summary import FRONT, Candidate, Chosen, Finalist, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hwnas.latency.parts import Validation
    from hwnas.latency.table import LatencyTable
    from hwnas.report.records import Floats

_LEGEND_BLOCKS = 12  # of as many blocks each is named
_MANY = 3000  # points from which they are drawn as an image, to keep the page small
_PARTS = ("heads", "ffn")
_SIGNALS: dict[Signal, str] = {
    "divergence": "divergence from the teacher",
    "loss": "loss on the search's validation rows",
    "metric": "100 - metric on the search's validation rows",
}


def pareto(
    candidates: Sequence[Candidate],
    chosen: Sequence[Chosen],
    baseline_ms: float,
    signal: Signal = "divergence",
) -> str:
    """Every evaluated candidate: predicted latency against the search's quality signal."""
    with drawing("pareto", height=5.2) as (figure, svg):
        axes = figure.add_subplot()
        for kind, (colour, marker) in looks_of(c.kind for c in candidates).items():
            points = [c for c in candidates if c.kind == kind]
            axes.scatter(
                [c.predicted_ms for c in points],
                [c.signal for c in points],
                s=22 if kind == "evolved" else 44,
                color=colour,
                marker=marker,
                alpha=0.6 if kind == "evolved" else 0.9,
                linewidths=0,
                label=f"{kind} ({len(points)})",
                rasterized=len(points) > _MANY,
                zorder=2 if kind == "evolved" else 3,
            )
        _front(axes, candidates)
        _budget_lines(axes, chosen)
        axes.axvline(baseline_ms, color=DARK, linewidth=1.4)
        stated = " (divergence 0)" if signal == "divergence" else ""
        side_label(axes, baseline_ms, f"baseline{stated}")
        winners = [(c, found) for c in chosen if (found := _candidate_of(c, candidates))]
        if winners:
            axes.scatter(
                [found.predicted_ms for _, found in winners],
                [found.signal for _, found in winners],
                s=260,
                marker="*",
                color="#F0E442",
                edgecolors=DARK,
                linewidths=1.2,
                label="chosen",
                zorder=5,
            )
        values = [c.signal for c in candidates]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            logarithmic(axes)
        else:
            axes.set_ylim(bottom=0)
        slowest = max([baseline_ms, *(c.predicted_ms for c in candidates)])
        axes.set_xlim(left=0, right=1.18 * slowest)
        axes.set_title("Candidates: the lower and the further left, the better")
        axes.set_xlabel("predicted latency (ms)")
        axes.set_ylabel(_SIGNALS[signal])
        legend_below(figure, axes)
    return svg()


def convergence(candidates: Sequence[Candidate]) -> str:
    """How much the front dominates after so many evaluations, of a search that budgets share.

    The box reaches from the fastest to the slowest candidate, and from the best signal to the worst
    of the first tenth, so that one bad candidate does not flatten the picture.
    """
    from pymoo.indicators.hv import HV

    points = np.array([[c.predicted_ms, c.signal] for c in candidates])
    first = points[: max(2, len(points) // 10)]
    low, high = points.min(axis=0), np.array([points[:, 0].max(), first[:, 1].max()])
    scaled = (points - low) / np.maximum(high - low, 1e-12)
    inside = np.minimum(scaled, 1.0)
    share = [float(HV(ref_point=np.ones(2))(inside[:n])) for n in range(1, len(points) + 1)]
    with drawing("convergence", height=3.4) as (figure, svg):
        axes = figure.add_subplot()
        axes.step(range(1, len(share) + 1), share, where="post", color=HEADS, linewidth=1.8)
        axes.set_xlim(left=1)
        axes.set_ylim(0, 1)
        axes.set_title("Convergence: the front's hypervolume")
        axes.set_xlabel("evaluations")
        axes.set_ylabel("share of the box")
    return svg()


def results(summary: Summary, rivals: Sequence[Summary] = ()) -> str:
    """Measured latency against the metric on the test split: baseline, chosen ones, rival runs."""
    with drawing("results", height=4.6) as (figure, svg):
        axes = figure.add_subplot()
        baseline = summary.baseline
        axes.scatter(
            [baseline.latency_ms],
            [baseline.metric],
            s=90,
            color=DARK,
            marker="o",
            label="baseline",
        )
        axes.axhline(baseline.metric, color=GREY, linewidth=1, linestyle=":")
        for strategy, (colour, marker) in looks_of(s.strategy for s in (summary, *rivals)).items():
            runs = [s for s in (summary, *rivals) if s.strategy == strategy]
            points = [c for run in runs for c in run.chosen]
            if points:
                axes.scatter(
                    [c.measured_ms for c in points],
                    [c.metric for c in points],
                    s=70,
                    color=colour,
                    marker=marker,
                    alpha=0.85,
                    linewidths=0,
                    label=strategy if len(runs) == 1 else f"{strategy} ({len(runs)} runs)",
                    zorder=3,
                )
        _budget_lines(axes, summary.chosen)
        axes.set_xlim(left=0, right=1.18 * _largest_ms(summary, rivals))
        axes.margins(y=0.25)
        axes.set_title("Results: measured on the target, scored on the test split")
        axes.set_xlabel("measured latency (ms)")
        unit = "" if summary.metric == "matthews" else " (%)"
        axes.set_ylabel(metric_name(summary.metric) + unit)
        legend_below(figure, axes)
    return svg()


def layers(chosen: Sequence[Chosen], full: Sequence[tuple[int, int]]) -> str:
    """Heads and FFN neurons of every block of the chosen subnetworks, against the full width."""
    with drawing("layers", height=0.6 + 2.5 * max(1, len(chosen))) as (figure, svg):
        grid = figure.subplots(max(1, len(chosen)), 2, squeeze=False)
        for row, c in zip(grid, chosen, strict=False):
            for part, (axes, name, colour) in enumerate(
                ((row[0], "attention heads", HEADS), (row[1], "FFN neurons", FFN))
            ):
                widths = [block[part] for block in Subnetwork.of(c.genome).blocks]
                limits = [block[part] for block in full[: len(widths)]]
                _block_bars(axes, widths, limits, colour)
                axes.set_title(f"{short(c.budget, 24)}: {name}")
                axes.set_ylabel("active")
        for axes in grid[-1]:
            axes.set_xlabel("block (0 is the first)")
    return svg()


def importance(scores: Mapping[str, Floats]) -> str:
    """Scores of every block's heads and FFN neurons, the most important first, and of the blocks.

    Args:
        scores: by name: `heads.0`, `ffn.0` and so on, `layers`.
    """
    from matplotlib import colormaps

    depth = sum(name.startswith("heads.") for name in scores)
    with drawing("importance", height=4.4) as (figure, svg):
        grid = figure.subplots(1, 3, width_ratios=(1, 1, 0.7))
        shades = colormaps["viridis"].resampled(max(2, depth))
        for axes, part, name in zip(grid, ("heads", "ffn"), ("heads", "FFN neurons"), strict=False):
            for block in range(depth):
                values = np.sort(scores[f"{part}.{block}"])[::-1]
                places = np.arange(1, len(values) + 1)
                # a curve of many points is as clear with a hundred of them
                shown = np.unique(np.linspace(0, len(values) - 1, 100).astype(int))
                axes.plot(places[shown], values[shown], color=shades(block), label=f"block {block}")
            _logarithmic_if_positive(axes, [scores[f"{part}.{i}"] for i in range(depth)])
            axes.set_title(name)
            axes.set_xlabel("rank in its block")
            axes.set_ylabel("importance")
        layers = scores.get("layers", np.zeros(0))
        grid[2].bar(range(len(layers)), layers, color=[shades(i) for i in range(len(layers))])
        grid[2].set_title("whole blocks")
        grid[2].set_xlabel("block")
        if depth <= _LEGEND_BLOCKS:
            legend_below(figure, grid[0])
    return svg()


def halves(
    scores: Mapping[str, Floats], table: LatencyTable
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """What halving the heads, or the FFN neurons, of each block alone gives up and saves.

    Args:
        scores: as for `importance`.

    Returns:
        By part, of every block: per cent of all importance, per cent of the whole model's latency.
    """
    depth = sum(name.startswith("heads.") for name in scores)
    ordered = {part: [np.sort(scores[f"{part}.{i}"]) for i in range(depth)] for part in _PARTS}
    total = sum(float(values.sum()) for blocks in ordered.values() for values in blocks) or 1.0
    predictor = table.predictor().near(table.reference_ms)

    def saved(i: int, part: str) -> float:
        heads, ffn = (len(ordered[name][i]) for name in _PARTS)
        halved = Block(heads // 2, ffn) if part == "heads" else Block(heads, ffn // 2)
        return predictor.block_ms(Block(heads, ffn)) - predictor.block_ms(halved)

    def given_up(values: Floats) -> float:
        return float(values[: len(values) - len(values) // 2].sum())

    return (
        {part: [100 * given_up(v) / total for v in ordered[part]] for part in _PARTS},
        {
            part: [100 * saved(i, part) / table.reference_ms for i in range(depth)]
            for part in _PARTS
        },
    )


def sensitivity(scores: Mapping[str, Floats], table: LatencyTable) -> str:
    """`halves` of every block, side by side."""
    titles = ("importance given up (% of all)", "time saved (% of the whole model's)")
    bars = list(zip(titles, halves(scores, table), strict=True))
    depth = len(bars[0][1]["heads"])
    with drawing("sensitivity", height=3.6) as (figure, svg):
        places = np.arange(depth)
        styles = (
            ("heads", -0.2, HEADS, "half the heads"),
            ("ffn", 0.2, FFN, "half the FFN neurons"),
        )
        for axes, (title, of) in zip(figure.subplots(1, 2), bars, strict=True):
            for part, shift, colour, label in styles:
                axes.bar(places + shift, of[part], width=0.4, color=colour, label=label)
            axes.set_title(title)
            axes.set_xlabel("block")
            axes.set_xticks(places if depth <= _LEGEND_BLOCKS else places[::4])
        legend_below(figure, axes)
    return svg()


def _logarithmic_if_positive(axes: Axes, values: Sequence[Floats]) -> None:
    together = np.concatenate(values) if values else np.zeros(0)
    if together.size and together.max() > 0:
        axes.set_yscale("log", nonpositive="clip")


def validation(found: Validation) -> str:
    """Whole networks that the table had not seen: predicted against measured latency."""
    measured = [row.measured_ms for row in found.rows]
    predicted = [row.predicted_ms for row in found.rows]
    by_flops = [row.flops_ms for row in found.rows]
    with drawing("validation", height=5.0) as (figure, svg):
        axes = figure.add_subplot()
        top = 1.08 * max(*measured, *predicted, *by_flops)
        axes.plot([0, top], [0, top], color=GREY, linewidth=1, linestyle="--", label="equal")
        for values, label, filled in (
            (by_flops, f"line through FLOPs (off by {found.flops_mape:.1f} %)", False),
            (predicted, f"table (off by {found.mape:.1f} %)", True),
        ):
            axes.scatter(
                measured,
                values,
                s=44,
                marker="o" if filled else "s",
                facecolors=HEADS if filled else "none",
                edgecolors=HEADS if filled else FFN,
                alpha=0.85,
                label=label,
            )
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_aspect("equal")
        axes.set_title("Latency table: predicted against measured")
        axes.set_xlabel("measured latency (ms)")
        axes.set_ylabel("predicted latency (ms)")
        legend_outside(axes)
    return svg()


def finalists(records: Sequence[Finalist]) -> str:
    """The successive halving of each budget: validation loss after every rung."""
    groups = list(dict.fromkeys((f.budget, f.round) for f in records))
    several = any(number > 1 for _, number in groups)
    with drawing("finalists", height=0.9 + 3.0 * max(1, len(groups))) as (figure, svg):
        grid = figure.subplots(max(1, len(groups)), 1, squeeze=False)
        looks = looks_of(f.kind for f in records)
        for (axes,), (budget, number) in zip(grid, groups, strict=False):
            here = [f for f in records if (f.budget, f.round) == (budget, number)]
            for path in _paths(here):
                colour, marker = looks[path[0].kind]
                axes.plot(
                    [f.steps for f in path],
                    [f.loss for f in path],
                    color=colour,
                    marker=marker,
                    markersize=7,
                    linestyle="--" if path[0].start == "teacher" else "-",
                    label=f"{path[0].kind}, from the {path[0].start}",
                )
                if not path[-1].survived:
                    axes.annotate(
                        "out",
                        (path[-1].steps, path[-1].loss),
                        xytext=(9, 0),
                        textcoords="offset points",
                        va="center",
                        color=GREY,
                    )
            title = f"{short(budget, 24)}: finalists, the lower the better"
            axes.set_title(f"{title} (round {number})" if several else title)
            axes.set_xlabel("training steps of the finalist")
            axes.set_ylabel("validation loss")
            axes.margins(x=0.08, y=0.15)
            legend_outside(axes)
    return svg()


def _block_bars(axes: Axes, widths: Sequence[int], limits: Sequence[int], colour: str) -> None:
    """Bars of the active widths before bars of the full ones; a block left out says so."""
    places = range(len(widths))
    crowded = len(widths) > 12
    axes.bar(places, limits, width=0.8, color=FULL)
    axes.bar(places, widths, width=0.8, color=colour)
    top = max(limits, default=1) or 1
    for place, width in zip(places, widths, strict=True):
        axes.text(
            place,
            width + 0.02 * top if width else 0.04 * top,
            str(width) if width else "left out",
            ha="center",
            va="bottom",
            rotation=90 if crowded or not width else 0,
            fontsize=8 if crowded else 9.5,
            color=DARK,
        )
    axes.set_ylim(0, 1.3 * top if crowded else 1.15 * top)
    axes.grid(False)
    axes.set_xticks([p for p in places if not crowded or p % 4 == 0])


def _paths(records: Sequence[Finalist]) -> list[list[Finalist]]:
    """The records of each finalist, its rungs in order."""
    paths: dict[tuple[str, str, str], list[Finalist]] = {}
    for f in sorted(records, key=lambda f: f.rung):
        paths.setdefault((f.kind, f.start, str(f.genome)), []).append(f)
    return list(paths.values())


def _candidate_of(chosen: Chosen, candidates: Sequence[Candidate]) -> Candidate | None:
    """The last evaluation of the chosen subnetwork, if the search looked at it."""
    budgets = (chosen.budget, FRONT)
    same = [c for c in candidates if c.genome == chosen.genome and c.budget in budgets]
    return max(same, key=lambda c: c.round, default=None)


def _front(axes: Axes, candidates: Sequence[Candidate]) -> None:
    """The staircase of candidates that no other one beats in both."""
    best: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.predicted_ms, c.signal)):
        if not best or c.signal < best[-1].signal:
            best.append(c)
    if len(best) > 1:
        axes.step(
            [c.predicted_ms for c in best],
            [c.signal for c in best],
            where="post",
            color=GREY,
            linewidth=1.2,
            label="Pareto front",
            zorder=1,
        )


def _budget_lines(axes: Axes, chosen: Sequence[Chosen]) -> None:
    for c in chosen:
        axes.axvline(c.budget_ms, color="#B00020", linewidth=1.2, linestyle="--")
        side_label(axes, c.budget_ms, f"budget {short(c.budget, 16)}")


def _largest_ms(summary: Summary, rivals: Sequence[Summary]) -> float:
    runs = (summary, *rivals)
    return max(
        *(s.baseline.latency_ms for s in runs),
        *(value for s in runs for c in s.chosen for value in (c.measured_ms, c.budget_ms)),
        0.0,
    )
