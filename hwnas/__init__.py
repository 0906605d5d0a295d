"""hwnas: Hugging Face models shrunk to a latency budget, measured on the device they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.telemetry import hide

if TYPE_CHECKING:
    from hwnas.models import load, load_model
    from hwnas.tasks.loading import Task

__version__ = "0.1.0"
__all__ = ["Task", "__version__", "load", "load_model"]

hide()

# loaded on first use, so that importing hwnas stays cheap
_LAZY = {
    "load": "hwnas.models",
    "load_model": "hwnas.models",
    "Task": "hwnas.tasks.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'hwnas' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
