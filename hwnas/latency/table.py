"""The latency table: what a model's operators cost on one target, as a file that can be shared.

A table belongs to the sizes of one model (hidden width, head size, blocks) and to one target. It
says on which machine, with which versions and by which protocol it was measured, and how well it
predicts whole subnetworks that it had not seen.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from hwnas.anatomy import Shape
from hwnas.errors import UserError
from hwnas.files import read_model, write_json
from hwnas.latency.checks import contradiction, doubts
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.target import Target
from hwnas.subnetwork import Subnetwork

SCHEMA_VERSION = 1  # that this module reads and writes
Operator = Literal["fixed", "attention", "ffn"]
_DIMS = {"fixed": [], "attention": ["heads"], "ffn": ["width"]}  # of each operator
# packages that make and serve the measured graph, beside torch and transformers
_PACKAGES = {
    "openvino": ("openvino", "optimum", "optimum-intel"),
    "onnxruntime": ("onnxruntime", "optimum", "optimum-onnx"),
    "torch": (),
}


class Part(BaseModel):
    """Base of the table's parts: fixed once made, no fields but the known, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSizes(Part):
    """The model that the table is of."""

    family: str
    hidden: PositiveInt
    head_size: PositiveInt
    vocab: PositiveInt
    heads: tuple[PositiveInt, ...]  # of each block
    ffn: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _one_each(self) -> ModelSizes:
        if not self.heads or len(self.heads) != len(self.ffn):
            raise ValueError(
                f"heads of {len(self.heads)} blocks and ffn of {len(self.ffn)}: "
                "expected one of each for every block"
            )
        return self

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
    """A cost, and how much lower and higher single inferences put it."""

    median: NonNegativeFloat
    p10: NonNegativeFloat
    p90: NonNegativeFloat


class Entry(Part):
    """The cost of one operator at one width."""

    op: Operator
    dims: dict[str, int]  # {"heads": 6} or {"width": 768}; none for what every subnetwork costs
    ms: Milliseconds
    ratio_to_reference: NonNegativeFloat
    samples: PositiveInt  # timed inferences of the stacks that this width was measured in


class ValidationRow(Part):
    """One whole subnetwork that the table had not seen."""

    genome: list[list[int]]
    predicted_ms: PositiveFloat
    measured_ms: PositiveFloat
    remeasured_ms: PositiveFloat  # the same network, compiled and timed again
    flops_ms: PositiveFloat  # what the straight line through the operation counts says


class Validation(Part):
    """How well the table predicts, beside the machine's own noise and the FLOPs line.

    Errors are against the first measurement of each network.
    """

    n: PositiveInt
    mape: float  # mean absolute error, per cent
    bias: float  # mean signed error, per cent; above 0 predicts too slow
    kendall_tau: float
    noise: float  # per cent, mean difference of the two measurements of a network
    flops_mape: float  # per cent
    coverage_90: float | None = None  # share of the rows within the table's `interval_90`
    rows: tuple[ValidationRow, ...]


class LatencyTable(Part):
    """Operator costs of one model's sizes on one target."""

    schema_version: Literal[1] = 1
    model: ModelSizes
    target: str
    device: Device
    versions: dict[str, str]
    protocol: Protocol
    reference_ms: PositiveFloat  # latency of the full model
    entries: tuple[Entry, ...]
    # nine of ten measurements are expected within this share of the predicted latency
    interval_90: NonNegativeFloat | None = None
    validation: Validation | None = None

    @field_validator("schema_version", mode="before")
    @classmethod
    def _known_version(cls, version: Any) -> Any:
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"this hwnas reads version {SCHEMA_VERSION}, the table is of version {version!r}; "
                "profile the device again"
            )
        return version

    @field_validator("target")
    @classmethod
    def _known_target(cls, target: str) -> str:
        try:
            return str(Target.parse(target))
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _complete(self) -> LatencyTable:
        for entry in self.entries:
            wanted = _DIMS[entry.op]
            if list(entry.dims) != wanted or any(size <= 0 for size in entry.dims.values()):
                raise ValueError(f"entries: {entry.op} with dims {entry.dims}, expected {wanted}")
        if [entry.op for entry in self.entries].count("fixed") != 1:
            raise ValueError("entries: exactly one of 'fixed' is needed; profile the device again")
        widest = {"attention": max(self.model.heads), "ffn": max(self.model.ffn)}
        for op, most in widest.items():
            sizes = [size for e in self.entries if e.op == op for size in e.dims.values()]
            if len(set(sizes)) < len(sizes):
                raise ValueError(f"entries: a width of {op!r} is given twice")
            if not sizes or max(sizes) < most:
                raise ValueError(
                    f"entries: none of {op!r} at the model's width {most}; profile the device again"
                )
        wrong = contradiction(self)
        if wrong is not None:
            raise ValueError(wrong)
        return self

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read and check a table.

        Raises:
            UserError: the file is missing, damaged, or no table of this version.
        """
        return read_model(path, cls, strict=True)

    @classmethod
    def find(cls, name: Path) -> LatencyTable:
        """The table in a file, or the shipped one of this name, as `hwnas tables list` prints it.

        Raises:
            UserError: as `load` does.
        """
        shipped = (
            resources.files("hwnas.latency_tables") / f"{name.name.removesuffix('.json')}.json"
        )
        if not name.exists() and len(name.parts) == 1 and shipped.is_file():
            with resources.as_file(shipped) as path:
                return cls.load(path)
        return cls.load(name)

    def doubts(self) -> list[str]:
        """Why the table may mislead on this machine, a line each; see `checks.doubts`."""
        return doubts(self, describe_device(), versions_of(Target.parse(self.target)))

    def save(self, path: Path) -> None:
        """Write the table as JSON, at once."""
        write_json(path, self)

    def check_model(self, shape: Shape) -> None:
        """Raise `UserError` unless the table is of a model of these sizes."""
        mine, theirs = dict(self.model), dict(ModelSizes.of(shape))
        other = [name for name in mine if mine[name] != theirs[name]]
        if other:
            sides = [", ".join(f"{n} {_short(side[n])}" for n in other) for side in (mine, theirs)]
            raise UserError(
                f"latency table: measured for a model of {sides[0]}, this one is of {sides[1]}; "
                "profile this model or give a table of it"
            )

    def check_subnetwork(self, subnetwork: Subnetwork) -> None:
        """Raise `UserError` unless the table's model has such a subnetwork."""
        blocks, most = len(self.model.heads), (max(self.model.heads), max(self.model.ffn))
        if len(subnetwork.blocks) > blocks:
            raise UserError(
                f"subnetwork {subnetwork}: {len(subnetwork.blocks)} blocks, the table's model "
                f"has {blocks}"
            )
        for number, block in enumerate(subnetwork.blocks):
            if block.heads > most[0] or block.ffn > most[1]:
                raise UserError(
                    f"subnetwork {subnetwork}: block {number} has {block.heads} heads and FFN "
                    f"{block.ffn}, the table's model at most {most[0]} and {most[1]}"
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
    """Versions of what makes and serves the measured graphs, of the packages installed."""
    found = {}
    for package in ("torch", "transformers", *_PACKAGES[target.runtime]):
        with suppress(metadata.PackageNotFoundError):  # another build of it, such as a -gpu one
            found[package] = metadata.version(package)
    return found


def _short(value: Any) -> str:
    """A size, or those of the blocks: `12 (6 blocks)` where all are alike."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return f"{value[0]} ({len(value)} blocks)"
    return str(list(value)) if isinstance(value, tuple) else str(value)
