"""What a latency table is made of: the model, the machine, the protocol, costs, and records."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from typing import Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from hwnas.anatomy import Shape
from hwnas.latency import device
from hwnas.latency.target import Target

Operator = Literal["fixed", "attention", "ffn", "pressure"]
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
    group: PositiveInt = 1  # query heads that share a key-value head
    gated: bool = False  # FFNs of three matrices
    decoder: bool = False

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
        return cls(**asdict(shape))

    @property
    def shape(self) -> Shape:
        return Shape(**dict(self))

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
    gpu: str | None = None  # that was measured, by its runtime's name; None: the processor was


class Machine(NamedTuple):
    """Where measurements were taken, with what, and what may have spoilt them."""

    device: Device
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()  # the doctor's

    @classmethod
    def here(cls, target: Target) -> Machine:
        """This machine, looked at by the doctor."""
        from hwnas.doctor import examine

        return cls(describe_device(target), versions_of(target), examine().warnings)


class Protocol(Part):
    """How times were taken."""

    pairs: PositiveInt  # candidate and reference in turns
    networks: PositiveInt  # that were compiled and timed
    clock: Literal["process", "wall"]
    reference: str  # what each measurement is paired with
    # half the distance between the quartiles of a network's pairs, as a share; median of networks
    spread: NonNegativeFloat
    seconds: PositiveFloat  # of measuring; exports and validation left out
    warnings: tuple[str, ...] = ()  # the doctor's, of that machine at that time


class Milliseconds(Part):
    """A cost, and how much lower and higher single inferences put it."""

    median: NonNegativeFloat
    p10: NonNegativeFloat
    p90: NonNegativeFloat


class AtLength(Part):
    """One of the lengths that requests have."""

    tokens: PositiveInt  # of the sequence, or, to decode, in the cache
    share: PositiveFloat  # of all requests
    reference_ms: PositiveFloat  # median latency of the full model
    # quantile of single inferences -> their time as a share of the median's; of percentiles only
    quantiles: dict[str, PositiveFloat] | None = None


class Entry(Part):
    """The cost of one operator at one width and one length."""

    op: Operator
    # {"heads": 6, "seq": 64} or {"width": 768, "seq": 64}, with "cache" instead of "seq" to decode;
    # no width for what every subnetwork costs; {"weights": 40} for what so many per cent of the
    # full model's weights cost by their pressure on the caches
    dims: dict[str, PositiveInt]
    ms: Milliseconds
    ratio_to_reference: NonNegativeFloat  # share of the full model's latency at this length
    samples: NonNegativeInt  # timed inferences of the networks in which a block has this width


class Narrower(Part):
    """The costs where the model's residual stream is narrower than its own."""

    hidden: PositiveInt
    entries: tuple[Entry, ...]


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


class Adaptation(Part):
    """Where the costs come from, if they were measured elsewhere and only scaled here."""

    device: Device
    target: str
    versions: dict[str, str]
    scales: dict[str, PositiveFloat]  # operator -> cost here over cost there
    networks: PositiveInt  # that were timed here


def describe_device(target: Target) -> Device:
    """This machine, and which of its GPUs the target means, if it means one."""
    from hwnas.latency.runtimes import gpu_names

    gpus: list[str] = []
    if target.device != "cpu" and find_spec(target.runtime) is not None:
        gpus = gpu_names(target)
    return Device(**device.describe(), gpu=gpus[0] if gpus else None)


def versions_of(target: Target) -> dict[str, str]:
    """Versions of what makes and serves the measured graphs, of the packages installed."""
    return device.versions_of(("torch", "transformers", *_PACKAGES[target.runtime]))
