"""A Hugging Face `Trainer` for one training set in a fixed order, by labels or by a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import convert_to_fp32
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_NAME

from hwnas.anatomy.heads import writes
from hwnas.tasks.kinds import Kind
from hwnas.tasks.written import say
from hwnas.training.autocast import in_half, on_processor
from hwnas.training.batches import ROW, questions
from hwnas.training.distillation import relations_loss, state_variances, states_loss
from hwnas.training.observing import Observed, observe
from hwnas.training.optimization import Optimization
from hwnas.training.teachers import Teacher

if TYPE_CHECKING:
    from hwnas.training.memory import Memory

_ROWS_FOR_VARIANCE = 64


class Sizes(NamedTuple):
    """Over how much the means of a loss are taken.

    Attributes:
        answers: rows, or tokens that count, as the task's losses have it.
        tokens: all but padding.
    """

    answers: float
    tokens: float


class PlannedTrainer(Trainer):
    """A `Trainer` that goes through its training set once, in the order given.

    A step's loss is the mean over all that it learns from, in however many passes and processes:
    a pass of longer rows counts for more.

    Args:
        kind: of the task; its losses are what is learned by from a teacher.
        teacher: it is asked beside the model, and the loss is the distillation's.
        memory: of what it has said to rows before.
    """

    def __init__(
        self,
        *,
        optimization: Optimization,
        kind: Kind,
        teacher: Teacher | None = None,
        memory: Memory | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.optimization = optimization
        self.kind = kind
        self.teacher = teacher
        if teacher is not None:
            teacher.move(self.args.device)
        self.memory = memory
        self.model_accepts_loss_kwargs = False  # our loss is a mean over the batch
        self._mean_sizes: Sizes | None = None  # of a step's passes, where there are several

    def get_train_dataloader(self) -> DataLoader[Any]:
        examples: Any = self.train_dataset
        loader: DataLoader[Any] = DataLoader(
            examples,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        passes, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        processes = self.accelerator.num_processes
        self._mean_sizes = None
        if processes * len(passes) > 1:
            each = [self._sizes(inputs) for inputs in passes]
            sums = torch.tensor([sum(column) for column in zip(*each, strict=True)], device=device)
            means: torch.Tensor = self.accelerator.reduce(sums) / (processes * len(passes))
            self._mean_sizes = Sizes(*means.tolist())
        return passes, items

    def _sizes(self, inputs: dict[str, torch.Tensor]) -> Sizes:
        return Sizes(float(self.kind.size(inputs)), float(inputs["attention_mask"].sum()))

    def _shares(self, inputs: dict[str, torch.Tensor]) -> Sizes:
        """How much a pass counts for, beside the others of its step: 1 on the mean."""
        if self._mean_sizes is None:
            return Sizes(1.0, 1.0)
        own, mean = self._sizes(inputs), self._mean_sizes
        return Sizes(own.answers / mean.answers, own.tokens / mean.tokens)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is trained into a checkpoint; frozen weights are those of whoever resumes."""
        if not self.args.should_save:
            return
        folder, model = Path(output_dir or str(self.args.output_dir)), self.model
        assert model is not None
        folder.mkdir(parents=True, exist_ok=True)
        trained = {
            name: parameter.detach().contiguous()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        save_file(trained, folder / SAFE_WEIGHTS_NAME)

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        if on_processor(self.optimization.precision):
            return in_half()
        given: AbstractContextManager[Any] = super().compute_loss_context_manager()  # type: ignore[no-untyped-call]
        return given

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.teacher is None:
            outputs, loss = self.taught(model, self.model, inputs)
            return (loss, outputs) if return_outputs else loss
        outputs, loss = self.distilled(model, self.model, inputs, self.answers(inputs))
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def answers(self, inputs: dict[str, torch.Tensor]) -> Observed:
        """What the teacher says to a batch."""
        assert self.teacher is not None
        if self.memory is not None:
            return self.memory.answers(inputs[ROW].tolist(), inputs["input_ids"].shape[1])
        with self.teacher.answering() as answering:
            return self._observed(answering, answering, inputs)

    def taught(
        self, model: torch.nn.Module, inner: Any, inputs: dict[str, torch.Tensor]
    ) -> tuple[Any, torch.Tensor]:
        """The model's outputs for a batch, and the loss by its labels."""
        if writes(inner):
            outputs = convert_to_fp32(say(model, inner, inputs))
        else:
            outputs = convert_to_fp32(model(**questions(inputs)))
        return outputs, self._shares(inputs).answers * self.kind.hard_loss(outputs, inputs)

    @cached_property
    def _variances(self) -> torch.Tensor:
        """Of the teacher's states, over the first rows: the same in each process."""
        assert self.teacher is not None
        examples: Any = self.train_dataset
        rows = [examples[i] for i in range(min(_ROWS_FOR_VARIANCE, len(examples)))]
        inputs = {name: x.to(self.args.device) for name, x in self.data_collator(rows).items()}
        with torch.no_grad(), self.teacher.answering() as answering:
            found = observe(answering, answering, inputs, states=True, relations=False)
        return state_variances(found.states, inputs["attention_mask"])

    def _observed(
        self, model: torch.nn.Module, inner: Any, inputs: dict[str, torch.Tensor]
    ) -> Observed:
        wanted = self.optimization
        return observe(
            model,
            inner,
            inputs,
            states=wanted.states_weight > 0,
            relations=wanted.relations_weight > 0,
        )

    def distilled(
        self,
        model: torch.nn.Module,
        inner: Any,
        inputs: dict[str, torch.Tensor],
        teacher: Observed,
    ) -> tuple[Any, torch.Tensor]:
        """The model's outputs for a batch, and the loss by the teacher's.

        Args:
            model: perhaps wrapped for several processes; `inner` is what is wrapped.
        """
        wanted = self.optimization
        outputs, states, projections = self._observed(model, inner, inputs)
        hard = self.kind.hard_loss(outputs, inputs)
        soft = self.kind.soft_loss(outputs, teacher.outputs, inputs, wanted.temperature)
        share = self._shares(inputs)
        loss = share.answers * (wanted.distill_weight * soft + (1 - wanted.distill_weight) * hard)
        if wanted.states_weight > 0:
            apart = states_loss(states, teacher.states, inputs["attention_mask"], self._variances)
            loss = loss + share.tokens * wanted.states_weight * apart
        if wanted.relations_weight > 0:
            apart = relations_loss(projections, teacher.projections, inputs["attention_mask"])
            loss = loss + share.tokens * wanted.relations_weight * apart
        return outputs, loss
