"""From timed networks to the cost of each operator at each measured width.

A network costs a fixed part and, for each block, something for being there, and more for each step
of its heads and of its FFN width; no part is negative, so that a wider operator is never cheaper.
One least-squares fit of all networks' relative errors divides their times, so every measurement
serves every cost; networks that lie far off count less (Huber's weights). How far to trust the
costs is told by the whole networks: each is left out of the fit in turn and predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hwnas.latency.plan import Plan
from hwnas.latency.session import Measurement
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_HUBER = 1.5  # standard deviations beyond which a network counts less
_ROUNDS = 4  # of weighing again


@dataclass(frozen=True)
class Costs:
    """What the fit found at one length, as shares of the reference's latency."""

    fixed: float
    attention: dict[int, float]  # by heads
    ffn: dict[int, float]  # by width

    def of(self, subnetwork: Subnetwork) -> float:
        """The predicted share of the reference's latency."""
        heads, ffn = (np.array(list(curve.items())).T for curve in (self.attention, self.ffn))
        return self.fixed + sum(
            float(np.interp(block.heads, *heads) + np.interp(block.ffn, *ffn))
            for _, block in subnetwork.kept
        )


def fit(plan: Plan, measured: Sequence[Measurement], point: int) -> Costs:
    """The costs that explain the networks' times at one of the target's lengths best."""
    design = _Design.of(plan, measured)
    return design.costs(_solve(design, measured, point))


def left_out(plan: Plan, measured: Sequence[Measurement], point: int) -> dict[Subnetwork, float]:
    """Each whole network's predicted time over its measured one, from a fit without it."""
    design = _Design.of(plan, measured)
    found = {}
    for subnetwork in {m.subnetwork for m in measured} & set(plan.whole):
        others = [m for m in measured if m.subnetwork != subnetwork]
        costs = design.costs(_solve(design, others, point))
        own = [m.points[point].ratio for m in measured if m.subnetwork == subnetwork]
        found[subnetwork] = costs.of(subnetwork) / float(np.median(own))
    return found


def interval_90(errors: Sequence[float]) -> float:
    """The share of a prediction within which nine of ten measurements are expected.

    Args:
        errors: predicted over measured, of networks that the fit had not seen.
    """
    from scipy.stats import t

    off = np.abs(np.array(errors) - 1)
    # of a normal distribution, whose mean absolute deviation one wild error moves less
    deviation = math.sqrt(math.pi / 2) * float(off.mean())
    return float(t.ppf(0.95, len(off)) * deviation)


@dataclass(frozen=True)
class _Design:
    """The widths at which costs bend, and the columns of the least-squares problem."""

    heads: tuple[int, ...]
    ffn: tuple[int, ...]

    @classmethod
    def of(cls, plan: Plan, measured: Sequence[Measurement]) -> _Design:
        """With a bend at every width that a stack was measured at."""
        stacks, whole = set(plan.stacks()), set(plan.whole)
        found = {m.subnetwork for m in measured}
        blocks = [s.blocks[0] for s in found if s in stacks or s not in whole]
        heads, ffn = (set(widths) for widths in zip(*blocks, strict=True))
        return cls(
            tuple(sorted(heads | {plan.heads[-1]})),
            tuple(sorted(ffn | {plan.ffn[-1]})),
        )

    def columns(self, subnetworks: Sequence[Subnetwork]) -> Floats:
        """`(n, parts)`: how often each part of the costs occurs in each network."""
        return np.array([self._row(s) for s in subnetworks], dtype=np.float64)

    def _row(self, subnetwork: Subnetwork) -> list[float]:
        kept = [block for _, block in subnetwork.kept]
        row = [1.0, float(len(kept))]
        for name, knots in (("heads", self.heads), ("ffn", self.ffn)):
            widths = np.array([getattr(block, name) for block in kept], dtype=np.float64)
            for low, high in pairwise(knots):
                row.append(float(np.clip((widths - low) / (high - low), 0, 1).sum()))
        return row

    def costs(self, parts: Floats) -> Costs:
        """The parts as curves.

        What a block costs at its narrowest is divided so that the FFN's line runs through zero:
        norms, and whatever else a block costs at any width, are with the attention.
        """
        fixed, block = float(parts[0]), float(parts[1])
        head_steps, ffn_steps = np.split(parts[2:], [len(self.heads) - 1])
        span = self.ffn[-1] - self.ffn[0]
        slope = float(ffn_steps.sum()) / span if span else math.inf
        narrowest = min(block / 2, slope * self.ffn[0])
        return Costs(
            fixed=fixed,
            attention=_climb(self.heads, block - narrowest, head_steps),
            ffn=_climb(self.ffn, narrowest, ffn_steps),
        )


def _climb(widths: tuple[int, ...], first: float, steps: Floats) -> dict[int, float]:
    """Width -> cost: the first's, then a step more for each."""
    costs = np.cumsum([first, *steps])
    return {width: float(cost) for width, cost in zip(widths, costs, strict=True)}


def _solve(design: _Design, measured: Sequence[Measurement], point: int) -> Floats:
    """Each part's cost, by robust relative least squares without negative parts."""
    from scipy.optimize import nnls

    ratios = np.array([m.points[point].ratio for m in measured])
    # a network that was compiled several times is that much surer
    sure = np.sqrt([m.compilations for m in measured])
    columns = design.columns([m.subnetwork for m in measured]) / ratios[:, None]
    weights = sure
    for _ in range(_ROUNDS):
        parts, _ = nnls(columns * weights[:, None], weights)
        off = (columns @ parts - 1) * sure
        scale = float(np.median(np.abs(off))) / 0.6745  # of a normal distribution, its deviation
        if scale == 0:
            break
        weights = sure * np.minimum(1, _HUBER * scale / np.maximum(np.abs(off), 1e-12))
    return np.asarray(parts, dtype=np.float64)
