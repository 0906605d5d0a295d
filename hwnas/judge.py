"""By what a search compares structures: their answers on the search's validation rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hwnas.elastic.supernet import SuperNetwork
from hwnas.inputs import Inputs
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.predict import predict

if TYPE_CHECKING:
    import numpy.typing as npt

    Answers = npt.NDArray[np.float32]


@dataclass
class Judge:
    """Signals of quality as the recipe asks for them, lower is better; see `search.spec`."""

    inputs: Inputs
    teacher_answers: Answers  # the baseline's, on the search's validation rows

    def of(self, network: SuperNetwork, subnetwork: Subnetwork) -> float:
        """The signal of a subnetwork with the super-network's weights."""
        with network.as_subnetwork(subnetwork) as model:
            return self.signal(predict(model, self.inputs.search_validation))

    def divergence(self, answers: Answers) -> float:
        """The distance of answers from the teacher's."""
        validation = self.inputs.search_validation
        return self.inputs.task.kind.divergence(self.teacher_answers, answers, validation)

    def signal(self, answers: Answers) -> float:
        """What the recipe compares candidates by."""
        task, validation = self.inputs.task, self.inputs.search_validation
        match self.inputs.recipe.search.signal:
            case "loss":
                return task.kind.loss(answers, validation)
            case "metric":
                return 100 - task.kind.score(task.metric, answers, validation)
        return self.divergence(answers)

    @cached_property
    def worst(self) -> float:
        """The signal of who answers everything alike, with the teacher's mean answer."""
        mean = self.teacher_answers.mean(axis=0, keepdims=True)
        return self.signal(np.broadcast_to(mean, self.teacher_answers.shape).copy())
