"""From a table's operator costs to the latency of any subnetwork.

Latency is additive: a fixed part (embeddings, head of the task, the call itself) and, for each
kept block, its attention at so many heads and its FFN at such a width. Between measured widths
costs are interpolated, and no wider operator is ever predicted to be cheaper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hwnas.subnetwork import Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Cost over width: `ms[i]` at `widths[i]`, both ascending; linear in between and beyond."""

    widths: Floats
    ms: Floats

    @classmethod
    def of(cls, points: Mapping[int, float]) -> Curve:
        """The curve through measured points, each raised to the dearest of those narrower."""
        widths = sorted(points)
        ms = np.maximum.accumulate([points[width] for width in widths])
        return cls(np.array(widths, dtype=np.float64), np.asarray(ms, dtype=np.float64))

    def at(self, widths: npt.ArrayLike) -> Floats:
        """The cost at these widths, ms, same shape; beyond the ends by the average slope."""
        width = np.asarray(widths, dtype=np.float64)
        if len(self.widths) < 2:
            return np.asarray(self.ms[0] * width / self.widths[0], dtype=np.float64)
        slope = (self.ms[-1] - self.ms[0]) / (self.widths[-1] - self.widths[0])
        outside = width - np.clip(width, self.widths[0], self.widths[-1])
        cost = np.interp(width, self.widths, self.ms) + slope * outside
        return np.asarray(np.maximum(cost, 0.0), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class LatencyPredictor:
    """Predicted milliseconds of subnetworks of one model on one target."""

    fixed_ms: float
    attention: Curve  # over heads
    ffn: Curve  # over neurons
    baseline_ms: float  # measured latency of the full model

    def block_ms(self, block: Block) -> float:
        """The cost of one block; 0 if it is left out."""
        if not block.present:
            return 0.0
        return float(self.attention.at(block.heads) + self.ffn.at(block.ffn))

    def predict(self, subnetwork: Subnetwork) -> float:
        """The latency of one subnetwork."""
        return self.fixed_ms + sum(self.block_ms(block) for block in subnetwork.blocks)

    def predict_many(self, genomes: npt.NDArray[np.int64]) -> Floats:
        """Latencies `(n,)` of genomes `(n, blocks, 2)`."""
        heads, ffn = genomes[..., 0], genomes[..., 1]
        cost = np.where(heads > 0, self.attention.at(heads) + self.ffn.at(ffn), 0.0)
        return np.asarray(self.fixed_ms + cost.sum(axis=-1), dtype=np.float64)

    def scaled(self, factor: float) -> LatencyPredictor:
        """The same with every cost times `factor`, after a measurement has shown it to be off.

        The baseline stays: it is a measurement.
        """
        return replace(
            self,
            fixed_ms=self.fixed_ms * factor,
            attention=replace(self.attention, ms=self.attention.ms * factor),
            ffn=replace(self.ffn, ms=self.ffn.ms * factor),
        )
