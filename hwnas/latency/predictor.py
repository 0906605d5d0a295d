"""From a table's operator costs to the latency of any subnetwork.

Latency is additive: a fixed part (embeddings, head of the task, the call itself) and, for each
kept block, its attention at so many heads and its FFN at such a width. Between measured widths
costs are interpolated; noise that would make a wider operator cheaper is smoothed away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

from hwnas.space import Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Cost over width: `ms[i]` at `widths[i]`, ascending; linear in between and beyond the ends."""

    widths: Floats
    ms: Floats

    @classmethod
    def of(cls, points: dict[int, float]) -> Curve:
        """The curve through measured points, made monotone (isotonic regression)."""
        widths = np.array(sorted(points), dtype=np.float64)
        raw = np.array([points[int(width)] for width in widths])
        return cls(widths, np.asarray(isotonic_regression(raw).x, dtype=np.float64))

    def at(self, widths: npt.ArrayLike) -> Floats:
        """The cost at these widths, ms, same shape."""
        width = np.asarray(widths, dtype=np.float64)
        inside = np.interp(width, self.widths, self.ms)
        if len(self.widths) < 2:
            return inside * width / self.widths[0]
        slope = (self.ms[-1] - self.ms[0]) / (self.widths[-1] - self.widths[0])
        below = slope * np.minimum(width - self.widths[0], 0)
        above = slope * np.maximum(width - self.widths[-1], 0)
        return np.asarray(inside + below + above, dtype=np.float64)


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
        """The same with every cost times `factor`, after a measurement has shown it to be off."""
        return replace(
            self,
            fixed_ms=self.fixed_ms * factor,
            attention=replace(self.attention, ms=self.attention.ms * factor),
            ffn=replace(self.ffn, ms=self.ffn.ms * factor),
        )
