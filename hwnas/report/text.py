"""Figures and findings in words, the same in the terminal, the report and on model cards."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hwnas.latency.target import Target
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.summary import BesideScore, Chosen, Compute, Summary

if TYPE_CHECKING:
    from hwnas.latency.compare import Comparison
    from hwnas.latency.parts import AtLength
    from hwnas.latency.table import LatencyTable

NO_CHOICE = "No smaller model was chosen: no budget was met."

# of the task's metric, as the recipe names it; all are scored times 100
_METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "f1_macro": "macro F1",
    "matthews": "Matthews correlation (x 100)",
    "accuracy_norm": "accuracy (by likelihood for each byte)",
    "token_accuracy": "accuracy of next tokens",
    "exact_match": "exact answers",
}
_SHARES = ("accuracy", "f1", "f1_macro", "accuracy_norm", "token_accuracy", "exact_match")

_OF_EXAMPLES = ("accuracy", "accuracy_norm", "exact_match")  # shares of the examples


def metric_name(metric: str) -> str:
    """The metric's name for people."""
    return _METRIC_NAMES.get(metric, metric)


def metric_value(metric: str, value: float) -> str:
    """`73.4 %`, or without the sign where the metric is no share."""
    return f"{value:.1f} %" if metric in _SHARES else f"{value:.1f}"


def percent(share: float) -> str:
    """A share as `99.1 %`."""
    return f"{100 * share:.1f} %"


def milliseconds(value: float) -> str:
    """Three significant digits and the unit: `8.14 ms`, `0.0512 ms`, `121 ms`."""
    if value <= 0 or not math.isfinite(value):
        return f"{value:g} ms"
    decimals = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{decimals}f} ms"


def count(value: float) -> str:
    """Three significant digits with a unit prefix: `22.7 M`, `1.36 G`, `950`."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f} {letter}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def space_size(space: SearchSpace | None, table: LatencyTable | None) -> str | None:
    """How many subnetworks the search could choose from, and how many there would be in all."""
    if space is None:
        return None
    found = f"The search could choose from {_power(space.size())} subnetworks"
    if table is None:
        return f"{found}."
    whole = SearchSpace.whole(table.model.shape)
    if space.size() == whole.size():
        return f"{found}: every width that the model has, in the usual steps."
    return f"{found}; with every width that the model has there would be {_power(whole.size())}."


def _power(count: int) -> str:
    """`3,200` or `4 × 10^21`."""
    if count < 10**6:
        return f"{count:,}"
    exponent = len(str(count)) - 1
    return f"{count // 10**exponent} × 10^{exponent}"


def structure(genome: list[list[int]]) -> str:
    """`5 of 6 blocks, 4-9 heads, FFN 480-864`; and `, residual width 288` if it is narrower."""
    subnetwork = Subnetwork.of(genome)
    blocks = f"{subnetwork.depth} of {len(subnetwork.blocks)} blocks"
    if not subnetwork.kept:
        return blocks
    heads, ffn = zip(*(block for _, block in subnetwork.kept), strict=True)
    residual = f", residual width {subnetwork.hidden}" if subnetwork.hidden else ""
    return f"{blocks}, {_span(heads)} heads, FFN {_span(ffn)}{residual}"


def served_at(target: Target) -> str:
    """`onnxruntime int8-dynamic, 2 threads`."""
    threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
    return f"{target.runtime} {target.precision}, {threads}"


def _span(values: tuple[int, ...]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def largest_parity(chosen: Chosen) -> tuple[str, float] | None:
    """The exported format whose logits differ most from torch's, and by how much."""
    return max(chosen.parity.items(), key=lambda item: item[1]) if chosen.parity else None


def headline(summary: Summary) -> str:
    """The result in one or two sentences, misses included."""
    name = metric_name(summary.metric)
    met = [c for c in summary.chosen if c.met]
    missed = [c for c in summary.chosen if not c.met]
    sentences = []
    if met:
        parts = [f"at {c.ratio:.2f} of the baseline's latency, {percent(c.kept)}" for c in met]
        parts[0] = f"{parts[0]} of its {name}"
        sentence = "; ".join(parts) + "."
        sentences.append(sentence[0].upper() + sentence[1:])
    for c in missed:
        if c.measured_ms <= c.budget_ms:
            sentences.append(f"{why_missed(c)}.")
            continue
        sentences.append(
            f"Budget {c.budget} was NOT met: {milliseconds(c.measured_ms)} measured, "
            f"{milliseconds(c.budget_ms)} allowed."
        )
    return " ".join(sentences) or NO_CHOICE


def trust(table: LatencyTable) -> str:
    """How far the table's predictions can be trusted, by its validation."""
    found = table.validation
    if found is None:
        return (
            "The table was not validated on unseen networks; "
            "profile with --validate N to see how far to trust its predictions."
        )
    side = "slow" if found.bias > 0 else "fast"
    sentences = [
        f"On {found.n} subnetworks that the table had not seen, its predictions are off by "
        f"{found.mape:.1f} % in the mean, {abs(found.bias):.1f} % too {side} on the whole, and "
        f"rank them with a Kendall tau of {found.kendall_tau:.2f}.",
        f"The same networks measured twice differ by {found.noise:.1f} %, which is the machine's "
        "own noise.",
        f"A straight line through FLOPs is off by {found.flops_mape:.1f} %.",
    ]
    if found.coverage_90 is not None:
        sentences.append(
            f"{percent(found.coverage_90)} of the measurements lie in the 90 % intervals."
        )
    return " ".join(sentences)


def length_name(table: LatencyTable, length: AtLength) -> str:
    """`64 tokens`, or `cache of 512 tokens`, with its share of the requests if there are others."""
    cached = Target.parse(table.target).phase == "decode"
    name = f"cache of {length.tokens} tokens" if cached else f"{length.tokens} tokens"
    return name if len(table.lengths) == 1 else f"{name}, {percent(length.share)}"


def comparison(found: Comparison) -> str:
    """What two tables say of the same networks, in a sentence or two."""
    return (
        f"At {found.axis} {found.tokens}, the second table's latencies are {found.scale:.2f} of "
        f"the first's; apart from that they differ by {found.apart:.1f} % in the mean and rank "
        f"networks with a Kendall tau of {found.kendall_tau:.2f}, and a single operator's cost "
        f"differs by {percent(found.drift)} in the median."
    )


def machine(table: LatencyTable) -> list[tuple[str, str]]:
    """What was measured, on what and how, as name and value."""
    device, protocol = table.device, table.protocol
    clock = "processor time" if protocol.clock == "process" else "wall time"
    origin = table.adapted_from
    adapted = []
    if origin is not None:
        factors = ", ".join(f"{op} x {factor:.2f}" for op, factor in origin.scales.items())
        adapted = [
            (
                "adapted",
                f"from {origin.target} on {origin.device.gpu or origin.device.cpu} ({factors}) by "
                f"{origin.networks} networks timed here",
            )
        ]
    return [
        ("model", str(table.model)),
        ("target", table.target),
        *([("GPU", device.gpu)] if device.gpu else []),
        ("processor", f"{device.cpu}, {device.cores} logical cores"),
        ("instructions", " ".join(device.flags) or "none of those that fast kernels need"),
        ("frequency governor", device.governor or "unknown"),
        ("memory", f"{device.memory_gb:.1f} GB"),
        ("system", device.system),
        ("versions", ", ".join(f"{name} {number}" for name, number in table.versions.items())),
        (
            "protocol",
            f"{protocol.networks} networks, {protocol.pairs} pairs for each, {clock}, against "
            f"{protocol.reference}; {duration(protocol.seconds)} in all",
        ),
        ("noise of pairs", percent(protocol.spread)),
        *adapted,
        *(("warning", warning) for warning in protocol.warnings),
    ]


def compute_total(compute: Compute) -> float:
    """Full-model steps of the smaller models: super-network, search and finalists."""
    return compute.supernet + compute.search + compute.finalists


def why_missed(chosen: Chosen) -> str:
    """What a chosen model exceeds in the end: `50%: 41.2 MB in the end, 40 MB are allowed`."""
    over = []
    if chosen.max_size_mb is not None and chosen.size_mb > chosen.max_size_mb:
        over.append(f"{chosen.size_mb:.1f} MB in the end, {chosen.max_size_mb:g} MB are allowed")
    over += [
        f"{one.name} {one.value:.3g} {one.unit} in the end, {one.most:.3g} are allowed"
        for one in chosen.limits
        if one.value > one.most
    ]
    if chosen.measured_ms > chosen.budget_ms or not over:
        over.append("measured above the budget in the end")
    return f"{chosen.budget}: {', '.join(over)}"


def beside(score: BesideScore) -> str:
    """How models do on further data: `wikitext: perplexity 21.3, …`."""
    shown = metric_name(score.metric)
    by_budget = ", ".join(f"{budget} {value:.1f}" for budget, value in score.chosen.items())
    return (
        f"{score.name} ({score.rows} of {score.of} rows, {shown}): original {score.original:.1f}, "
        f"baseline {score.baseline:.1f}, {by_budget}"
    )


def standard_error(summary: Summary) -> float | None:
    """Of the baseline's accuracy on the test split, in points; None for other metrics."""
    examples = summary.splits.get("test", 0)
    share = summary.baseline.metric / 100
    if summary.metric not in _OF_EXAMPLES or examples <= 0 or not 0 <= share <= 1:
        return None
    return 100 * math.sqrt(share * (1 - share) / examples)
