"""Latency: the target, timing in pairs, the table of operator costs, and the predictor on it.

`profile(model, target)` measures a `LatencyTable`, `LatencyTable.load` reads one, and
`table.predictor()` predicts any subnetwork, or a population of them, in milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.latency.target import Budget, Target

if TYPE_CHECKING:
    from hwnas.latency.predictor import LatencyPredictor
    from hwnas.latency.profiling import profile
    from hwnas.latency.table import LatencyTable

__all__ = ["Budget", "LatencyPredictor", "LatencyTable", "Target", "profile"]

# loaded on first use: kits hold neither, and the command line answers at once
_LAZY = {
    "LatencyPredictor": "hwnas.latency.predictor",
    "LatencyTable": "hwnas.latency.table",
    "profile": "hwnas.latency.profiling",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'hwnas.latency' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
