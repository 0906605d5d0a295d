"""How much training a run may use, and how that is split between its stages.

The unit is the *full-model step*: forward and backward of one batch through the full model. A
subnetwork's step costs its share of the multiply-accumulates, a forward pass a third of a step.
One training for many budgets is where weight sharing pays; for one or two budgets a finalist
trained directly is hard to beat (METHODS, the prototype). So by default the super-network and the
search are short, the winner of every budget takes the same large number of steps, and those of the
smaller budgets go on from the largest budget's winner. The baseline takes as many steps as a
winner has seen in all stages.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from hwnas.anatomy import Shape
from hwnas.space import Subnetwork, macs
from hwnas.training.sampling import Sandwich

FORWARD = 1 / 3  # of a training step


class ComputePlan(BaseModel):
    """Steps of every stage; a batch has `batch` examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: float | None = Field(None, gt=0)  # of training, all stages; scales the steps below
    batch: int = Field(16, gt=0)
    start_steps: int = Field(260, ge=1)  # of the original, before the students start from it
    supernet_steps: int = Field(16, ge=1)
    evaluations: int = Field(12, ge=1)  # candidates that the search evaluates, for each budget
    evaluation_rows: int = Field(96, ge=1)  # validation rows that the search looks at
    plateau_rows: int = Field(384, ge=1)  # validation rows that end the baseline's training
    choice_rows: int = Field(768, ge=1)  # validation rows that judge the finalists
    entrants: int = Field(3, ge=1)  # finalists, for each budget
    first_rung_steps: int = Field(12, ge=1)  # of each finalist, before all but one are dropped
    winner_steps: int = Field(400, ge=2)  # of each budget's winner, the first rung included

    def student_steps(self, budgets: int) -> int:
        """Steps that a chosen subnetwork may see after the students' start, at most.

        With several budgets, the smaller ones' winners go on from the largest one's. The teacher
        answers the rows of all these steps, so that none is seen twice while there are others.
        """
        return self.supernet_steps + self.winner_steps * min(budgets, 2)

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
                "supernet_steps": times(self.supernet_steps),
                "first_rung_steps": times(self.first_rung_steps),
                "winner_steps": times(self.winner_steps),
            }
        )

    def total(self, shares: Sequence[float], sandwich_cost: float = 2.0) -> float:
        """Full-model steps of a whole run with budgets of these shares of the full model."""
        return (
            self.baseline_steps(len(shares))
            + self.student_steps(len(shares)) * FORWARD  # the teacher's answers
            + self.supernet_steps * sandwich_cost
            + sum(self.for_budget(share) for share in shares)
        )

    def for_budget(self, share: float) -> float:
        """Full-model steps of one budget's search and finalists."""
        evaluations = self.evaluations * self.evaluation_rows / self.batch * FORWARD
        halving = self.winner_steps + (self.entrants - 1) * self.first_rung_steps
        return share * (evaluations + halving)


def step_cost(subnetwork: Subnetwork, shape: Shape, seq: int) -> float:
    """One training step of `subnetwork` in full-model steps, for sequences of `seq` tokens."""
    return macs(subnetwork, shape, seq) / macs(Subnetwork.full(shape), shape, seq)


def supernet_cost(sandwich: Sandwich, steps: int, shape: Shape, seq: int) -> float:
    """Full-model steps that `steps` of super-network training take."""
    return sum(
        step_cost(subnetwork, shape, seq)
        for step in range(steps)
        for subnetwork in sandwich.at(step)
    )
