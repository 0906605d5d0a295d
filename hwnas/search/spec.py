"""What a recipe asks of the search."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
    # share of the baseline's loss that a deployment of the whole model, if within every budget, may
    # add to it so that nothing is searched; see `enough`
    enough: float = Field(0.01, ge=0)
    # before `guided` looked at the budgets above all: with a dozen evaluations for each budget,
    # `evolution`'s starts are as good: MiniLM on SST-2,
    # per cent wrong at 50, 33, 20 %, means of three seeds: 12.0, 14.6, 17.7 (`guided`: 12.5, 14.2,
    # 19.0); with thirty `guided` is ahead (10.6, 12.7, 17.9, and 12.0, 14.3, 17.7)
    algorithm: Algorithm = "evolution"
