"""How good answers are, whatever their confidence.

A model that was trained for long is too sure of itself: its cross-entropy rises while its answers
get better, and a cut that blurs them lowers it. Between finalists only the answers count, so their
logits are first divided by the temperature that suits each best (Guo et al. 2017, "On calibration
of modern neural networks").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

    from hwnas.tasks.kinds import Floats, Kind

_LEAST, _MOST = 0.01, 100.0  # temperatures


def calibrated_loss(kind: Kind, answers: Floats, encoded: Dataset) -> float:
    """The kind's loss at the best temperature; just its loss where answers are no logits."""
    if not kind.logits or not np.isfinite(answers).all():
        return kind.loss(answers, encoded)
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: kind.loss(answers / np.exp(power), encoded),
        bounds=(np.log(_LEAST), np.log(_MOST)),
        method="bounded",
    )
    return float(found.fun)
