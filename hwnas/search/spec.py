"""What a recipe asks of the search."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# by which candidates are compared, lower is better, on the search's validation rows: the
# divergence from the baseline's answers, the loss against the labels, or 100 minus the metric
Signal = Literal["divergence", "loss", "metric"]


class SearchSpec(BaseModel):
    """See `evolution`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signal: Signal = "divergence"
