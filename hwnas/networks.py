"""The baseline and the students' start in memory: read when first needed, held once.

While a super-network is trained, neither waits in memory beside it, where each is as large as what
is trained. Of a language model whose adapters were trained, the start in its own order of heads and
neurons is the baseline, so it teaches as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from hwnas.elastic.residual import reorder_residual
from hwnas.elastic.supernet import SuperNetwork
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.inputs import Inputs
from hwnas.models import load, on_gpu
from hwnas.training.baseline import read_history

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Networks:
    """What `baseline/` holds, as the stages after it use it."""

    def __init__(self, inputs: Inputs, scores: Importance) -> None:
        self.inputs = inputs
        self.scores = scores

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The baseline, dense; its residual dimensions in the students' order."""
        if self.inputs.recipe.adapters is not None and self._start_is_baseline:
            return self.start.model
        return load_teacher(self.inputs, self.scores)

    @cached_property
    def start(self) -> SuperNetwork:
        """The students' starting weights, reordered, elastic."""
        return starting_network(self.inputs, self.scores)

    @cached_property
    def baseline(self) -> SuperNetwork:
        """The teacher's weights likewise, of which structures that leave out little are cut."""
        return (
            self.start if self._start_is_baseline else _elastic(self.inputs, self.scores, "model")
        )

    @property
    def _start_is_baseline(self) -> bool:
        history = read_history(self.inputs.path / "baseline")
        return history.start_steps == history.steps


def load_teacher(inputs: Inputs, scores: Importance) -> PreTrainedModel:
    """The baseline, its residual dimensions in the students' order where that matters."""
    teacher = on_gpu(load(inputs.path / "baseline" / "model"))
    if inputs.recipe.space.hidden:
        reorder_residual(teacher, scores.residual)
    return teacher


def starting_network(inputs: Inputs, scores: Importance) -> SuperNetwork:
    """The students' starting weights, reordered, elastic."""
    return _elastic(inputs, scores, "start")


def _elastic(inputs: Inputs, scores: Importance, name: str) -> SuperNetwork:
    model = on_gpu(load(inputs.path / "baseline" / name))
    reorder(model, scores)
    if inputs.recipe.space.hidden:
        reorder_residual(model, scores.residual)
    return SuperNetwork(model)


@contextmanager
def resting(networks: Iterable[SuperNetwork]) -> Iterator[None]:
    """Keep networks that are on a GPU in main memory for a while."""
    moved = [network for network in networks if network.model.device.type == "cuda"]
    for network in moved:
        network.model.to("cpu")  # type: ignore[arg-type]
    try:
        yield
    finally:
        for network in moved:
            on_gpu(network.model)
