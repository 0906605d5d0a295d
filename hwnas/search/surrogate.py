"""What an unseen structure's quality signal may be, learnt from those that were evaluated.

A Gaussian process on the logarithms of its blocks' widths, and of what is known of it without
evaluating it, its additive loss. On the logarithm of the signal: half as many errors are as much of
a gain at any latency. The kernel is a rough one (Matern, 1/2): what a width is worth changes from
one option to the next. On MiniLM's 4,000 evaluations (`benchmarks/search.py`), fitted to 50, it
ranked those near the front by how much better they are than others of their latency with a
Spearman coefficient of .57; a smooth kernel on the widths themselves, beside a line through the
additive loss, with .37; 300 trees with .57, without saying how sure they are.
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
_NARROW = 0.05  # of the widest, that is added to a width before its logarithm is taken
_LOSS = 1e-3  # of the largest additive loss, likewise


class Surrogate:
    """Fitted to evaluated structures; at least two."""

    def __init__(self, problem: FrontProblem, evaluated: Sequence[Evaluated], seed: int) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self.problem = problem
        none = np.zeros((1, len(problem.space.blocks), 2), np.int64)
        self._worst_loss = float(problem.additive_loss(none)[0])
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(0.5, (0.05, 10.0), nu=0.5)
        kernel += WhiteKernel(0.1, (1e-4, 1.0))
        self._process = GaussianProcessRegressor(
            kernel, normalize_y=True, n_restarts_optimizer=1, random_state=seed
        )
        signals = np.log(np.maximum([c.signal for c in evaluated], _LEAST))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hyperparameters at their bounds are welcome
            found = genomes([c.subnetwork for c in evaluated])
            self._process.fit(self._features(found), signals)

    def predict(self, found: Integers) -> tuple[Floats, Floats]:
        """Mean and standard deviation `(n,)` of the signal's logarithm, of genomes."""
        mean, deviation = self._process.predict(self._features(found), return_std=True)
        return mean, deviation

    def _features(self, found: Integers) -> Floats:
        """`(n, 2 blocks + 1)`: logarithms of widths, and of the additive loss, from -1.5 to 0.

        Two structures' distance is the quadratic mean of their widths' distances, and a quarter
        of that of their losses.
        """
        widest = np.array([[h[-1], f[-1]] for h, f in self.problem.options])
        widths = _logarithm((found / widest).reshape(len(found), -1), _NARROW)
        loss = self.problem.additive_loss(found) / max(self._worst_loss, 1e-300)
        return np.column_stack([widths / np.sqrt(widths.shape[1]), _logarithm(loss, _LOSS) / 4])


def _logarithm(share: Floats, least: float) -> Floats:
    """Of shares, 0 to 1, with a bound below."""
    return np.asarray(1.5 * np.log((share + least) / (1 + least)) / np.log((1 + least) / least))
