"""What leaving out parts of one block really costs, measured block by block.

First-order scores order the parts within a block well, but say little of how blocks, or heads and
neurons, compare: of SmolLM2 they find two thirds of all heads not worth keeping. So every block in
turn is given a few smaller widths, and left out, and the distance of the model's answers from the
whole one's is measured on a few rows. Between the measured widths the scores say how the loss
grows. The sum over blocks is what exact answers minimise (compare ZipLM, Kurtic et al. 2023).

Assumes that the model was reordered by the scores, and that losses of blocks add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwnas.importance.scores import Importance
from hwnas.progress import bar
from hwnas.subnetwork import DROPPED, Block, Subnetwork
from hwnas.tasks.predict import outputs_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from hwnas.elastic.supernet import SuperNetwork
    from hwnas.tasks.kinds import Kind

    Floats = npt.NDArray[np.float64]

_FFN_SHARES = (0.3, 0.65)  # of a block's neurons, that are measured
_HEAD_SHARES = (0.34, 0.67)  # likewise of its KV groups
Batches = Sequence[Mapping[str, torch.Tensor]]


def with_losses(
    scores: Importance, network: SuperNetwork, batches: Batches, kind: Kind
) -> Importance:
    """The scores together with measured losses, by which structures are then compared.

    Args:
        network: reordered by the scores.
        batches: of inputs with labels, on which answers are compared.
        kind: of the task; its `soft_loss` is the distance.
    """
    shape = network.shape
    full = Subnetwork.full(shape)
    ordered = scores.sorted(shape.group)
    widths = [_measured_widths(block, shape.group) for block in full.blocks]
    count = sum(len(heads) + len(ffn) + 1 for heads, ffn in widths)
    found_heads, found_ffn = [], []
    with bar("losses of blocks", count) as advance, torch.no_grad():
        whole = [outputs_of(network.model, batch) for batch in batches]

        def distance(i: int, block: Block) -> float:
            blocks = (*full.blocks[:i], block, *full.blocks[i + 1 :])
            if not any(b.present for b in blocks):
                return float("nan")
            with network.as_subnetwork(Subnetwork(blocks)) as model:
                each = [
                    float(kind.soft_loss(outputs_of(model, batch), said, batch, 1.0))
                    for batch, said in zip(batches, whole, strict=True)
                ]
            advance(1)
            return float(np.mean(each))

        for i, (block, (heads, ffn)) in enumerate(zip(full.blocks, widths, strict=True)):
            by_heads = {h: distance(i, Block(h, block.ffn)) for h in heads}
            by_ffn = {f: distance(i, Block(block.heads, f)) for f in ffn}
            gone = distance(i, DROPPED)
            if not np.isfinite(gone):  # the only block
                gone = max([*by_heads.values(), *by_ffn.values(), 0.0])
            found_heads.append(_curve(by_heads, ordered.heads[i], gone / 2))
            found_ffn.append(_curve(by_ffn, ordered.ffn[i], gone / 2))
    return replace(scores, head_losses=tuple(found_heads), ffn_losses=tuple(found_ffn))


def _measured_widths(block: Block, group: int) -> tuple[list[int], list[int]]:
    """Smaller widths of a block that are measured: of heads in whole groups, and of neurons."""
    groups = block.heads // group
    heads = {group * max(1, round(share * groups)) for share in _HEAD_SHARES}
    ffn = {max(1, round(share * block.ffn)) for share in _FFN_SHARES}
    return sorted(heads - {block.heads}), sorted(ffn - {block.ffn})


def _curve(measured: Mapping[int, float], scores: torch.Tensor, gone: float) -> torch.Tensor:
    """The loss of keeping a prefix of `k` parts, `k` from 0 (the block is gone) to all.

    Args:
        scores: of the parts, the most important first.
    """
    parts = len(scores)
    kept = np.concatenate([[0.0], scores.double().numpy().cumsum()])
    left_out = kept[-1] - kept
    # the fewer are kept, the more is lost
    losses = {parts: 0.0}
    for width in sorted(measured, reverse=True):
        losses[width] = max(measured[width], *losses.values())
    at = sorted(losses)
    if left_out[at[0]] <= 0:  # scores that say nothing
        left_out = np.arange(parts, -1, -1, dtype=np.float64)
    order = at[::-1]
    points, values = left_out[order], [losses[width] for width in order]
    found = np.interp(left_out, points, values)
    if len(at) > 1 and at[0] > 1:  # fewer than the fewest measured: on, at the last slope
        rise = (values[-1] - values[-2]) / max(points[-1] - points[-2], 1e-12)
        found[1 : at[0]] = values[-1] + rise * (left_out[1 : at[0]] - points[-1])
    found[0] = gone
    return torch.from_numpy(found)
