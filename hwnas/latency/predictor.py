"""From a table's operator costs to the latency of any subnetwork.

Latency is a fixed part (embeddings, head of the task, the call itself) and, for each kept block,
its attention at so many heads and its FFN at such a width. Between measured widths costs are
interpolated, and no wider operator is ever predicted to be cheaper. Where it was measured, the
pressure of all weights on the caches is added, by their total size; it alone is not additive over
the blocks, and `near` makes it so around one latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.subnetwork import Block, Subnetwork, Weights

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


_NONE = Weights(0.0, 0.0)
_NO_PRESSURE = Curve(np.array([0.0, 100.0]), np.array([0.0, 0.0]))
_NEAR = 0.15  # by which weights may be more or fewer where `near` draws its straight line


@dataclass(frozen=True, eq=False)
class LatencyPredictor:
    """Predicted milliseconds of subnetworks of one model on one target."""

    fixed_ms: float
    attention: Curve  # over heads
    ffn: Curve  # over neurons
    baseline_ms: float  # measured latency of the full model
    # over per cent of the full model's weights, what these cost beyond the parts
    pressure: Curve = _NO_PRESSURE
    weights: Weights = _NONE
    # residual width -> the predictor of subnetworks that have it
    narrower: Mapping[int, LatencyPredictor] = field(default_factory=dict)

    @property
    def pressure_ms(self) -> float:
        """What the full model's weights cost beyond its parts."""
        return float(self.pressure.ms[-1])

    def crowded_ms(self, subnetwork: Subnetwork) -> float:
        """What a network's weights cost beyond its parts."""
        return float(self.pressure.at(100 * self.weights.share(subnetwork)))

    def at_hidden(self, hidden: int) -> LatencyPredictor:
        """The predictor of subnetworks of this residual width; 0: the model's own.

        Raises:
            UserError: it was not measured.
        """
        if not hidden:
            return self
        if hidden not in self.narrower:
            known = ", ".join(map(str, self.narrower)) or "none"
            raise UserError(
                f"latency table: has no costs at residual width {hidden}; narrower ones that it "
                f"has: {known}; measure it with hwnas profile --hidden {hidden}"
            )
        return self.narrower[hidden]

    def block_ms(self, block: Block) -> float:
        """The cost of one block at the model's own residual width, caches apart; 0 if left out."""
        if not block.present:
            return 0.0
        return float(self.attention.at(block.heads) + self.ffn.at(block.ffn))

    def predict(self, subnetwork: Subnetwork) -> float:
        """The latency of one subnetwork.

        Raises:
            UserError: it has a residual width that was not measured.
        """
        here = self.at_hidden(subnetwork.hidden)
        parts = sum(here.block_ms(block) for block in subnetwork.blocks)
        return here.fixed_ms + parts + here.crowded_ms(subnetwork)

    def predict_many(self, genomes: npt.NDArray[np.integer[Any]]) -> Floats:
        """Latencies `(n,)` of genomes `(n, blocks, 2)`, at the model's own residual width.

        Widths are looked up in the cost of every whole number up to the widest, which for a
        million networks is many times quicker than to interpolate each.
        """
        heads, ffn = genomes[..., 0], genomes[..., 1]
        if not genomes.size:
            return np.full(len(genomes), self.fixed_ms)
        attention, wide = (
            np.concatenate([[0.0], curve.at(np.arange(1, int(widths.max()) + 1))])
            for curve, widths in ((self.attention, heads), (self.ffn, ffn))
        )
        total = np.full(len(genomes), self.fixed_ms)
        for block in range(genomes.shape[1]):
            total += attention.take(heads[:, block])
            total += wide.take(ffn[:, block])
        if self.pressure_ms:
            size = self.weights.head * heads.sum(axis=1) + self.weights.neuron * ffn.sum(axis=1)
            total += self.pressure.at(100 * size)
        return total

    def near(self, ms: float) -> LatencyPredictor:
        """An additive predictor that is right for networks of about this latency.

        The pressure's straight line between a few fewer and a few more weights than networks have
        that take so long stands for the pressure.
        """
        narrower = {width: p.near(ms) for width, p in self.narrower.items()}
        if not self.pressure_ms:
            return replace(self, narrower=narrower)
        heads, ffn = self.attention.widths[-1], self.ffn.widths[-1]
        widest = self.weights.head * heads + self.weights.neuron * ffn
        slope = float(self.attention.ms[-1] + self.ffn.ms[-1]) / widest
        sizes = self.pressure.widths / 100
        size = float(np.interp(ms, self.fixed_ms + slope * sizes + self.pressure.ms, sizes))
        low, high = (1 - _NEAR) * size, min(1.0, (1 + _NEAR) * size)
        least, most = (float(self.pressure.at(100 * at)) for at in (low, high))
        rise = (most - least) / (high - low) if high > low else 0.0

        return replace(
            self._pressed(rise),
            fixed_ms=self.fixed_ms + least - rise * low,
            narrower=narrower,
        )

    def at_share(self, share: float) -> LatencyPredictor:
        """An additive predictor that is right for networks of this share of the model's weights.

        Each operator has its weights' part of what they cost there by their pressure.
        """
        each = float(self.pressure.at(100 * share)) / share
        narrower = {width: p.at_share(share) for width, p in self.narrower.items()}
        return replace(self._pressed(each), narrower=narrower)

    def _pressed(self, rise: float) -> LatencyPredictor:
        """With so much more for the full model's weights, part by part, instead of the pressure."""

        def tilted(curve: Curve, each: float) -> Curve:
            return replace(curve, ms=curve.ms + rise * each * curve.widths)

        return replace(
            self,
            attention=tilted(self.attention, self.weights.head),
            ffn=tilted(self.ffn, self.weights.neuron),
            pressure=_NO_PRESSURE,
        )

    def scaled(self, factor: float) -> LatencyPredictor:
        """The same with every cost times `factor`, after a measurement has shown it to be off.

        The baseline stays: it is a measurement.
        """
        return replace(
            self,
            fixed_ms=self.fixed_ms * factor,
            attention=replace(self.attention, ms=self.attention.ms * factor),
            ffn=replace(self.ffn, ms=self.ffn.ms * factor),
            pressure=replace(self.pressure, ms=self.pressure.ms * factor),
            narrower={width: p.scaled(factor) for width, p in self.narrower.items()},
        )


def weighted(predictors: Sequence[LatencyPredictor], shares: Sequence[float]) -> LatencyPredictor:
    """The predictor of the mean latency of requests, of which `shares[i]` are as `predictors[i]`.

    All costs are sums of the parts', the pressure's included.
    """
    if len(predictors) == 1:
        return predictors[0]

    def mean(curves: Sequence[Curve]) -> Curve:
        widths = np.unique(np.concatenate([curve.widths for curve in curves]))
        costs = [share * curve.at(widths) for curve, share in zip(curves, shares, strict=True)]
        return Curve(widths, np.sum(costs, axis=0))

    return LatencyPredictor(
        fixed_ms=float(np.dot(shares, [p.fixed_ms for p in predictors])),
        attention=mean([p.attention for p in predictors]),
        ffn=mean([p.ffn for p in predictors]),
        baseline_ms=float(np.dot(shares, [p.baseline_ms for p in predictors])),
        pressure=mean([p.pressure for p in predictors]),
        weights=predictors[0].weights,
        narrower={
            width: weighted([p.narrower[width] for p in predictors], shares)
            for width in predictors[0].narrower
        },
    )
