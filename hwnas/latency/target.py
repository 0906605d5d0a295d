"""The target: which runtime serves the model, on which device, at what shape; and budgets on it.

A target is written ``runtime:device[:key=value,…]``, for example
``openvino:cpu:threads=1,batch=1,seq=64,precision=int8-static``. A budget is written ``8ms`` or
``50%`` (of the measured baseline).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hwnas.errors import UserError

DEVICES = {"openvino": ("cpu", "gpu"), "onnxruntime": ("cpu", "cuda"), "torch": ("cpu", "cuda")}
RUNTIMES = tuple(DEVICES)
PRECISIONS = {
    "openvino": ("fp32", "bf16", "int8-static", "int8-weights", "int4-weights"),
    "onnxruntime": ("fp32", "int8-dynamic", "int8-static"),
    "torch": ("fp32", "bf16"),
}
_NUMBERS = ("threads", "batch", "seq")
_KEYS = (*_NUMBERS, "precision")


@dataclass(frozen=True)
class Target:
    """Where and how latency is measured: one inference of `(batch, seq)` token ids."""

    runtime: str = "openvino"
    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    seq: int = 128
    precision: str = "fp32"

    @classmethod
    def parse(cls, spec: str) -> Target:
        """Parse ``runtime:device[:key=value,…]``.

        Raises:
            UserError: an unknown runtime, device or key, or a value that is no positive number.
        """
        parts = spec.split(":", 2)
        if len(parts) < 2 or not all(parts):
            raise UserError(
                f"target {spec!r}: expected runtime:device[:key=value,...], "
                "for example openvino:cpu:threads=1,batch=1,seq=64"
            )
        runtime, device = parts[0], parts[1]
        if runtime not in RUNTIMES:
            raise UserError(
                f"target {spec!r}: unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}"
            )
        if device not in DEVICES[runtime]:
            raise UserError(
                f"target {spec!r}: unknown device {device!r}; "
                f"{runtime} has: {', '.join(DEVICES[runtime])}"
            )
        values: dict[str, Any] = {}
        for item in parts[2].split(",") if len(parts) == 3 else []:
            key, _, text = item.partition("=")
            if key not in _KEYS:
                raise UserError(f"target {spec!r}: unknown key {key!r}; known: {', '.join(_KEYS)}")
            if key in values:
                raise UserError(f"target {spec!r}: {key} is given twice; give it once")
            values[key] = _number(spec, key, text) if key in _NUMBERS else text
        precision = values.get("precision", "fp32")
        if precision not in PRECISIONS[runtime]:
            raise UserError(
                f"target {spec!r}: unknown precision {precision!r}; "
                f"{runtime} has: {', '.join(PRECISIONS[runtime])}"
            )
        return cls(runtime, device, **values)

    def check_exportable(self) -> None:
        """Raise `UserError` if models can be profiled for this target, but not yet exported."""
        if self.precision != "fp32":
            raise UserError(
                f"target {self}: {self.precision} can be profiled, not yet exported; "
                "leave precision out"
            )

    def __str__(self) -> str:
        shape = f"threads={self.threads},batch={self.batch},seq={self.seq}"
        precision = "" if self.precision == "fp32" else f",precision={self.precision}"
        return f"{self.runtime}:{self.device}:{shape}{precision}"


def _number(spec: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 65536):
        raise UserError(f"target {spec!r}: {key}={text!r} is not a whole number from 1 to 65536")
    return int(text)


@dataclass(frozen=True)
class Budget:
    """A latency budget: absolute milliseconds, or a fraction of the measured baseline."""

    text: str
    ms: float | None = None
    fraction: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse ``8ms`` or ``50%``.

        Raises:
            UserError: not a positive number with a unit, or 100 % and more.
        """
        stripped = text.strip()
        unit = next((u for u in ("ms", "%") if stripped.endswith(u)), None)
        try:
            number = float(stripped.removesuffix(unit)) if unit else math.nan
        except ValueError:
            number = math.nan
        if unit is None or not math.isfinite(number):
            raise UserError(f"budget {text!r}: expected milliseconds like 8ms or a share like 50%")
        if number <= 0:
            raise UserError(f"budget {text!r}: must be above zero")
        if unit == "%":
            if number >= 100:
                raise UserError(f"budget {text!r}: must be below 100% of the baseline")
            return cls(stripped, fraction=number / 100)
        return cls(stripped, ms=number)

    def in_ms(self, baseline_ms: float) -> float:
        """The budget in milliseconds, given the baseline's measured latency."""
        if self.ms is not None:
            return self.ms
        assert self.fraction is not None
        return self.fraction * baseline_ms

    @property
    def folder(self) -> str:
        """The budget as a folder name: ``50pct``, ``8ms``."""
        return self.text.replace("%", "pct").replace(" ", "")
