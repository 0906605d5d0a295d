"""What an unseen structure's quality signal may be, learnt from those that were evaluated.

A straight line through what is known of a structure without evaluating it (its additive loss,
latency and depth), and a Gaussian process on its blocks' widths for what the line misses, with the
uncertainty that the search weighs chances by. On the logarithm: half as many errors are as much of
a gain at any latency.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.search.evolution import Evaluated
from hwnas.search.front import FrontProblem
from hwnas.subnetwork import genomes

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

_LEAST = 1e-6  # a signal, whose logarithm is taken
_RIDGE = 1.0  # of the line's slopes, in units of one structure's evidence


class Surrogate:
    """Fitted to evaluated structures; at least two."""

    def __init__(self, problem: FrontProblem, evaluated: Sequence[Evaluated], seed: int) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.problem = problem
        found = genomes([c.subnetwork for c in evaluated])
        signals = np.log(np.maximum([c.signal for c in evaluated], _LEAST))
        self._line = make_pipeline(StandardScaler(), Ridge(_RIDGE))
        self._line.fit(self._known(found), signals)
        rest = signals - self._line.predict(self._known(found))
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(0.5, (0.05, 10.0), nu=2.5)
        kernel += WhiteKernel(0.1, (1e-4, 1.0))
        self._process = GaussianProcessRegressor(
            kernel, normalize_y=True, n_restarts_optimizer=1, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hyperparameters at their bounds are welcome
            self._process.fit(self._widths(found), rest)

    def predict(self, found: Integers) -> tuple[Floats, Floats]:
        """Mean and standard deviation `(n,)` of the signal's logarithm, of genomes."""
        rest, deviation = self._process.predict(self._widths(found), return_std=True)
        return self._line.predict(self._known(found)) + rest, deviation

    def _known(self, found: Integers) -> Floats:
        """`(n, 4)`: additive loss, its logarithm, latency, depth."""
        loss = self.problem.additive_loss(found)
        least = _LEAST * float(max(1e-300, *(np.max(h) for h in self.problem.loss.heads)))
        depth = (found[..., 0] > 0).sum(axis=1)
        ms = self.problem.predictor.predict_many(found)
        return np.stack([loss, np.log(loss + least), ms, depth], axis=1)

    def _widths(self, found: Integers) -> Floats:
        """`(n, 2 blocks)`: shares of the widest; two structures' mean distance is their own."""
        widest = np.array([[h[-1], f[-1]] for h, f in self.problem.options])
        shares = (found / widest).reshape(len(found), -1)
        return np.asarray(shares / np.sqrt(shares.shape[1]))
