"""Two tables of one model side by side, and several joined to one.

Tables of different machines, runtimes, versions or precisions answer the same question where they
predict the same networks: are they in proportion (then one serves for the other, scaled), and do
they rank networks alike? Tables of one machine and target that were measured at different lengths,
or at different times, join to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwnas.errors import UserError
from hwnas.files import validate
from hwnas.latency.parts import (
    AtLength,
    Entry,
    Milliseconds,
    Narrower,
)
from hwnas.latency.plan import whole_networks
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.table import LatencyTable, stated_reference
from hwnas.latency.target import Length, Target
from hwnas.subnetwork import genomes

_NETWORKS = 200  # on which two tables are compared
_SEED = 1
_SHARE = 0.5  # of the full model's weights, that a network has whose operators' costs are compared
_WIDTH_OF = {"pressure": "weights", "attention": "heads", "ffn": "width"}


@dataclass(frozen=True)
class CostPair:
    """One operator's cost in both tables, ms, in a network of half the full model's weights.

    What these cost by their pressure on the caches is part of it: how much of a cost is pressure
    is less certain than their sum.
    """

    op: str
    width: int | None  # heads or neurons; None for what every network costs
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """What two tables say of the same networks, at one length.

    Attributes:
        scale: median over networks of the second table's latency by the first's.
        apart: per cent, mean distance of the second's latencies from the first's times `scale`.
        kendall_tau: whether they rank networks alike.
        drift: median over operators of how far the second's cost is from the first's times `scale`.
    """

    tokens: int
    axis: str
    costs: tuple[CostPair, ...]
    scale: float
    apart: float
    kendall_tau: float
    drift: float


def compare(first: LatencyTable, second: LatencyTable) -> list[Comparison]:
    """Compare two tables at every length that both have.

    Raises:
        UserError: they are of different models, or have no length in common.
    """
    second.check_model(first.model.shape)
    targets = [Target.parse(table.target) for table in (first, second)]
    shared = [
        length.tokens
        for length in first.lengths
        if length.tokens in {other.tokens for other in second.lengths}
    ]
    if targets[0].axis != targets[1].axis or not shared:
        raise UserError(
            f"tables of {first.target} and {second.target} have no length in common; "
            "profile one at a length of the other"
        )
    return [_at(first, second, tokens, targets[0].axis) for tokens in shared]


def _at(first: LatencyTable, second: LatencyTable, tokens: int, axis: str) -> Comparison:
    from scipy.stats import kendalltau

    networks = genomes(whole_networks(first.model.shape, _NETWORKS, _SEED))
    one, two = (table.predictor_at(tokens) for table in (first, second))
    mine, theirs = one.predict_many(networks), two.predict_many(networks)
    scale = float(np.median(theirs / mine))
    one, two = one.at_share(_SHARE), two.at_share(_SHARE)
    costs = [CostPair("fixed", None, one.fixed_ms, two.fixed_ms)]
    for op, here, there in (("attention", one.attention, two.attention), ("ffn", one.ffn, two.ffn)):
        for width in sorted({*here.widths, *there.widths}):
            costs.append(CostPair(op, int(width), float(here.at(width)), float(there.at(width))))
    drifts = [abs(cost.second / (scale * cost.first) - 1) for cost in costs if cost.first > 0]
    return Comparison(
        tokens=tokens,
        axis=axis,
        costs=tuple(costs),
        scale=scale,
        apart=float(100 * np.mean(np.abs(theirs / (scale * mine) - 1))),
        kendall_tau=float(kendalltau(mine, theirs).statistic),
        drift=float(np.median(drifts)),
    )


def merge(tables: Sequence[LatencyTable]) -> LatencyTable:
    """One table of all the lengths of several that are of one model, machine and target.

    Each table's requests count alike. Costs that several have measured are averaged, each weighing
    as many networks as it was fitted to. The record of a check is not kept, for it is of another
    table.

    Raises:
        UserError: fewer than two tables, or they differ in more than their lengths.
    """
    if len(tables) < 2:
        raise UserError("merge: two tables or more are needed")
    first = tables[0]
    for number, table in enumerate(tables[1:], start=2):
        _check_alike(first, table, number)
    parts = {
        tokens: [t for t in tables if tokens in {length.tokens for length in t.lengths}]
        for tokens in sorted({length.tokens for t in tables for length in t.lengths})
    }
    shares = {
        tokens: sum(_length(t, tokens).share for t in of) / len(tables)
        for tokens, of in parts.items()
    }
    target = _with_lengths(Target.parse(first.target), shares)
    lengths = tuple(_joined_length(of, tokens, shares[tokens]) for tokens, of in parts.items())

    def entries_at(hidden: int) -> tuple[Entry, ...]:
        """Joined, at this residual width."""
        return tuple(
            entry
            for (tokens, of), length in zip(parts.items(), lengths, strict=True)
            for entry in _joined_entries(
                [t.at_hidden(hidden) for t in of], tokens, target.axis, length.reference_ms
            )
        )

    joined = first.model_copy(
        update={
            "target": str(target),
            "protocol": first.protocol.model_copy(
                update={
                    "networks": sum(t.protocol.networks for t in tables),
                    "spread": max(t.protocol.spread for t in tables),
                    "seconds": sum(t.protocol.seconds for t in tables),
                    "warnings": tuple(
                        dict.fromkeys(w for t in tables for w in t.protocol.warnings)
                    ),
                }
            ),
            "lengths": lengths,
            "entries": entries_at(0),
            "narrower": tuple(
                Narrower(hidden=part.hidden, entries=entries_at(part.hidden))
                for part in first.narrower
            ),
            "interval_90": max(
                (t.interval_90 for t in tables if t.interval_90 is not None), default=None
            ),
            "validation": None,
        }
    )
    value = joined.model_dump() | {"reference_ms": stated_reference(lengths, target)}
    return validate(LatencyTable, value, where="merge")


def _check_alike(first: LatencyTable, table: LatencyTable, number: int) -> None:
    table.check_model(first.model.shape)
    for what in ("device", "versions", "adapted_from"):
        mine, theirs = getattr(first, what), getattr(table, what)
        if mine != theirs:
            raise UserError(
                f"merge: table {number} is of another {what} than the first: {theirs}; "
                "compare them, or adapt one"
            )
    widths = [sorted(part.hidden for part in t.narrower) for t in (first, table)]
    if widths[0] != widths[1]:
        raise UserError(
            f"merge: table {number} has narrower residual widths {widths[1]}, the first "
            f"{widths[0]}; profile both with the same --hidden"
        )
    sides = [replace(Target.parse(t.target), mix=(), seq=1, cache=1) for t in (first, table)]
    if sides[0] != sides[1]:
        raise UserError(
            f"merge: table {number} is of {table.target}, the first of {first.target}; "
            "only lengths may differ"
        )


def _length(table: LatencyTable, tokens: int) -> AtLength:
    return next(length for length in table.lengths if length.tokens == tokens)


def _with_lengths(target: Target, shares: dict[int, float]) -> Target:
    """The target with another mix; its text is read again, which checks it."""
    mix = tuple(Length(tokens, share) for tokens, share in shares.items())
    longest = {target.axis: mix[-1].tokens}
    whole = Target(**(vars(target) | longest | {"mix": mix if len(mix) > 1 else ()}))
    return Target.parse(str(whole))


def _joined_length(tables: Sequence[LatencyTable], tokens: int, share: float) -> AtLength:
    lengths = [_length(t, tokens) for t in tables]
    weights = _weights(tables)
    quantiles = None
    if lengths[0].quantiles is not None:
        quantiles = {
            q: float(np.dot(weights, [(length.quantiles or {}).get(q, f) for length in lengths]))
            for q, f in lengths[0].quantiles.items()
        }
    return AtLength(
        tokens=tokens,
        share=share,
        reference_ms=float(np.dot(weights, [length.reference_ms for length in lengths])),
        quantiles=quantiles,
    )


def _weights(tables: Sequence[LatencyTable]) -> list[float]:
    networks = [table.protocol.networks for table in tables]
    return [n / sum(networks) for n in networks]


def _cost(predictor: LatencyPredictor, op: str, width: int | None) -> float:
    if width is None:
        return predictor.fixed_ms
    return float(getattr(predictor, op).at(width))


def _joined_entries(
    tables: Sequence[LatencyTable], tokens: int, axis: str, reference_ms: float
) -> list[Entry]:
    """The mean of the tables' costs, at every width that one of them has."""
    predictors = [table.predictor_at(tokens) for table in tables]
    weights = _weights(tables)
    here = [[e for e in table.entries if e.dims[axis] == tokens] for table in tables]

    def joined(op: str, width: int | None) -> Entry:
        costs = [_cost(p, op, width) for p in predictors]
        spreads = [
            (e.ms.p10 / e.ms.median, e.ms.p90 / e.ms.median)
            for entries in here
            for e in entries
            if e.ms.median > 0
        ]
        ms = float(np.dot(weights, costs))
        low, high = np.median(spreads, axis=0) if spreads else (1.0, 1.0)
        dims = {} if width is None else {_WIDTH_OF[op]: width}
        same = [e for of in here for e in of if e.op == op and dims.items() <= e.dims.items()]
        return Entry(
            op=op,
            dims=dims | {axis: tokens},
            ms=Milliseconds(median=ms, p10=ms * min(1.0, low), p90=ms * max(1.0, high)),
            ratio_to_reference=ms / reference_ms,
            samples=sum(e.samples for e in same),
        )

    widths = {
        op: sorted({e.dims[dim] for entries in here for e in entries if e.op == op})
        for op, dim in _WIDTH_OF.items()
    }
    return [
        joined("fixed", None),
        *(joined(op, w) for op, of in widths.items() for w in of),
    ]
