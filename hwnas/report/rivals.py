"""The searched models beside their rivals: runs of other strategies and seeds, averaged.

Runs are compared only if model, task, metric and target are the same; whether they spent the same
compute is shown, not assumed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from hwnas.errors import UserError
from hwnas.report.records import read_summary
from hwnas.report.text import compute_total, metric_name
from hwnas.summary import Chosen, Summary

_ORDER = ("search", "uniform", "layers")  # the rest after these, by name


@dataclass(frozen=True)
class RivalRow:
    """Means over the seeds of one strategy at one budget."""

    budget: str
    strategy: str
    seeds: tuple[int, ...]
    metric: float
    metric_sd: float | None  # between seeds; None for a single one
    kept: float
    measured_ms: float
    ratio: float
    params: float
    compute: float  # full-model steps of all stages but the baseline's, all budgets of the run
    all_met: bool


def read_rivals(run: Path, summary: Summary, rivals: Sequence[Path]) -> list[Summary]:
    """The summaries of the other runs, each once, without `run` itself.

    Raises:
        UserError: a rival has no summary, or cannot be compared with `summary`.
    """
    seen = {run.resolve()}
    summaries = []
    for path in rivals:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        rival = read_summary(path)
        for field in ("model", "task", "metric", "target"):
            mine, theirs = getattr(summary, field), getattr(rival, field)
            if mine != theirs:
                raise UserError(
                    f"{path}: its {field} is {theirs!r}, but {run} has {mine!r}; "
                    "give only runs of the same model, task and target"
                )
        summaries.append(rival)
    return summaries


def compare(summaries: Sequence[Summary]) -> list[RivalRow]:
    """One row for each budget and strategy, budgets in the order of their first run."""
    groups: dict[tuple[str, str], list[tuple[Summary, Chosen]]] = defaultdict(list)
    budgets: dict[str, None] = {}
    for summary in summaries:
        for chosen in summary.chosen:
            budgets.setdefault(chosen.budget)
            groups[chosen.budget, summary.strategy].append((summary, chosen))
    place = {budget: i for i, budget in enumerate(budgets)}
    keys = sorted(groups, key=lambda key: (place[key[0]], _rank(key[1])))
    return [_row(budget, strategy, groups[budget, strategy]) for budget, strategy in keys]


def findings(rows: Sequence[RivalRow], metric: str) -> list[str]:
    """For each budget with a searched model and rivals: how far apart they are."""
    sentences = []
    for budget in dict.fromkeys(row.budget for row in rows):
        here = [row for row in rows if row.budget == budget]
        searched = next((row for row in here if row.strategy == "search"), None)
        others = [row for row in here if row.strategy != "search"]
        if searched is None or not others:
            continue
        best = max(others, key=lambda row: row.metric)
        difference = searched.metric - best.metric
        verdict = "ahead" if difference > 0 else "behind" if difference < 0 else "apart"
        sentences.append(
            f"Budget {budget}: search has a mean {metric_name(metric)} of {searched.metric:.1f} "
            f"({_runs(searched)}), the best rival, {best.strategy}, {best.metric:.1f} "
            f"({_runs(best)}): search is {abs(difference):.1f} points {verdict}"
            f"{_doubt(searched, best)}"
        )
    return sentences


def _doubt(one: RivalRow, other: RivalRow) -> str:
    """How far chance alone would put two means apart, as far as the seeds tell."""
    if one.metric_sd is None or other.metric_sd is None:
        return "; a single run says little, the same structure trained twice differs too."
    variances = (row.metric_sd**2 / len(row.seeds) for row in (one, other) if row.metric_sd)
    return f" (standard error of the difference, from the seeds: {math.sqrt(sum(variances)):.1f})."


def _runs(row: RivalRow) -> str:
    return "1 run" if len(row.seeds) == 1 else f"{len(row.seeds)} runs"


def _rank(strategy: str) -> tuple[int, str]:
    return (_ORDER.index(strategy) if strategy in _ORDER else len(_ORDER), strategy)


def _row(budget: str, strategy: str, runs: list[tuple[Summary, Chosen]]) -> RivalRow:
    metrics = [chosen.metric for _, chosen in runs]
    return RivalRow(
        budget=budget,
        strategy=strategy,
        seeds=tuple(sorted(summary.seed for summary, _ in runs)),
        metric=fmean(metrics),
        metric_sd=stdev(metrics) if len(metrics) > 1 else None,
        kept=fmean(chosen.kept for _, chosen in runs),
        measured_ms=fmean(chosen.measured_ms for _, chosen in runs),
        ratio=fmean(chosen.ratio for _, chosen in runs),
        params=fmean(chosen.params for _, chosen in runs),
        compute=fmean(compute_total(summary.compute) for summary, _ in runs),
        all_met=all(chosen.met for _, chosen in runs),
    )
