"""A loss by labels for clients whose classes are unevenly many.

Trained by plain cross-entropy, a client that has mostly one class teaches the network to say that
class, and the average of such clients says whatever the most insistent say. With the logarithm of
the client's own class shares added to its logits, what is left to learn is what the texts say
(logit adjustment, Menon et al. 2021; in federation, Zhang et al. 2022, "FedLC").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hwnas.tasks.classification import Classification


@dataclass(frozen=True)
class Calibrated(Classification):
    """Classification by a client whose class shares are known.

    Args:
        offsets: of each class's logit while training by labels.
    """

    offsets: tuple[float, ...] = ()

    @classmethod
    def to(cls, labels: Sequence[int], classes: int, weight: float) -> Calibrated:
        """By a client's training labels; each class counts one more, for it may have none."""
        counts = torch.bincount(torch.tensor(labels), minlength=classes) + 1.0
        return cls(offsets=tuple((weight * (counts / counts.sum()).log()).tolist()))

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of the logits with the offsets."""
        offsets = outputs.logits.new_tensor(self.offsets)
        return F.cross_entropy(outputs.logits + offsets, inputs["labels"])
