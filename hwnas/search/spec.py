"""What a recipe asks of the search."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# by which candidates are compared, lower is better, on the search's validation rows: the
# divergence from the baseline's answers, the loss against the labels, or 100 minus the metric
Signal = Literal["divergence", "loss", "metric"]

# `evolution` searches under each budget by itself; all others find one front for all budgets:
# `guided` is ours (`guided`), the rest are its rivals (`rivals`)
Algorithm = Literal[
    "evolution",
    "guided",
    "exact",
    "nsga2",
    "nsga3",
    "tpe",
    "regularised",
    "local",
    "random",
]


class SearchSpec(BaseModel):
    """See `evolution` and `front`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signal: Signal = "divergence"
    algorithm: Algorithm = "evolution"
