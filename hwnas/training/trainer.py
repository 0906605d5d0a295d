"""Training on the Hugging Face `Trainer`: a dense student, or the super-network's sandwich.

The Trainer keeps the loop, the optimizer, the checkpoints and `torchrun`; what is ours is the
fixed order of the examples (`order.py`), distillation from a teacher that answers each batch on
the spot, or has answered its rows before (`memory.py`), and, for the super-network, several
subnetworks a step. Every run is so many steps, no epochs, and resumes to the same weights.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from accelerate.utils import convert_to_fp32
from safetensors.torch import save_file
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
from transformers.utils import SAFE_WEIGHTS_NAME

from hwnas.anatomy.heads import writes
from hwnas.elastic.adapters import Adapters
from hwnas.elastic.spec import AdapterSpec
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.processes import count
from hwnas.progress import bar
from hwnas.tasks.classification import Classification
from hwnas.tasks.kinds import Kind
from hwnas.tasks.predict import outputs_of
from hwnas.tasks.written import Said, padded, say
from hwnas.training.autocast import in_half, on_processor
from hwnas.training.compute import Precision
from hwnas.training.distillation import (
    last_projections,
    relations_loss,
    state_variances,
    states_loss,
)
from hwnas.training.order import training_order
from hwnas.training.sampling import Sampler
from hwnas.training.teachers import Another, FrozenSelf, Teacher

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.training.memory import Memory

_QUESTIONS = ("input_ids", "attention_mask", "token_type_ids")
_LABELS = ("labels", "start_positions", "end_positions")
ROW = "teacher_row"  # column of a row's number among those that a teacher's memory is of
_ROWS_FOR_VARIANCE = 64
_FEW_ROWS = 8


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
    relations_weight: float = 0.0  # of the last block's relations of tokens, likewise
    dropout: bool = True  # the model's own; without it, none
    freeze_embeddings: bool = False  # those of the words
    seed: int = 0
    accumulate: int = 1  # parts that a batch is computed in, to save memory
    precision: Precision = "fp32"  # of the computation; see `autocast`, fp16 is for GPUs
    adapters: AdapterSpec | None = None  # what is trained, beside frozen weights; None: all weights
    checkpointing: bool = False  # blocks' activations are computed again, to save memory
    checkpoint_every: int = 250  # steps between resumable checkpoints; 0: none are written
    schedule: Literal["linear", "constant"] = "linear"  # of the learning rate, after the warm-up


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

    def get_train_dataloader(self) -> DataLoader[Any]:
        examples: Any = self.train_dataset
        loader: DataLoader[Any] = DataLoader(
            examples,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

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
            said = convert_to_fp32(say(model, inner, inputs))
            return said, self.kind.hard_loss(said, inputs)
        outputs = convert_to_fp32(model(**questions(inputs)))
        return outputs, self.kind.hard_loss(outputs, inputs)

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
        loss = wanted.distill_weight * soft + (1 - wanted.distill_weight) * hard
        if wanted.states_weight > 0:
            loss = loss + wanted.states_weight * states_loss(
                states, teacher.states, inputs["attention_mask"], self._variances
            )
        if wanted.relations_weight > 0:
            loss = loss + wanted.relations_weight * relations_loss(
                projections, teacher.projections, inputs["attention_mask"]
            )
        return outputs, loss


class Observed(NamedTuple):
    """What a loss looks at of a model and a batch.

    Attributes:
        outputs: the model's.
        states: `(batch, seq, hidden)` after each block, if asked for.
        projections: the last block's queries, keys and values, likewise.
    """

    outputs: Any
    states: Sequence[torch.Tensor]
    projections: Sequence[torch.Tensor]


def observe(
    model: torch.nn.Module,
    inner: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    states: bool,
    relations: bool,
) -> Observed:
    """Run a model on a batch, and note what is asked for of what goes on inside.

    Args:
        model: perhaps wrapped for several processes; `inner` is what is wrapped.
    """
    with ExitStack() as stack:
        projections: list[torch.Tensor] = []
        if relations:
            projections = stack.enter_context(last_projections(inner))
        if writes(inner):
            outputs: Any = say(model, inner, inputs, states=states)
        else:
            outputs = model(**questions(inputs), output_hidden_states=states)
        outputs = convert_to_fp32(outputs)
    # the first of the hidden states is the embeddings', before any block
    return Observed(
        outputs, outputs.hidden_states[1:] if states else (), convert_to_fp32(projections)
    )


class Keeper(NamedTuple):
    """A model, in evaluation mode, from what says the first subnetwork of a step is not to stray.

    Attributes:
        weight: of the distance from it, beside the labels' loss.
    """

    model: PreTrainedModel
    weight: float


class SandwichTrainer(PlannedTrainer):
    """Trains several subnetworks a step, their gradients averaged, one optimizer step for all.

    In place, the first of a step learns from the labels, and teaches the others what it says
    (universally slimmable networks, Yu & Huang 2019, section 3.3).

    With several processes, gradients are averaged over them here and not by torch's wrapper, which
    cannot know that the parts in use change from one backward pass to the next.
    """

    def __init__(
        self,
        *,
        supernet: SuperNetwork,
        sandwich: Sampler,
        adapters: Adapters | None = None,
        in_place: bool = False,
        keeper: Keeper | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=supernet.model, **kwargs)
        self.keeper = keeper
        self.supernet = supernet
        self.sandwich = sandwich
        self.adapters = adapters
        self.in_place = in_place

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        inner = self.supernet.model
        inner.train()
        inputs = self._prepare_inputs(inputs)
        subnetworks = self.sandwich.at(self.state.global_step)
        ranks = self._ranks(len(subnetworks))
        parts = len(subnetworks) * self.optimization.accumulate
        total = torch.zeros((), device=self.args.device)
        with self.compute_loss_context_manager():
            answers = self.answers(inputs) if self.teacher is not None else None
        for subnetwork, rank in zip(subnetworks, ranks, strict=True):
            # between steps the whole model is active: checkpoints and the optimizer see that
            with self.supernet.as_subnetwork(subnetwork) as active, self._at_rank(rank):
                with self.compute_loss_context_manager():
                    if answers is None:
                        outputs, loss = self.taught(active, active, inputs)
                        loss = (loss + self._kept(outputs, inputs)) / parts
                        if self.in_place:
                            answers = Observed(detached(outputs), (), ())
                    else:
                        loss = self.distilled(active, active, inputs, answers)[1] / parts
                self.accelerator.backward(loss * self._undone)
            total += loss.detach()
        if self.accelerator.sync_gradients:
            self._average_gradients()
        return total

    def _kept(self, outputs: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor | float:
        """The distance from what the keeper says, as much as that counts."""
        if self.keeper is None:
            return 0.0
        with torch.no_grad():
            before = convert_to_fp32(outputs_of(self.keeper.model, inputs))
        temperature = self.optimization.temperature
        return self.keeper.weight * self.kind.soft_loss(outputs, before, inputs, temperature)

    def _ranks(self, count: int) -> list[int]:
        """Of the adapters, for a step's subnetworks: the sampled ones may have smaller ones."""
        if self.adapters is None:
            return [0] * count
        spec = self.adapters.spec
        rng = random.Random(f"{self.sandwich.seed}/{self.state.global_step}/ranks")
        sampled = [rng.choice((*spec.ranks, spec.rank)) for _ in range(self.sandwich.samples)]
        return [spec.rank] * (count - len(sampled)) + sampled

    @contextmanager
    def _at_rank(self, rank: int) -> Iterator[None]:
        if self.adapters is None:
            yield
            return
        self.adapters.set_rank(rank)
        try:
            yield
        finally:
            self.adapters.set_rank(self.adapters.spec.rank)

    @property
    def _undone(self) -> int:
        """What `accelerator.backward` divides a loss by; here it is divided already."""
        return int(self.accelerator.gradient_accumulation_steps)

    def _average_gradients(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.supernet.model.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.accelerator.num_processes


def detached(outputs: Any) -> Any:
    """A model's outputs without their history, to learn from."""
    if isinstance(outputs, Said):
        return Said(outputs.logits.detach(), None)
    return type(outputs)(
        **{name: x.detach() for name, x in outputs.items() if isinstance(x, torch.Tensor)}
    )


def questions(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch without its labels."""
    return {name: value for name, value in inputs.items() if name in _QUESTIONS}


def collator(tokenizer: PreTrainedTokenizerBase, examples: Dataset) -> Callable[[Any], Any]:
    """Makes batches of encoded rows, padded; labels of tokens are padded too."""
    if isinstance(examples[0].get("labels"), list):
        # that of transformers needs a token for padding, which many language models have not
        return partial(padded, pad=tokenizer.pad_token_id or 0)
    found: Callable[[Any], Any] = DataCollatorWithPadding(tokenizer)
    return found


def model_columns(examples: Dataset) -> Dataset:
    """Of encoded rows, what a model takes."""
    return _columns(examples, (*_QUESTIONS, *_LABELS))


def small_batches(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[dict[str, torch.Tensor]]:
    """The first so many encoded rows as a model takes them, a few at a time, to score parts by."""
    part = model_columns(examples)
    part = part.select(range(min(len(part), count)))
    collate = collator(tokenizer, part)
    return [
        dict(collate([part[i] for i in range(at, min(at + _FEW_ROWS, len(part)))]))
        for at in range(0, len(part), _FEW_ROWS)
    ]


def _columns(examples: Dataset, names: Sequence[str]) -> Dataset:
    return examples.select_columns([name for name in names if name in examples.column_names])


def _per_pass(optimization: Optimization) -> int:
    """Rows that one process takes at a time.

    Raises:
        UserError: a batch cannot be divided so.
    """
    processes = count()
    rows, rest = divmod(optimization.batch, processes * optimization.accumulate)
    if rest or not rows:
        raise UserError(
            f"compute.batch: {optimization.batch} rows cannot be divided among {processes} "
            f"processes and {optimization.accumulate} parts (training.accumulate)"
        )
    return rows


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
    arguments = TrainingArguments(
        output_dir=str(work),
        use_cpu=not torch.cuda.is_available(),  # or torchrun's processes take no notice of another
        max_steps=optimization.steps,
        per_device_train_batch_size=_per_pass(optimization),
        gradient_accumulation_steps=optimization.accumulate,
        gradient_checkpointing=optimization.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
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
    columns = (*_QUESTIONS, *_LABELS, *([ROW] if memory is not None else []))
    network = model if isinstance(model, SuperNetwork) else None
    adapters: Adapters | None = attached
    if optimization.adapters is not None and attached is None:
        network = model if isinstance(model, SuperNetwork) else SuperNetwork(model)
        adapters = Adapters(network, optimization.adapters, optimization.seed)
    learned_from: Teacher | None = Another(teacher) if teacher is not None else None
    if own_teacher and network is not None and adapters is not None:
        learned_from = FrozenSelf(network, adapters)
    common: dict[str, Any] = {
        "args": arguments,
        "optimization": optimization,
        "kind": kind or Classification(),
        "teacher": learned_from,
        "memory": memory,
        "train_dataset": _columns(examples, columns).select(order),
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
        checkpoint = get_last_checkpoint(str(work)) if work.exists() else None
        with prepared(trainer.model, optimization):
            trainer.train(resume_from_checkpoint=checkpoint)
    if adapters is not None and attached is None:
        adapters.merge()
    trainer.model.eval()
    trainer.accelerator.wait_for_everyone()  # the first process may still write a checkpoint
    if trainer.is_world_process_zero():
        shutil.rmtree(work, ignore_errors=True)
    return int(trainer.state.global_step)
