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
    from hwnas.latency.table import Device, Entry, LatencyTable, ModelSizes, Validation

_UNIT_TOLERANCE = 0.02  # rounding of milliseconds that were written by hand
_RECORD_TOLERANCE = 0.05  # likewise of a record's per cents
_MOST_MS = 3.6e6  # an hour: no inference that a table could be measured of takes as long


def contradiction(table: LatencyTable) -> str | None:
    """The first thing in the table that cannot be true, as `field: what is wrong`; None if none."""
    if table.reference_ms > _MOST_MS:
        return f"reference_ms: {table.reference_ms:.3g} ms is more than an hour"
    found = _of_entries(table) or _of_curves(table)
    if found is None and table.validation is not None:
        found = _of_validation(table.validation, table.model)
    return found


def _of_entries(table: LatencyTable) -> str | None:
    most = {"heads": max(table.model.heads), "width": max(table.model.ffn)}
    for number, entry in enumerate(table.entries):
        where, ms = f"entries.{number}", entry.ms
        for dim, size in entry.dims.items():
            if size > most[dim]:
                return f"{where}.dims.{dim}: {size}, the model has at most {most[dim]}"
        if not ms.p10 <= ms.median <= ms.p90:
            return f"{where}.ms: p10 {ms.p10}, median {ms.median}, p90 {ms.p90} are out of order"
        stated = entry.ratio_to_reference * table.reference_ms
        if abs(ms.median - stated) > _UNIT_TOLERANCE * max(stated, 1e-9):
            return (
                f"{where}.ms.median: {ms.median:.4g} is not {entry.ratio_to_reference:.4g} of "
                f"reference_ms {table.reference_ms:.4g}; are all of them milliseconds?"
            )
    return None


def _of_curves(table: LatencyTable) -> str | None:
    for op in ("attention", "ffn"):
        entries = sorted(
            (entry for entry in table.entries if entry.op == op), key=lambda e: _size(e)
        )
        for less, more in pairwise(entries):
            if more.ms.median < less.ms.median * (1 - 1e-9):
                return (
                    f"entries: {op} at {_size(more)} ({more.ms.median:.4g} ms) is cheaper than "
                    f"at {_size(less)} ({less.ms.median:.4g} ms); profile the device again"
                )
    return None


def _size(entry: Entry) -> int:
    return next(iter(entry.dims.values()))


def _of_validation(record: Validation, model: ModelSizes) -> str | None:
    if record.n != len(record.rows):
        return f"validation.n: {record.n}, there are {len(record.rows)} rows"
    for number, row in enumerate(record.rows):
        where = f"validation.rows.{number}.genome"
        if len(row.genome) != len(model.heads) or any(len(block) != 2 for block in row.genome):
            return f"{where}: expected [heads, ffn] for each of {len(model.heads)} blocks"
    predicted = np.array([row.predicted_ms for row in record.rows])
    measured = np.array([row.measured_ms for row in record.rows])
    mape = float(100 * np.mean(np.abs(predicted / measured - 1)))
    if abs(mape - record.mape) > max(_RECORD_TOLERANCE, _RECORD_TOLERANCE * mape):
        return f"validation.mape: {record.mape:.3g} %, its rows say {mape:.3g} %"
    return None


def doubts(table: LatencyTable, device: Device, versions: dict[str, str]) -> list[str]:
    """Why the table may mislead on this device with these versions, a line each.

    Args:
        device: this machine, as `describe_device` has it.
        versions: of the packages here, as `versions_of` has them.
    """
    found = []
    theirs = table.device
    if (theirs.cpu, theirs.flags, theirs.cores) != (device.cpu, device.flags, device.cores):
        found.append(f"measured on {_named(theirs)}; this machine is {_named(device)}")
    for package, version in table.versions.items():
        if package in versions and versions[package] != version:
            found.append(f"measured with {package} {version}; here is {versions[package]}")
    if table.validation is None:
        found.append("never checked on networks that it had not seen; profile with --validate 20")
    return found


def _named(device: Device) -> str:
    return f"{device.cpu} ({', '.join(device.flags) or 'no known flags'}; {device.cores} cores)"
