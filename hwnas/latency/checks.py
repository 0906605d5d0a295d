"""Whether a latency table can be believed: what physics demands of it, and how it fits here.

A table that breaks a law is refused when it is loaded: costs that fall where a width grows,
percentiles out of order, milliseconds that are not the ratio of the reference that the same entry
states (another unit, or an edited number), a validation record that its own rows contradict. A
table that is sound but of another machine or other versions is used, with a warning of both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hwnas.latency.parts import (
        AtLength,
        Device,
        Entry,
        ModelSizes,
        Validation,
    )
    from hwnas.latency.table import LatencyTable

_UNIT_TOLERANCE = 0.02  # rounding of milliseconds that were written by hand
_RECORD_TOLERANCE = 0.05  # likewise of a record's per cents
_SHORTER_TOLERANCE = 0.1  # by which a longer request may seem faster, for noise
_MOST_MS = 3.6e6  # an hour: no inference that a table could be measured of takes as long


def contradiction(table: LatencyTable) -> str | None:
    """The first thing in the table that cannot be true, as `field: what is wrong`; None if none."""
    if table.reference_ms > _MOST_MS:
        return f"reference_ms: {table.reference_ms:.3g} ms is more than an hour"
    found = _of_lengths(table) or _of_entries(table) or _of_curves(table)
    if found is None and table.validation is not None:
        found = _of_validation(table.validation, table.model)
    return found


def _of_entries(table: LatencyTable) -> str | None:
    most = {"heads": max(table.model.heads), "width": max(table.model.ffn), "weights": 100}
    reference_ms = {length.tokens: length.reference_ms for length in table.lengths}
    for number, entry in enumerate(table.entries):
        where, ms = f"entries.{number}", entry.ms
        for dim, size in entry.dims.items():
            if size > most.get(dim, size):
                return f"{where}.dims.{dim}: {size}, the model has at most {most[dim]}"
        if not ms.p10 <= ms.median <= ms.p90:
            return f"{where}.ms: p10 {ms.p10}, median {ms.median}, p90 {ms.p90} are out of order"
        full = reference_ms[_length(entry)]
        stated = entry.ratio_to_reference * full
        if abs(ms.median - stated) > _UNIT_TOLERANCE * max(stated, 1e-9):
            return (
                f"{where}.ms.median: {ms.median:.4g} is not {entry.ratio_to_reference:.4g} of "
                f"reference_ms {full:.4g}; are all of them milliseconds?"
            )
    return None


def _of_lengths(table: LatencyTable) -> str | None:
    for less, more in pairwise(table.lengths):
        if more.reference_ms < less.reference_ms * (1 - _SHORTER_TOLERANCE):
            return (
                f"lengths: the full model at {more.tokens} tokens ({more.reference_ms:.4g} ms) is "
                f"faster than at {less.tokens} ({less.reference_ms:.4g} ms); profile again"
            )
    longest = max(length.reference_ms * _largest(length) for length in table.lengths)
    if table.reference_ms > longest * (1 + _UNIT_TOLERANCE):
        return (
            f"reference_ms: {table.reference_ms:.4g} ms, but {longest:.4g} at the slowest of "
            "lengths; are all of them milliseconds?"
        )
    return None


def _largest(length: AtLength) -> float:
    return max((length.quantiles or {"0.5": 1.0}).values())


def _of_curves(table: LatencyTable) -> str | None:
    for length in table.lengths:
        for op, dim in (("attention", "heads"), ("ffn", "width"), ("pressure", "weights")):
            entries = sorted(
                (e for e in table.entries if e.op == op and _length(e) == length.tokens),
                key=lambda e, dim=dim: e.dims[dim],  # type: ignore[misc]
            )
            for less, more in pairwise(entries):
                if more.ms.median < less.ms.median * (1 - 1e-9):
                    return (
                        f"entries: {op} at {more.dims[dim]} ({more.ms.median:.4g} ms) is cheaper "
                        f"than at {less.dims[dim]} ({less.ms.median:.4g} ms); profile again"
                    )
    return None


def _length(entry: Entry) -> int:
    return next(size for dim, size in entry.dims.items() if dim in ("seq", "cache"))


def _of_validation(record: Validation, model: ModelSizes) -> str | None:
    if record.n != len(record.rows):
        return f"validation.n: {record.n}, there are {len(record.rows)} rows"
    for number, row in enumerate(record.rows):
        where = f"validation.rows.{number}.genome"
        blocks = row.genome[: len(model.heads)]
        residual = row.genome[len(model.heads) :]
        if (
            len(blocks) != len(model.heads)
            or any(len(block) != 2 for block in blocks)
            or (residual and [len(entry) for entry in residual] != [1])
        ):
            return (
                f"{where}: expected [heads, ffn] for each of {len(model.heads)} blocks, and "
                "[hidden] at the end at most"
            )
    predicted = np.array([row.predicted_ms for row in record.rows])
    measured = np.array([row.measured_ms for row in record.rows])
    mape = float(100 * np.mean(np.abs(predicted / measured - 1)))
    if abs(mape - record.mape) > max(_RECORD_TOLERANCE, _RECORD_TOLERANCE * mape):
        return f"validation.mape: {record.mape:.3g} %, its rows say {mape:.3g} %"
    return None


_DECISIVE = ("cpu", "flags", "cores", "gpu")  # of a machine, for how fast it is


def doubts(table: LatencyTable, device: Device, versions: dict[str, str]) -> list[str]:
    """Why the table may mislead on this device with these versions, a line each.

    Args:
        device: this machine, as `describe_device` has it.
        versions: of the packages here, as `versions_of` has them.
    """
    found = []
    theirs = table.device
    if any(getattr(theirs, name) != getattr(device, name) for name in _DECISIVE):
        found.append(f"measured on {_named(theirs)}; this machine is {_named(device)}")
    for package, version in table.versions.items():
        if package in versions and versions[package] != version:
            found.append(f"measured with {package} {version}; here is {versions[package]}")
    if table.adapted_from is not None:
        there = table.adapted_from.device
        found.append(
            f"its costs were measured on {_named(there)} and scaled by "
            f"{table.adapted_from.networks} networks timed here"
        )
    if table.validation is None:
        found.append("never checked on networks that it had not seen; profile with --validate 20")
    return found


def _named(device: Device) -> str:
    gpu = f"{device.gpu} beside " if device.gpu else ""
    return (
        f"{gpu}{device.cpu} ({', '.join(device.flags) or 'no known flags'}; {device.cores} cores)"
    )
