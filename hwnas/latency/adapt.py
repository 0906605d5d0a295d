"""A table of a similar machine, runtime or version, scaled to this one by a few measurements.

What a network costs here is taken to be what its fixed part, its attention, its FFNs and its
weights' pressure on the caches cost there, each times a factor of its own. The factors are fitted
to a handful of networks that tell them apart; where these say little, all stay near their common
ratio. Unseen networks,
timed here, say how well that worked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.anatomy import find_shape
from hwnas.errors import UserError
from hwnas.latency.graphs import builder
from hwnas.latency.measure import clock_of
from hwnas.latency.parts import (
    Adaptation,
    AtLength,
    Entry,
    Machine,
    Milliseconds,
    Narrower,
    Protocol,
)
from hwnas.latency.pinning import pinned
from hwnas.latency.plan import Plan
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.profiling import check_phase, config_of, quantiles_of
from hwnas.latency.session import COMPILATIONS, PAIRS_EACH, Measurement, Stopwatch, check
from hwnas.latency.table import LatencyTable, stated_reference
from hwnas.latency.target import Target
from hwnas.latency.validation import validated
from hwnas.progress import bar
from hwnas.subnetwork import Block, Subnetwork

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_STIFF = 0.02  # how much the factors keep together, as the relative error that is worth as much


@dataclass(frozen=True)
class Factors:
    """Costs here over costs there."""

    fixed: float
    attention: float
    ffn: float
    pressure: float


def adapt(
    table: LatencyTable,
    model: PretrainedConfig | str,
    target: Target | str | None = None,
    *,
    validate: int = 4,
    seed: int = 0,
) -> LatencyTable:
    """The table for this machine, from a tenth of the measurements that a profile takes.

    Args:
        table: of the same model sizes, measured elsewhere.
        model: its config or name, as `profile` takes it.
        target: of this machine; by default the table's. Its lengths must be the table's.
        validate: unseen networks to check it on.
        seed: chooses these.

    Raises:
        UserError: the table is of another model, or the target of other lengths.
    """
    wanted = Target.parse(target) if isinstance(target, str) else target
    wanted = wanted or Target.parse(table.target)
    _check_lengths(table, wanted)
    config = config_of(model)
    shape = find_shape(config)
    table.check_model(shape)
    check_phase(shape, wanted)
    plan = Plan.of(shape, validate, seed, wanted.phase)
    machine = Machine.here(wanted)
    networks = telling_networks(plan)
    build = builder(config, wanted)
    with pinned(wanted):
        stopwatch = Stopwatch(build, wanted, plan.full)
        begin = time.perf_counter()
        measured = []
        with bar("measure a few networks", len(networks)) as advance:
            for subnetwork in networks:
                measured.append(stopwatch.time(subnetwork, 2 * PAIRS_EACH, COMPILATIONS))
                advance(1)
        seconds = time.perf_counter() - begin
        with bar("check the table", 2 * len(plan.unseen)) as advance:
            unseen = check(plan, stopwatch, advance)
    adapted = scaled_table(table, measured, wanted, machine, seconds)
    beside = [length.reference_ms for length in adapted.lengths]
    found = validated(adapted, plan, unseen, beside)
    if found.interval_90 is None or found.validation is None:
        return found
    # scaling adds an error of its own, which so few networks bound from below only
    off = [abs(row.measured_ms / row.predicted_ms - 1) for row in found.validation.rows]
    wider = adapted.model_copy(update={"interval_90": max(found.interval_90, *off)})
    return validated(wider, plan, unseen, beside)


def telling_networks(plan: Plan) -> list[Subnetwork]:
    """Three networks beside the full one: wide attention, wide FFNs, and few blocks."""
    heads, ffn = plan.heads, plan.ffn
    depth = len(plan.full.blocks)
    return list(
        dict.fromkeys(
            [
                plan.stack(Block(heads[-1], ffn[len(ffn) // 4]), depth),
                plan.stack(Block(heads[len(heads) // 4], ffn[-1]), depth),
                plan.stack(plan.middle, max(1, depth // 3)),
            ]
        )
    )


def scaled_table(
    table: LatencyTable,
    measured: Sequence[Measurement],
    target: Target,
    machine: Machine,
    seconds: float,
) -> LatencyTable:
    """The table's costs times the factors that the measurements ask for, at each length.

    Args:
        measured: networks timed beside the full model.
    """
    lengths: list[AtLength] = []
    entries: list[Entry] = []
    narrower: dict[int, list[Entry]] = {part.hidden: [] for part in table.narrower}
    found: list[Factors] = []
    for point, length in enumerate(table.lengths):
        ms = float(np.median([m.points[point].reference_ms for m in measured]))
        ms = max([ms, *(shorter.reference_ms for shorter in lengths)])
        networks = {Subnetwork.full(table.model.shape): ms} | {
            m.subnetwork: m.points[point].ratio * ms for m in measured
        }
        factors = fit_factors(table.predictor_at(length.tokens), networks)
        found.append(factors)
        update = {"reference_ms": ms, "quantiles": quantiles_of(measured, point, target)}
        lengths.append(length.model_copy(update=update))
        at = (target.axis, length.tokens)
        entries += _scaled_entries(table.entries, at, factors, ms)
        for part in table.narrower:
            narrower[part.hidden] += _scaled_entries(part.entries, at, factors, ms)
    origin = Adaptation(
        device=table.device,
        target=table.target,
        versions=table.versions,
        scales={
            op: float(np.mean([getattr(f, op) for f in found]))
            for op in dict.fromkeys(entry.op for entry in table.entries)
        },
        networks=len(measured),
    )
    changed: dict[str, Any] = {
        "target": str(target),
        "device": machine.device,
        "versions": machine.versions,
        "protocol": Protocol(
            pairs=2 * PAIRS_EACH,
            networks=len(measured),
            clock="process" if clock_of(target) is time.process_time else "wall",
            reference="the full model with random weights, several compilations in turns",
            spread=float(np.median([p.ratio_spread / p.ratio for m in measured for p in m.points])),
            seconds=max(seconds, 1e-3),
            warnings=machine.warnings,
        ),
        "lengths": tuple(lengths),
        "entries": tuple(entries),
        "narrower": tuple(Narrower(hidden=h, entries=tuple(e)) for h, e in narrower.items()),
        "adapted_from": origin,
        "validation": None,
    }
    changed["reference_ms"] = stated_reference(lengths, target)
    return LatencyTable(**(dict(table) | changed))


def _scaled_entries(
    entries: Sequence[Entry], at: tuple[str, int], factors: Factors, reference_ms: float
) -> list[Entry]:
    """Those of the entries at one length, with the costs here."""
    axis, tokens = at
    found = []
    for entry in entries:
        if entry.dims[axis] == tokens:
            factor = getattr(factors, entry.op)
            scaled = Milliseconds(
                median=entry.ms.median * factor,
                p10=entry.ms.p10 * factor,
                p90=entry.ms.p90 * factor,
            )
            share = {"ratio_to_reference": scaled.median / reference_ms}
            found.append(entry.model_copy(update=share | {"ms": scaled}))
    return found


def fit_factors(there: LatencyPredictor, networks: Mapping[Subnetwork, float]) -> Factors:
    """Factors on each part, by relative least squares, none negative.

    Args:
        there: the table's predictor.
        networks: their latency here, ms.
    """
    from scipy.optimize import nnls

    rows = np.array([_parts(there, subnetwork) for subnetwork in networks])
    ms = np.array(list(networks.values()))
    common = float(np.median(ms / rows.sum(axis=1)))
    # each factor near the common one, as if that had been measured too
    stiff = _STIFF * np.eye(rows.shape[1])
    columns = np.concatenate([rows * common / ms[:, None], stiff])
    wanted = np.concatenate([np.ones(len(ms)), stiff.sum(axis=1)])
    factors, _ = nnls(columns, wanted)
    return Factors(*(float(common * max(f, 1e-3)) for f in factors))


def _parts(predictor: LatencyPredictor, subnetwork: Subnetwork) -> tuple[float, ...]:
    """The fixed, attention's, FFN's and caches' part of a network's latency, ms."""
    kept = [block for _, block in subnetwork.kept]
    attention = predictor.attention.at([block.heads for block in kept])
    ffn = predictor.ffn.at([block.ffn for block in kept])
    crowded = predictor.crowded_ms(subnetwork)
    return predictor.fixed_ms, float(attention.sum()), float(ffn.sum()), crowded


def _check_lengths(table: LatencyTable, target: Target) -> None:
    # as text, for shares are rounded there
    theirs, target = Target.parse(table.target), Target.parse(str(target))
    if (theirs.axis, theirs.lengths, theirs.statistic) != (
        target.axis,
        target.lengths,
        target.statistic,
    ):
        raise UserError(
            f"adapt: the table is of {table.target}, the target asked for is {target}; "
            "lengths, phase and statistic must be the same"
        )
