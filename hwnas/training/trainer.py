"""Training on the Hugging Face `Trainer`: a dense student, or the super-network's sandwich.

The Trainer keeps the loop, the optimizer, the checkpoints and `torchrun`; what is ours is the
fixed order of the examples (`order.py`), distillation from a teacher that answers each batch on
the spot and, for the super-network, several subnetworks a step. Every run is so many steps, no
epochs, and resumes to the same weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from hwnas.elastic.supernet import SuperNetwork
from hwnas.progress import bar
from hwnas.training.distillation import distillation_loss, states_loss
from hwnas.training.order import training_order
from hwnas.training.sampling import Sandwich

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels")


@dataclass(frozen=True)
class Optimization:
    """How weights are trained; what concerns distillation counts only where there is a teacher."""

    steps: int
    learning_rate: float
    batch: int = 32
    warmup: float = 0.06  # share of the steps
    weight_decay: float = 0.01
    distill_weight: float = 0.7  # of the teacher's logits; the labels have the rest
    temperature: float = 2.0
    states_weight: float = 1.0  # of the blocks' outputs, beside both
    dropout: bool = True  # the model's own; without it, none
    freeze_embeddings: bool = False  # those of the words
    seed: int = 0
    checkpoint_every: int = 250  # steps between resumable checkpoints


@contextmanager
def prepared(model: PreTrainedModel, optimization: Optimization) -> Iterator[None]:
    """`model` with dropout and word embeddings as `optimization` says; as it was afterwards."""
    frozen = [p for p in model.get_input_embeddings().parameters() if p.requires_grad]
    dropouts = list(_dropouts(model))
    before = [getattr(module, name) for module, name in dropouts]
    try:
        if optimization.freeze_embeddings:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if not optimization.dropout:
            for module, name in dropouts:
                setattr(module, name, 0.0)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for (module, name), probability in zip(dropouts, before, strict=True):
            setattr(module, name, probability)


def _dropouts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """Modules that drop out, with the attribute that holds the probability."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            yield module, "p"
        # attention keeps the probability that it hands to torch's fused kernel
        elif isinstance(getattr(module, "dropout_prob", None), float):
            yield module, "dropout_prob"


class PlannedTrainer(Trainer):
    """A `Trainer` that goes through its training set once, in the order given.

    Args:
        teacher: in eval mode; it is run beside the model, and the loss is the distillation's.
    """

    def __init__(
        self,
        *,
        optimization: Optimization,
        teacher: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.optimization = optimization
        self.teacher = teacher.to(self.args.device) if teacher is not None else None  # type: ignore[arg-type]
        self.model_accepts_loss_kwargs = False  # our loss is a mean over the batch

    def get_train_dataloader(self) -> DataLoader[Any]:
        examples: Any = self.train_dataset
        loader: DataLoader[Any] = DataLoader(
            examples,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.teacher is None:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        outputs, loss = self.distilled(model, inputs, self.answers(inputs))
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def answers(self, inputs: dict[str, torch.Tensor]) -> Any:
        """The teacher's outputs for a batch."""
        assert self.teacher is not None
        questions = {name: value for name, value in inputs.items() if name != "labels"}
        return self.teacher(**questions, output_hidden_states=self.optimization.states_weight > 0)

    def distilled(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], answers: Any
    ) -> tuple[Any, torch.Tensor]:
        """The model's outputs for a batch, and the loss by the teacher's."""
        wanted = self.optimization
        outputs = model(**inputs, output_hidden_states=wanted.states_weight > 0)
        loss = distillation_loss(
            outputs.logits,
            inputs["labels"],
            answers.logits,
            wanted.distill_weight,
            wanted.temperature,
        )
        if wanted.states_weight > 0:
            # the first of the hidden states is the embeddings', before any block
            loss = loss + wanted.states_weight * states_loss(
                outputs.hidden_states[1:], answers.hidden_states[1:], inputs["attention_mask"]
            )
        return outputs, loss


class SandwichTrainer(PlannedTrainer):
    """Trains several subnetworks a step, their gradients averaged, one optimizer step for all."""

    def __init__(self, *, supernet: SuperNetwork, sandwich: Sandwich, **kwargs: Any) -> None:
        super().__init__(model=supernet.model, **kwargs)
        self.supernet = supernet
        self.sandwich = sandwich

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        model.train()
        subnetworks = self.sandwich.at(self.state.global_step)
        total = torch.zeros((), device=self.args.device)
        answers = self.answers(inputs) if self.teacher is not None else None
        for subnetwork in subnetworks:
            self.supernet.set_subnetwork(subnetwork)
            if answers is None:
                loss = model(**inputs).loss / len(subnetworks)
            else:
                loss = self.distilled(model, inputs, answers)[1] / len(subnetworks)
            self.accelerator.backward(loss)
            total += loss.detach()
        # checkpoints and the optimizer see the whole model
        self.supernet.set_subnetwork(self.supernet.full)
        return total


class _Progress(TrainerCallback):
    def __init__(self, advance: Callable[[float], None]) -> None:
        self.advance = advance
        self.seen = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.advance(state.global_step - self.seen)
        self.seen = state.global_step


def train(
    model: PreTrainedModel | SuperNetwork,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    optimization: Optimization,
    work: Path,
    *,
    teacher: PreTrainedModel | None = None,
    sandwich: Sandwich | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    title: str = "training",
) -> int:
    """Train in place for `optimization.steps` steps; returns how many were taken.

    Args:
        model: a dense model, or a super-network together with its `sandwich`.
        examples: encoded rows with `labels` and `length`.
        teacher: a dense model of the same residual width, in eval mode; without it, the labels
            alone are learned.
        work: folder for the checkpoints of an interrupted training; a training that finds one
            there goes on from it. Removed at the end.
    """
    order = training_order(
        examples["length"], optimization.batch, optimization.steps, optimization.seed
    )
    columns = [c for c in _MODEL_INPUTS if c in examples.column_names]
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=optimization.steps,
        per_device_train_batch_size=optimization.batch,
        learning_rate=optimization.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(optimization.warmup * optimization.steps),
        weight_decay=optimization.weight_decay,
        seed=optimization.seed,
        save_strategy="steps",
        save_steps=optimization.checkpoint_every,
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    common: dict[str, Any] = {
        "args": arguments,
        "optimization": optimization,
        "teacher": teacher,
        "train_dataset": examples.select_columns(columns).select(order),
        "data_collator": DataCollatorWithPadding(tokenizer),
    }
    trainer: Any
    if isinstance(model, SuperNetwork):
        if sandwich is None:
            raise TypeError("a super-network needs a sandwich to sample its subnetworks from")
        trainer = SandwichTrainer(supernet=model, sandwich=sandwich, **common)
    else:
        trainer = PlannedTrainer(model=model, **common)
    trainer.remove_callback(PrinterCallback)
    with bar(title, optimization.steps) as advance:
        for callback in (_Progress(advance), *callbacks):
            trainer.add_callback(callback)
        checkpoint = get_last_checkpoint(str(work)) if work.exists() else None
        with prepared(trainer.model, optimization):
            trainer.train(resume_from_checkpoint=checkpoint)
    trainer.model.eval()
    shutil.rmtree(work, ignore_errors=True)
    return int(trainer.state.global_step)
