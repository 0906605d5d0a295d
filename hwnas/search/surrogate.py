"""What an unseen structure's quality signal may be, learnt from those that were evaluated.

A Gaussian process on the logarithms of its blocks' widths and of its additive loss, with the
uncertainty that the search weighs chances by. The kernel is a rough one (Matern, 1/2): what a width
is worth changes from one option to the next. Where the additive loss is a good guess, a straight
line through it, latency and depth goes before; whether it is, the evaluated ones say, each
predicted from all others. On the logarithm of the signal: half as many errors are as much of a gain
at any latency.

On MiniLM's 4,000 evaluations (`benchmarks/search.py`), fitted to 50, it ranked those near the front
by how much better they are than others of their latency with a Spearman coefficient of .57; a
smooth kernel on the widths themselves, always beside the line, with .37.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
_RIDGE = 1.0  # of the line's slopes, in units of one structure's evidence


class Surrogate:
    """Fitted to evaluated structures; at least two."""

    def __init__(self, problem: FrontProblem, evaluated: Sequence[Evaluated], seed: int) -> None:
        self.problem = problem
        none = np.zeros((1, len(problem.space.blocks), 2), np.int64)
        self._worst_loss = max(float(problem.additive_loss(none)[0]), 1e-300)
        found = genomes([c.subnetwork for c in evaluated])
        signals = np.log(np.maximum([c.signal for c in evaluated], _LEAST))
        line = _line(self._guesses(found), signals)
        rest = signals - line.predict(self._guesses(found))
        process, above = (_process(self._features(found), each, seed) for each in (signals, rest))
        # a line's own slopes and its level have seen what they predict
        seen = len(line[-1].coef_) + 1
        pays = _left_out(above, rest) - seen > _left_out(process, signals)
        self._line = line if pays else None
        self._process = above if pays else process

    def predict(self, found: Integers) -> tuple[Floats, Floats]:
        """Mean and standard deviation `(n,)` of the signal's logarithm, of genomes."""
        mean, deviation = self._process.predict(self._features(found), return_std=True)
        if self._line is not None:
            mean = mean + self._line.predict(self._guesses(found))
        return mean, deviation

    def _guesses(self, found: Integers) -> Floats:
        """`(n, 4)`: additive loss, its logarithm, latency, depth."""
        loss = self.problem.additive_loss(found) / self._worst_loss
        depth = (found[..., 0] > 0).sum(axis=1)
        ms = self.problem.predictor.predict_many(found)
        return np.column_stack([loss, np.log(loss + _LEAST), ms, depth])

    def _features(self, found: Integers) -> Floats:
        """`(n, 2 blocks + 1)`: logarithms of widths, and of the additive loss, from -1.5 to 0.

        Two structures' distance is the quadratic mean of their widths' distances, and a quarter
        of that of their losses.
        """
        widest = np.array([[h[-1], f[-1]] for h, f in self.problem.options])
        widths = _logarithm((found / widest).reshape(len(found), -1), _NARROW)
        loss = self.problem.additive_loss(found) / self._worst_loss
        return np.column_stack([widths / np.sqrt(widths.shape[1]), _logarithm(loss, _LOSS) / 4])


def _line(known: Floats, signals: Floats) -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge(_RIDGE)).fit(known, signals)


def _process(features: Floats, signals: Floats, seed: int) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(0.5, (0.05, 10.0), nu=0.5)
    kernel += WhiteKernel(0.1, (1e-4, 1.0))
    process = GaussianProcessRegressor(
        kernel, normalize_y=True, n_restarts_optimizer=1, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hyperparameters at their bounds are welcome
        return process.fit(features, signals)


def _left_out(process: Any, signals: Floats) -> float:
    """The log density of each signal, predicted from all others (Rasmussen & Williams, 5.4.2)."""
    from scipy.linalg import cho_solve

    inverse = np.diag(cho_solve((process.L_, True), np.eye(len(process.L_))))
    errors = process.alpha_ / inverse
    scale = max(float(np.std(signals)), 1e-12)  # the process is fitted to signals of deviation 1
    density = np.log(inverse) / 2 - errors**2 * inverse / 2 - np.log(scale)
    return float(density.sum())


def _logarithm(share: Floats, least: float) -> Floats:
    """Of shares, 0 to 1, with a bound below."""
    return np.asarray(1.5 * np.log((share + least) / (1 + least)) / np.log((1 + least) / least))
