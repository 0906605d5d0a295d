"""What weights cost for being gone from the caches when they are needed again.

Every inference reads all weights, always in the same order. While they fit the caches that costs
nothing beyond computing. Once they do not, part of them comes from memory each time: a cache that
replaces lines at random misses the share m of what is read, where `1 - m = exp(-m * size /
capacity)`, for a line must outlive all that are fetched until its turn comes again. That is nothing
up to the capacity, and four fifths at twice of it.

How much the caches of a processor hold for one process is seldom known (virtual machines are told
the whole server's), so it is found from timed networks; where no one size explains them, as with
several levels of caches, the square of the weights' size stands for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

AMPLE = 1.0  # all weights fit
SQUARE = 0.0  # no one capacity
# shares of the full model's weights that the caches may hold: of those in `PERCENTS`, where a table
# states what weights cost, for the curve bends there
CAPACITIES = (
    AMPLE,
    SQUARE,
    0.1,
    0.14,
    0.2,
    0.24,
    0.3,
    0.36,
    0.4,
    0.46,
    0.5,
    0.56,
    0.6,
    0.7,
    0.8,
    0.9,
)
PERCENTS = range(2, 101, 2)


def crowding(shares: npt.ArrayLike, capacity: float) -> Floats:
    """What so many weights cost for lack of room, in parts of what the full model's do.

    Args:
        shares: of the full model's weights, up to 1.
        capacity: of the caches, likewise; or `AMPLE`, or `SQUARE`.
    """
    size = np.asarray(shares, dtype=np.float64)
    if capacity == AMPLE:
        return np.zeros_like(size)
    if capacity == SQUARE:
        return np.asarray(size**2)
    whole = missed(1.0, capacity)
    return np.asarray(size * missed(size, capacity) / whole)


def missed(sizes: npt.ArrayLike, capacity: float) -> Any:
    """The share of what is read that comes from memory."""
    from scipy.special import lambertw

    crowd = np.maximum(np.asarray(sizes, dtype=np.float64) / capacity, 1.0)
    found = 1 + np.real(lambertw(-crowd * np.exp(-crowd))) / crowd
    return np.where(crowd > 1, found, 0.0)  # at 1 rounding may leave the function's domain
