"""The baseline: the original model, trained on the task as long as any smaller rival is.

An under-trained baseline flatters every smaller model, so it takes as many steps as the longest
trained of the smaller ones in all stages together, or stops when validation no longer improves. Its
weights on the way are where the students start, which then learn from the better, finished one. A
baseline that has converged before that is itself the start; so is one that was trained by adapters,
whose merged weights are frozen then and teach the adapters that come after.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hwnas.elastic.adapters import dense_state
from hwnas.files import read_model, replacing, write_json
from hwnas.importance.kinds import Movement
from hwnas.processes import alone, leading
from hwnas.tasks.kinds import Kind
from hwnas.tasks.predict import predict
from hwnas.training.optimization import Optimization
from hwnas.training.trainer import train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MOVEMENT = "movement.safetensors"


class BaselineHistory(BaseModel):
    """How the baseline's training went; kept beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int  # that the baseline's weights have seen
    start_steps: int  # that the students' start has seen
    converged: bool
    validation: dict[int, float]  # step -> loss


@dataclass(frozen=True)
class Patience:
    """When validation counts as no longer improving."""

    every: int  # steps between evaluations
    evaluations: int = 2  # so many in a row without a new best


class _Watch(TrainerCallback):
    """Evaluates on the way, keeps the best weights and the students' start on disk."""

    def __init__(
        self, validation: Dataset, kind: Kind, patience: Patience, start_step: int, kept: Path
    ) -> None:
        self.validation = validation
        self.kind = kind
        self.patience = patience
        self.start_step = start_step
        self.kept = kept
        self.log = kept / "log.json"
        self.losses: dict[int, float] = {}
        if self.log.exists():
            self.losses = _Log.model_validate_json(self.log.read_text()).losses

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        assert model is not None
        step = state.global_step
        if step == self.start_step:
            _save(model, self.kept / "start")
        if step % self.patience.every == 0 or step == state.max_steps:
            self._evaluate(model, step)
            since_best = sum(s > self.best_step for s in self.losses if s <= step)
            control.should_training_stop |= since_best >= self.patience.evaluations

    @property
    def best_step(self) -> int:
        return min(self.losses, key=lambda step: (self.losses[step], step))

    def _evaluate(self, model: PreTrainedModel, step: int) -> None:
        # a resumed training passes its last steps a second time, and must judge them as before
        self.losses = {s: loss for s, loss in self.losses.items() if s < step}
        was_training = model.training
        model.eval()
        answers = predict(model, self.validation)
        model.train(was_training)
        loss = self.kind.loss(answers, self.validation)
        best = min(self.losses.values(), default=math.inf)
        self.losses[step] = loss
        if loss < best:
            _save(model, self.kept / "best")
        if leading():
            write_json(self.log, _Log(losses=self.losses))


class _Log(BaseModel):
    losses: dict[int, float]


def train_baseline(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_set: Dataset,
    validation: Dataset,
    optimization: Optimization,
    *,
    kind: Kind,
    start_step: int,
    patience: Patience,
    out: Path,
    movement: bool = False,
) -> BaselineHistory:
    """Train `model`; write `out/model`, `out/start` (where students begin), `out/history.json`.

    Args:
        train_set, validation: encoded rows; validation is not the test set.
        kind: of the task.
        start_step: after how many steps the students' start is taken.
        movement: write `out/movement.safetensors` too, the weights' movement up to that start.
    """
    work = out.with_name(f"{out.name}-training")
    watch = _Watch(validation, kind, patience, start_step, work / "kept")
    callbacks: list[TrainerCallback] = [watch]
    if movement:
        callbacks.append(Movement(work / "kept" / MOVEMENT, start_step))
    steps = train(
        model,
        tokenizer,
        train_set,
        optimization,
        work / "checkpoints",
        kind=kind,
        callbacks=tuple(callbacks),
        title="baseline",
    )
    converged = steps < optimization.steps
    # adapters stand on frozen weights, which teach: those of the finished baseline
    from_best = converged or optimization.adapters is not None
    best = work / "kept" / "best"
    history = BaselineHistory(
        steps=watch.best_step,
        start_steps=watch.best_step if from_best else start_step,
        converged=converged,
        validation=watch.losses,
    )

    def keep() -> None:
        with replacing(out) as partial:
            shutil.copytree(best, partial / "model")
            tokenizer.save_pretrained(partial / "model")
            shutil.copytree(best if from_best else work / "kept" / "start", partial / "start")
            if movement:
                shutil.copy(work / "kept" / MOVEMENT, partial)
            write_json(partial / "history.json", history)
        shutil.rmtree(work)

    alone(keep)
    return history


def keep_original(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write what `train_baseline` writes, of a model that is itself what students are to equal."""
    history = BaselineHistory(steps=0, start_steps=0, converged=True, validation={})
    with replacing(out) as partial:
        for name in ("model", "start"):
            model.save_pretrained(partial / name)
        tokenizer.save_pretrained(partial / "model")
        write_json(partial / "history.json", history)


def read_history(out: Path) -> BaselineHistory:
    """The history of a baseline that `train_baseline` wrote to `out`."""
    return read_model(out / "history.json", BaselineHistory)


def _save(model: PreTrainedModel, folder: Path) -> None:
    if not leading():
        return
    with replacing(folder) as partial:
        model.save_pretrained(partial, state_dict=dense_state(model))
