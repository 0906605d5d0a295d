"""How much training a run may use, and how that is split between its stages.

The unit is the *full-model step*: forward and backward of one batch through the full model. A
subnetwork's step costs its share of the multiply-accumulates, a forward pass a third of a step;
the teacher's forward pass is part of every student's step.

One training for many budgets is where weight sharing pays; for one or two budgets a finalist
trained directly is hard to beat (METHODS, the prototype). So by default the super-network and the
search are short, most steps go to the largest budget's winner, and those of the smaller budgets go
on from it with fewer (heirs). The baseline takes as many steps as a winner has seen in all stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hwnas.anatomy import Shape
from hwnas.subnetwork import Subnetwork, macs
from hwnas.training.sampling import Sandwich

FORWARD = 1 / 3  # of a training step
Precision = Literal["fp32", "bf16", "fp16"]


class ComputePlan(BaseModel):
    """Steps of every stage; a batch has `batch` examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: float | None = Field(None, gt=0)  # of training, all stages; scales the steps below
    batch: int = Field(16, gt=0)
    start_steps: int = Field(260, ge=1)  # of the original, before the students start from it
    general_steps: int = Field(0, ge=0)  # of the super-network before, on unlabelled text
    supernet_steps: int = Field(16, ge=1)
    evaluations: int = Field(12, ge=1)  # candidates that the search evaluates, for each budget
    evaluation_rows: int = Field(96, ge=1)  # validation rows that the search looks at
    plateau_rows: int = Field(384, ge=1)  # validation rows that end the baseline's training
    choice_rows: int = Field(768, ge=1)  # validation rows that judge the finalists
    test_rows: int | None = Field(None, ge=1)  # test rows that are scored in the end; None: all
    entrants: int = Field(2, ge=1)  # finalists, for each budget: best widths, best of fewer blocks
    first_rung_steps: int = Field(24, ge=1)  # of each finalist, before all but one are dropped
    winner_steps: int = Field(450, ge=2)  # of a budget's winner, the first rung included
    heir_steps: int = Field(190, ge=2)  # the same, if it goes on from a larger budget's winner

    def student_steps(self, budgets: int) -> int:
        """Steps that a chosen subnetwork may see after the students' start, at most."""
        return self.supernet_steps + self.winner_steps + (self.heir_steps if budgets > 1 else 0)

    def baseline_steps(self, budgets: int) -> int:
        """Steps of the baseline: as many as any of its smaller rivals sees in all stages."""
        return self.start_steps + self.student_steps(budgets)

    def scaled(self, factor: float) -> ComputePlan:
        """All training times `factor`."""

        def times(steps: int) -> int:
            return max(2, round(steps * factor))

        return self.model_copy(
            update={
                "start_steps": times(self.start_steps),
                "general_steps": times(self.general_steps) if self.general_steps else 0,
                "supernet_steps": times(self.supernet_steps),
                "first_rung_steps": times(self.first_rung_steps),
                "winner_steps": times(self.winner_steps),
                "heir_steps": times(self.heir_steps),
            }
        )

    def total(self, shares: Sequence[float], sandwich_cost: float = 2.0) -> float:
        """Full-model steps of a whole run with budgets of these shares of the full model."""
        return (
            self.baseline_steps(len(shares))
            + (self.general_steps + self.supernet_steps) * sandwich_cost
            + self.for_budgets(shares)
        )

    def for_budgets(self, shares: Sequence[float]) -> float:
        """Full-model steps of all searches and finalists."""
        largest, *others = sorted(shares, reverse=True)
        return self._for_budget(largest, self.winner_steps) + sum(
            self._for_budget(share, self.heir_steps) for share in others
        )

    def _for_budget(self, share: float, steps: int) -> float:
        evaluations = self.evaluations * self.evaluation_rows / self.batch * FORWARD
        halving = steps + (self.entrants - 1) * self.first_rung_steps
        return share * evaluations + (share + FORWARD) * halving


def step_cost(subnetwork: Subnetwork, shape: Shape, seq: int) -> float:
    """One training step of `subnetwork` in full-model steps, for sequences of `seq` tokens."""
    return macs(subnetwork, shape, seq) / macs(Subnetwork.full(shape), shape, seq)


def supernet_cost(sandwich: Sandwich, steps: int, shape: Shape, seq: int) -> float:
    """Full-model steps that `steps` of super-network training take, the teacher's part included."""
    return steps * FORWARD + sum(
        step_cost(subnetwork, shape, seq)
        for step in range(steps)
        for subnetwork in sandwich.at(step)
    )
