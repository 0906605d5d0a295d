"""Linear layers whose active width is a prefix of their weights.

The active part is a view of the one weight tensor: nothing is copied or gathered in forward, so
all subnetworks share their weights, and a narrow layer costs what a small dense one costs.
Assumes that the rows and columns have been ordered by importance, most important first.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class ElasticLinear(nn.Linear):
    """A linear layer `(…, active_in) -> (…, active_out)` on a prefix of its weight.

    Parameter names and shapes are `nn.Linear`'s, so checkpoints stay interchangeable.
    """

    active_in: int
    active_out: int

    @classmethod
    def sharing(cls, linear: nn.Linear) -> ElasticLinear:
        """An elastic layer on the very parameters of `linear`, at full width."""
        elastic = cls.__new__(cls)
        nn.Module.__init__(elastic)
        elastic.in_features, elastic.out_features = linear.in_features, linear.out_features
        elastic.weight, elastic.bias = linear.weight, linear.bias
        elastic.active_in, elastic.active_out = linear.in_features, linear.out_features
        elastic.train(linear.training)
        return elastic

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if self.active_out < self.out_features:
            weight = weight[: self.active_out]
            bias = bias[: self.active_out] if bias is not None else None
        if self.active_in < self.in_features:
            weight = weight[:, : self.active_in]
        return F.linear(x, weight, bias)

    def merged(self) -> torch.Tensor:
        """The weight that a dense layer would need, `(out_features, in_features)`."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{self.active_in} of {self.in_features} -> {self.active_out} of {self.out_features}"
