"""Which importance a recipe asks for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ImportanceSpec(BaseModel):
    """See `kinds`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["first_order", "fisher", "movement", "magnitude"] = "first_order"
    normalise: Literal["none", "sum", "l2"] = "none"  # by which each block's scores are divided
    # of movement: `soft` compares scores over the whole model, `hard` keeps the same share of each
    # block (Sanh et al. 2020, section 4)
    threshold: Literal["soft", "hard"] = "soft"
    rows: int = Field(256, ge=1)  # of training data that are looked at
    # by which structures are compared: sums of scores, or losses measured block by block (see
    # `sensitivity`); by default of encoders the one, of language models the other
    losses: Literal["scores", "measured"] | None = None
    loss_rows: int = Field(24, ge=1)  # of training data, for `measured`
