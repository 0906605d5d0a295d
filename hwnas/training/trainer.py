"""Training on the Hugging Face `Trainer`: a dense student, or the super-network's sandwich.

The Trainer keeps the loop, the optimizer, the checkpoints and `torchrun`; what is ours is the
fixed order of the examples (`order`), distillation from a teacher that answers each batch on the
spot, or has answered its rows before (`memory`), and, for the super-network, several subnetworks a
step (`sandwich`). Every run is so many steps, no epochs, and resumes to the same weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hwnas.anatomy.modules import task_head
from hwnas.elastic.adapters import Adapters
from hwnas.elastic.supernet import SuperNetwork
from hwnas.progress import bar
from hwnas.tasks.classification import Classification
from hwnas.tasks.kinds import Kind
from hwnas.training.autocast import again_in_half, on_processor
from hwnas.training.batches import collator, model_columns, remembered_columns
from hwnas.training.optimization import Optimization, per_pass, prepared
from hwnas.training.order import training_order
from hwnas.training.planned import PlannedTrainer
from hwnas.training.sampling import Sampler
from hwnas.training.sandwich import Keeper, SandwichTrainer
from hwnas.training.teachers import Another, FrozenSelf, Teacher

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.training.memory import Memory


def last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint in a folder that is whole; the Trainer writes its state last."""
    found = [
        folder
        for folder in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (folder / "trainer_state.json").is_file()
    ]
    newest = max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


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
    kind: Kind | None = None,
    teacher: PreTrainedModel | None = None,
    own_teacher: bool = False,
    memory: Memory | None = None,
    sandwich: Sampler | None = None,
    in_place: bool = False,
    attached: Adapters | None = None,
    keeper: Keeper | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    title: str = "training",
) -> int:
    """Train in place for `optimization.steps` steps; returns how many were taken.

    Args:
        model: a dense model, or a super-network together with its `sandwich`.
        examples: encoded rows with their labels and `length`.
        kind: of the task; by default classification.
        teacher: a dense model in eval mode, its residual width the student's or more, in the same
            order; without it, the labels alone are learned.
        own_teacher: whether the frozen weights that adapters stand on are the teacher.
        in_place: whether the first subnetwork of a step teaches the others, where nobody else does.
        attached: adapters that stand beside the network's weights already, and stay there; else
            those of `optimization` are made, and merged in the end.
        keeper: see `Keeper`; of a super-network that learns in place.
        memory: of what it has said to such rows; these must then be of `memory.examples`.
        work: folder for the checkpoints of an interrupted training; a training that finds one
            there goes on from it. Removed at the end.
    """
    order = training_order(
        examples["length"], optimization.batch, optimization.steps, optimization.seed
    )
    again: dict[str, Any] = {"use_reentrant": False}
    if on_processor(optimization.precision):
        again["context_fn"] = again_in_half
    arguments = TrainingArguments(
        output_dir=str(work),
        use_cpu=not torch.cuda.is_available(),  # or torchrun's processes take no notice of another
        max_steps=optimization.steps,
        per_device_train_batch_size=per_pass(optimization),
        gradient_accumulation_steps=optimization.accumulate,
        gradient_checkpointing=optimization.checkpointing,
        gradient_checkpointing_kwargs=again,
        bf16=optimization.precision == "bf16" and torch.cuda.is_available(),
        fp16=optimization.precision == "fp16" and torch.cuda.is_available(),
        learning_rate=optimization.learning_rate,
        lr_scheduler_type="constant_with_warmup"
        if optimization.schedule == "constant"
        else "linear",
        warmup_steps=round(optimization.warmup * optimization.steps),
        weight_decay=optimization.weight_decay,
        seed=optimization.seed,
        save_strategy="steps" if optimization.checkpoint_every else "no",
        save_steps=optimization.checkpoint_every or 1,
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    taken = model_columns(examples) if memory is None else remembered_columns(examples)
    network = model if isinstance(model, SuperNetwork) else None
    adapters: Adapters | None = attached
    if optimization.adapters is not None and attached is None:
        network = model if isinstance(model, SuperNetwork) else SuperNetwork(model)
        adapters = Adapters(network, optimization.adapters, optimization.seed)
        if not own_teacher and not network.shape.decoder:
            for module in task_head(network.model):  # a new one knows nothing yet
                module.requires_grad_(True)
    learned_from: Teacher | None = Another(teacher) if teacher is not None else None
    if own_teacher and network is not None and adapters is not None:
        learned_from = FrozenSelf(network, adapters)
    common: dict[str, Any] = {
        "args": arguments,
        "optimization": optimization,
        "kind": kind or Classification(),
        "teacher": learned_from,
        "memory": memory,
        "train_dataset": taken.select(order),
        "data_collator": collator(tokenizer, examples),
    }
    trainer: Any
    if isinstance(model, SuperNetwork):
        if sandwich is None:
            raise TypeError("a super-network needs a sandwich to sample its subnetworks from")
        common |= {"adapters": adapters, "in_place": in_place, "keeper": keeper}
        trainer = SandwichTrainer(supernet=model, sandwich=sandwich, **common)
    else:
        trainer = PlannedTrainer(model=model, **common)
    trainer.remove_callback(PrinterCallback)
    with bar(title, optimization.steps) as advance:
        for callback in (_Progress(advance), *callbacks):
            trainer.add_callback(callback)
        checkpoint = last_checkpoint(work)
        with prepared(trainer.model, optimization):
            trainer.train(resume_from_checkpoint=checkpoint)
    if adapters is not None and attached is None:
        adapters.merge()
    trainer.model.eval()
    trainer.accelerator.wait_for_everyone()  # the first process may still write a checkpoint
    if trainer.is_world_process_zero():
        shutil.rmtree(work, ignore_errors=True)
    return int(trainer.state.global_step)
