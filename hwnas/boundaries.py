"""Search-space boundaries found automatically, as in EFTNAS (section 3), and then by the clock.

For each of a few target complexities one threshold on the importance of single weights, the same
for the whole model, is found by bisection, such that what survives has that complexity. The
widths that survive in a block, over all targets, are its options; nothing is chosen by hand. EFTNAS
counts multiply-accumulates; here the target is milliseconds of the user's device as well.

Beyond the paper, options follow the latency table: each is raised to the widest that takes no more
time, so that options which cost as much as a wider one are gone (`snapped`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.anatomy import Shape
from hwnas.errors import UserError
from hwnas.importance.scores import Importance, Tensors
from hwnas.latency.predictor import LatencyPredictor
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_REMOVED = 0.02  # of its full width: a block that keeps less is left out
_STEPS = 60  # of bisection
_SAME_TIME = 0.002  # of a block's full cost: times that differ by less are the same

Cost = Callable[[Subnetwork], float]


def surviving(importance: Importance, threshold: float, shape: Shape) -> Subnetwork:
    """What is left of each block when parts below the threshold are gone.

    A head or a neuron is judged by the mean score of its weights. Heads that share a key-value head
    stay together. A block that keeps under 2 % of its heads or of its neurons is left out.
    """
    blocks = []
    for heads, ffn, full_heads, full_ffn in zip(
        importance.head_weights, importance.ffn_weights, shape.heads, shape.ffn, strict=True
    ):
        groups = heads.view(-1, shape.group).mean(1)
        left = Block(int((groups >= threshold).sum()) * shape.group, int((ffn >= threshold).sum()))
        gone = left.heads < _REMOVED * full_heads or left.ffn < _REMOVED * full_ffn
        blocks.append(DROPPED if gone else left)
    return Subnetwork(tuple(blocks))


def at_complexity(importance: Importance, cost: Cost, target: float, shape: Shape) -> Subnetwork:
    """The surviving widths at the least threshold whose cost is within `target`.

    Raises:
        UserError: even one head or neuron costs more.
    """
    scores = np.sort(np.concatenate([t.numpy() for t in _weights(importance)]))
    # between the candidates the surviving widths do not change, so the index is what is bisected
    low, high = 0, len(scores) - 1
    for _ in range(_STEPS):
        if low >= high:
            break
        middle = (low + high) // 2
        if _within(surviving(importance, float(scores[middle]), shape), cost, target):
            high = middle
        else:
            low = middle + 1
    found = surviving(importance, float(scores[low]), shape)
    if not found.kept:
        raise UserError(
            f"boundaries: at a complexity of {target:.3g} nothing of the model survives; "
            "raise space.smallest"
        )
    return found


def _within(subnetwork: Subnetwork, cost: Cost, target: float) -> bool:
    return not subnetwork.kept or cost(subnetwork) <= target


def _weights(importance: Importance) -> Tensors:
    found = (*importance.head_weights, *importance.ffn_weights)
    if not found:
        raise UserError("importance: has no scores of single weights; measure it again")
    return found


def automatic(
    importance: Importance,
    shape: Shape,
    cost: Cost,
    shares: Sequence[float],
    step: int = 1,
) -> SearchSpace:
    """The space whose options are the widths that survive at each of these complexities.

    Args:
        cost: of a subnetwork, in whatever the complexity is counted; 1 for the full model.
        shares: complexities as shares of the full model's.
        step: FFN widths are multiples of it.
    """
    found = [at_complexity(importance, cost, share, shape) for share in sorted(shares)]
    blocks = []
    for i in range(shape.depth):
        here = [s.blocks[i] for s in found]
        kept = [block for block in here if block.present]
        heads = {block.heads for block in kept} or {shape.group}
        ffn = {_rounded(block.ffn, step, shape.ffn[i]) for block in kept} or {
            min(step, shape.ffn[i])
        }
        blocks.append(
            BlockOptions(
                heads=tuple(sorted(heads)),
                ffn=tuple(sorted(ffn)),
                droppable=any(not block.present for block in here),
            )
        )
    return SearchSpace(blocks=tuple(blocks))


def _rounded(width: int, step: int, most: int) -> int:
    return min(max(step, step * round(width / step)), most)


def snapped(space: SearchSpace, predictor: LatencyPredictor, shape: Shape) -> SearchSpace:
    """Every option raised to the widest that takes no more time, up to the model's own width.

    Times that differ by less than 0.2 % of the whole block's count as the same.
    """
    blocks = []
    for options, heads, ffn in zip(space.blocks, shape.heads, shape.ffn, strict=True):
        same = _SAME_TIME * predictor.block_ms(Block(heads, ffn))
        all_heads = np.arange(shape.group, heads + 1, shape.group)
        all_ffn = np.arange(1, ffn + 1)
        blocks.append(
            BlockOptions(
                heads=_raised(options.heads, all_heads, predictor.attention.at(all_heads), same),
                ffn=_raised(options.ffn, all_ffn, predictor.ffn.at(all_ffn), same),
                droppable=options.droppable,
            )
        )
    return SearchSpace(blocks=tuple(blocks))


def _raised(
    options: Sequence[int], widths: npt.NDArray[np.int64], ms: Floats, same: float
) -> tuple[int, ...]:
    found = set()
    for option in options:
        here = float(ms[int(np.searchsorted(widths, option))])
        found.add(int(widths[np.flatnonzero(ms <= here + same)[-1]]))
    return tuple(sorted(found))
