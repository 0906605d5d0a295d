"""The latency table: what a model's operators cost on one target, as a file that can be shared.

A table belongs to the sizes of one model (hidden width, head size, blocks) and to one target. It
says on which machine, with which versions and by which protocol it was measured, and how well it
predicts whole subnetworks that it had not seen.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from hwnas.anatomy import Shape
from hwnas.errors import UserError
from hwnas.files import read_model, write_json
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.target import Target

SCHEMA_VERSION = 1
Operator = Literal["fixed", "attention", "ffn"]
_RUNTIMES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}


class Part(BaseModel):
    """Base of the table's parts: fixed once made, no fields but the known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSizes(Part):
    """The model that the table is of."""

    family: str
    hidden: PositiveInt
    head_size: PositiveInt
    vocab: PositiveInt
    heads: tuple[PositiveInt, ...]  # of each block
    ffn: tuple[PositiveInt, ...]

    @classmethod
    def of(cls, shape: Shape) -> ModelSizes:
        return cls(
            family=shape.family,
            hidden=shape.hidden,
            head_size=shape.head_size,
            vocab=shape.vocab,
            heads=shape.heads,
            ffn=shape.ffn,
        )

    def __str__(self) -> str:
        return (
            f"{self.family} with {len(self.heads)} blocks of {max(self.heads)} heads and FFN "
            f"{max(self.ffn)}, hidden width {self.hidden}"
        )


class Device(Part):
    """The machine that was measured."""

    cpu: str
    flags: tuple[str, ...]  # instructions that the runtimes' kernels choose by
    cores: PositiveInt  # logical
    governor: str | None
    memory_gb: PositiveFloat
    system: str


class Protocol(Part):
    """How times were taken."""

    pairs: PositiveInt  # candidate and reference in turns
    clock: Literal["process", "wall"]
    reference: str  # what each measurement is paired with
    seconds: PositiveFloat  # the whole profile, validation left out


class Milliseconds(Part):
    """A cost and the percentiles of its measurement."""

    median: float = Field(ge=0)
    p10: float
    p90: float


class Entry(Part):
    """The cost of one operator at one width."""

    op: Operator
    dims: dict[str, int]  # {"heads": 6} or {"width": 768}; none for what every subnetwork costs
    ms: Milliseconds
    ratio_to_reference: float = Field(ge=0)
    samples: PositiveInt


class ValidationRow(Part):
    """One whole subnetwork that the table had not seen."""

    genome: list[list[int]]
    predicted_ms: PositiveFloat
    measured_ms: PositiveFloat
    remeasured_ms: PositiveFloat  # the same network, compiled and timed again
    flops_ms: PositiveFloat  # what the straight line through the operation counts says


class Validation(Part):
    """How well the table predicts, beside the machine's own noise and the FLOPs line."""

    n: PositiveInt
    mape: float  # per cent
    bias: float  # mean signed error, per cent; above 0 predicts too slow
    kendall_tau: float
    noise: float  # per cent, mean difference of the two measurements of a network
    flops_mape: float  # per cent
    coverage_90: float | None = None  # of an interval; None: the table gives none
    rows: tuple[ValidationRow, ...]


class LatencyTable(Part):
    """Operator costs of one model's sizes on one target."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelSizes
    target: str
    device: Device
    versions: dict[str, str]
    protocol: Protocol
    reference_ms: PositiveFloat  # latency of the full model
    entries: tuple[Entry, ...]
    validation: Validation | None = None

    @model_validator(mode="after")
    def _complete(self) -> LatencyTable:
        for op in ("fixed", "attention", "ffn"):
            if not any(entry.op == op for entry in self.entries):
                raise ValueError(f"entries: none of {op!r}; profile the device again")
        for entry in self.entries:
            wanted = {"fixed": [], "attention": ["heads"], "ffn": ["width"]}[entry.op]
            if list(entry.dims) != wanted:
                raise ValueError(f"entries: {entry.op} with dims {entry.dims}, expected {wanted}")
        return self

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read and check a table.

        Raises:
            UserError: the file is missing, damaged, or no table of this version.
        """
        return read_model(path, cls)

    def save(self, path: Path) -> None:
        """Write the table as JSON, at once."""
        write_json(path, self)

    def check_model(self, shape: Shape) -> None:
        """Raise `UserError` unless the table is of a model of these sizes."""
        mine, theirs = self.model, ModelSizes.of(shape)
        if mine != theirs:
            raise UserError(
                f"latency table: measured for another model ({mine}), this one is {theirs}; "
                "profile this model"
            )

    def check_target(self, target: Target) -> None:
        """Raise `UserError` unless the table is of this target."""
        if self.target != str(target):
            raise UserError(
                f"latency table: measured for target {self.target}, the run's is {target}; "
                "profile this target or give the table's"
            )

    def predictor(self) -> LatencyPredictor:
        """The additive predictor on these costs."""
        fixed = next(entry for entry in self.entries if entry.op == "fixed")
        return LatencyPredictor(
            fixed_ms=fixed.ms.median,
            attention=self._curve("attention", "heads"),
            ffn=self._curve("ffn", "width"),
            baseline_ms=self.reference_ms,
        )

    def _curve(self, op: Operator, dim: str) -> Curve:
        return Curve.of({e.dims[dim]: e.ms.median for e in self.entries if e.op == op})


def describe_device() -> Device:
    """This machine."""
    import psutil

    from hwnas.doctor import examine_cpu

    cpu = examine_cpu()
    return Device(
        cpu=cpu.model,
        flags=cpu.flags,
        cores=cpu.logical,
        governor=cpu.governor,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def versions_of(target: Target) -> dict[str, str]:
    """Versions of what makes and serves the measured graphs."""
    names = {cast(str, _RUNTIMES[target.runtime]), "torch", "transformers", "optimum"}
    return {name: metadata.version(name) for name in sorted(names)}
