"""Which adapters a recipe asks for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

_DROPOUT = 0.1


class AdapterSpec(BaseModel):
    """Sizes of low-rank adapters; defaults are LoNAS's for LLaMA. See `adapters`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(32, ge=1)
    alpha: float = Field(64.0, gt=0)  # outputs are scaled by alpha / rank
    # of what they read; by default 0.1, but none in trainings that the recipe has no dropout for
    dropout: float | None = Field(None, ge=0, lt=1)
    rate: float = Field(3e-4, gt=0, lt=1)  # of learning, in all stages
    # of those who learn from the baseline; by default the same
    students_rate: float | None = Field(None, gt=0, lt=1)
    # ranks that the super-network's sampled subnetworks have, the adapters' own beside them
    ranks: tuple[int, ...] = Field((), validate_default=True)
    start: str | None = None  # a folder with an adapter of the original model that peft wrote

    @field_validator("ranks")
    @classmethod
    def _narrower(cls, values: tuple[int, ...], info: object) -> tuple[int, ...]:
        rank = getattr(info, "data", {}).get("rank", 0)
        for value in values:
            if not 0 < value <= rank:
                raise ValueError(f"{value} is not from 1 to the adapters' rank, {rank}")
        return values

    def rate_of(self, *, student: bool) -> float:
        """The rate of learning of the baseline, or of one who learns from it."""
        return self.students_rate if student and self.students_rate is not None else self.rate

    def dropping(self, wanted: bool) -> AdapterSpec:
        """For a training with dropout or without, where nothing else says how much."""
        if self.dropout is not None or wanted:
            return self
        return self.model_copy(update={"dropout": 0.0})

    @property
    def drops(self) -> float:
        """The share of what adapters read that is dropped while they are trained."""
        return _DROPOUT if self.dropout is None else self.dropout

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank
