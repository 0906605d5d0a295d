"""What a recipe will need, told in seconds and without its weights: on meta tensors, by formula.

Parameters are counted on models without memory, subnetworks of the space included. Memory is that
of weights, gradients and Adam's moments (16 bytes for each trained weight in float32), of every
copy of the weights that a stage holds, and of what a block keeps for its backward pass, with
attention that keeps no probabilities. Weights are in float32 throughout, frozen ones as well.
Language models are frozen and have adapters, unless the recipe says otherwise.

Assumptions: one process, one GPU or one machine's memory; the runtimes' own needs (about a
gigabyte) come on top. Time is operations over a rate that the caller states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwnas.anatomy import Shape, find_shape
from hwnas.anatomy.dense import new_dense
from hwnas.elastic.spec import AdapterSpec
from hwnas.errors import UserError
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork, macs
from hwnas.summary import Record

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hwnas.latency.table import LatencyTable
    from hwnas.recipe import Recipe, TrainingSpec
    from hwnas.training.compute import Precision

GB = 1e9
_FULL = 4  # bytes of a weight in float32
_TRAINED = 16  # of a weight that is trained: itself, its gradient, Adam's two moments
_HALF = 2  # in bfloat16


class Sized(Record):
    """One subnetwork of the space."""

    name: str  # largest, middle, smallest
    genome: list[list[int]]
    params: int
    share: float  # of the model's operations, at the plan's sequence length
    predicted_ms: float | None = None  # by the table that was given


class Stage(Record):
    """What one stage needs."""

    name: str
    memory_gb: float
    parts: dict[str, float]  # GB of each, their sum is the memory
    steps: int
    petaflops: float  # 10^15 operations, all steps together
    hours: float | None = None  # at the rate that was given
    fits: bool | None = None  # into the memory that was given
    advice: str = ""  # where it does not
    resting_gb: float = 0.0  # of weights that wait in main memory, where the memory is a GPU's


class Plan(Record):
    """`hwnas plan`."""

    model: str
    family: str
    params: int
    in_blocks: int
    trained: int  # weights that training changes
    batch: int
    seq: int
    space: int  # subnetworks
    subnetworks: list[Sized]
    stages: list[Stage]
    notes: tuple[str, ...] = ()  # what could make it otherwise


@dataclass(frozen=True)
class Means:
    """What there is to train with; None: not said."""

    memory_gb: float | None = None
    tflops: float | None = None  # 10^12 operations a second that training really reaches
    gpu: bool = False  # the memory is a GPU's: weights that wait are in the machine's


def make_plan(
    recipe: Recipe,
    config: PretrainedConfig | Any,
    *,
    means: Means | None = None,
    table: LatencyTable | None = None,
) -> Plan:
    """The plan of a recipe for a model of this config.

    Args:
        table: of the model, by which subnetworks' milliseconds are predicted.

    Raises:
        UserError: the recipe's space or the table is of another model.
    """
    means = means or Means()
    shape = find_shape(config)
    space = space_of(recipe, shape)
    if table is not None:
        table.check_model(shape)
    counts = _Counts.of(config, shape, _adapters(recipe, shape), recipe.training)
    seq = recipe.task_at_target.max_length or 128
    full = Subnetwork.full(shape)
    whole = macs(full, shape, seq)
    predictor = table.predictor() if table is not None else None
    named = {"largest": space.largest, "middle": middle_of(space), "smallest": space.smallest_width}
    return Plan(
        model=recipe.model,
        family=shape.family,
        params=counts.all,
        in_blocks=counts.blocks,
        trained=counts.trained,
        batch=recipe.compute.batch,
        seq=seq,
        space=space.size(),
        subnetworks=[
            Sized(
                name=name,
                genome=subnetwork.genome,
                params=count_params(config, subnetwork),
                share=macs(subnetwork, shape, seq) / whole,
                predicted_ms=predictor.predict(subnetwork) if predictor else None,
            )
            for name, subnetwork in named.items()
        ],
        stages=_stages(recipe, shape, counts, means, seq),
        notes=tuple(_notes(recipe)),
    )


def _adapters(recipe: Recipe, shape: Shape) -> AdapterSpec | None:
    """Those that the recipe trains; None: all weights."""
    if shape.decoder and recipe.training.weights is None:
        return recipe.training.adapters
    return recipe.adapters


def _notes(recipe: Recipe) -> Iterator[str]:
    """What the recipe leaves to be found out."""
    if recipe.space.boundaries == "automatic":
        yield "space.boundaries: automatic ones are found later; the space here is the whole one"
    if recipe.vocabulary.trim:
        yield "vocabulary.trim: parameters here are those with all of the model's tokens"
    if recipe.compute.minutes is not None:
        yield "compute.minutes: steps here are the recipe's, before they are fitted to the time"
    if recipe.deployments and recipe.search.enough:
        yield (
            "deployments: where the whole model at one of them is within every budget, no "
            "super-network is trained"
        )


def changed(
    recipe: Recipe,
    *,
    precision: Precision | None = None,
    checkpointing: bool | None = None,
    rank: int | None = None,
) -> Recipe:
    """The recipe with other settings of its training; None leaves one as it is."""
    training = recipe.training
    adapters = (
        training.adapters if rank is None else training.adapters.model_copy(update={"rank": rank})
    )
    wanted = {"precision": precision, "checkpointing": checkpointing, "adapters": adapters}
    update = {name: value for name, value in wanted.items() if value is not None}
    return recipe.model_copy(update={"training": training.model_copy(update=update)})


def space_of(recipe: Recipe, shape: Shape) -> SearchSpace:
    """The recipe's space as far as it can be known before training: given, or the whole one."""
    given = recipe.space.boundaries == "given"
    space = SearchSpace.given(recipe.space, shape) if given else SearchSpace.whole(shape)
    return space.model_copy(update={"hidden": recipe.space.hidden})


def middle_of(space: SearchSpace) -> Subnetwork:
    """The middle option everywhere: LoNAS's heuristic subnetwork."""

    def middle(widths: tuple[int, ...]) -> int:
        return widths[len(widths) // 2]

    return Subnetwork.of([[middle(b.heads), middle(b.ffn)] for b in space.blocks])


def count_params(config: PretrainedConfig | Any, subnetwork: Subnetwork) -> int:
    """Parameters of a dense model of the subnetwork; tied ones once. No weights are made."""
    import torch

    with torch.device("meta"):
        model = new_dense(config, subnetwork)
    return sum(p.numel() for p in model.parameters())


def _count_words(config: PretrainedConfig | Any, subnetwork: Subnetwork) -> int:
    """Parameters of the word embeddings; none where inputs are no words."""
    import torch

    with torch.device("meta"):
        model = new_dense(config, subnetwork)
    layer = model.get_input_embeddings()
    return sum(p.numel() for p in layer.parameters()) if hasattr(layer, "num_embeddings") else 0


@dataclass(frozen=True)
class _Counts:
    all: int
    blocks: int
    trained: int
    frozen: bool  # what is trained stands beside all of them

    @classmethod
    def of(
        cls, config: Any, shape: Shape, adapters: AdapterSpec | None, training: TrainingSpec
    ) -> _Counts:
        full = Subnetwork.full(shape)
        every = count_params(config, full)
        none = count_params(config, Subnetwork.of([full.genome[0], *[[0, 0]] * (shape.depth - 1)]))
        blocks = (every - none) * shape.depth // max(1, shape.depth - 1) if shape.depth > 1 else 0
        if adapters is not None:
            return cls(every, blocks, adapters.rank * sum(_adapter_widths(shape)), True)
        words = _count_words(config, full) if training.freeze_embeddings else 0
        return cls(every, blocks, every - words, False)


def _adapter_widths(shape: Shape) -> list[int]:
    """Of every adapted layer, inputs and outputs together."""
    found = []
    for heads, ffn in zip(shape.heads, shape.ffn, strict=True):
        width = heads * shape.head_size
        found += [shape.hidden + width] * 2  # query, and the way out
        found += [shape.hidden + width // shape.group] * 2  # key, value
        found += [shape.hidden + ffn] * (3 if shape.gated else 2)
    return found


def kept_values(shape: Shape, block: int) -> int:
    """Numbers that one block keeps of a token for its backward pass.

    What enters layers and nonlinear functions: the stream before and after two norms, queries,
    keys, values and what attention yields, FFN neurons before and after their nonlinearity.
    """
    width = shape.heads[block] * shape.head_size
    attention = 2 * width + 2 * width // shape.group
    neurons = (4 if shape.gated else 2) * shape.ffn[block]
    return 4 * shape.hidden + attention + neurons


def _stages(recipe: Recipe, shape: Shape, counts: _Counts, means: Means, seq: int) -> list[Stage]:
    compute = recipe.compute
    budgets = len(recipe.budgets)
    copy = _FULL * counts.all / GB
    if counts.frozen:
        weights = {"frozen weights": copy, "adapters with Adam": _TRAINED * counts.trained / GB}
    else:
        words = _FULL * (counts.all - counts.trained)  # which stay as they are
        weights = {"weights, gradients, Adam": (_TRAINED * counts.trained + words) / GB}
    trained = weights | {"activations": _activations(recipe, shape, seq) / GB}
    teacher = {"teacher": copy}
    # frozen weights are their own teacher
    learning = trained if counts.frozen else trained | teacher
    # one batch through the whole model, forward and backward
    forward = 2 * macs(Subnetwork.full(shape), shape, seq) * compute.batch
    step = (2 if counts.frozen else 3) * forward  # frozen weights need no gradient
    sandwich = 3 * step  # largest, smallest, one between: at most so many whole ones
    finalists = compute.winner_steps + (budgets - 1) * compute.heir_steps
    # what finalists are cut from: the super-network, a larger budget's winner, and where all
    # weights are trained, where the students began and the baseline
    origins = 1 + (budgets > 1) + (0 if counts.frozen else 2)
    rows: list[tuple[str, dict[str, float], int, int, float]] = [
        ("baseline", trained, 0, compute.baseline_steps(budgets), step),
        ("super-network", learning, 0, compute.supernet_steps, sandwich),
        ("finalists", trained | teacher, origins, finalists, step + forward),
        ("export", {}, 2, 0, 0.0),  # in main memory, as they were and in the new format
    ]
    if recipe.unlabelled is not None:
        general = ("super-network, general", trained | teacher, 0, compute.general_steps, sandwich)
        rows.insert(1, general)
    return [
        _stage(name, parts, waiting * copy, steps, steps * cost, recipe, means)
        for name, parts, waiting, steps, cost in rows
    ]


def _activations(recipe: Recipe, shape: Shape, seq: int) -> float:
    """Bytes that a batch leaves for its backward pass."""
    training = recipe.training
    tokens = recipe.compute.batch // training.accumulate * seq
    each = _FULL if training.precision == "fp32" else _HALF
    kept = [kept_values(shape, i) for i in range(shape.depth)]
    if training.checkpointing:
        found = (max(kept) + shape.depth * shape.hidden) * tokens * each
    else:
        found = sum(kept) * tokens * each
    if shape.decoder:
        # logits of every token, in float32, and their gradient
        found += 2 * _FULL * tokens * shape.vocab
    return found


def _stage(
    name: str,
    parts: dict[str, float],
    resting: float,
    steps: int,
    flops: float,
    recipe: Recipe,
    means: Means,
) -> Stage:
    """A stage that needs these gigabytes in parts, some at rest, and so many operations."""
    if resting and not means.gpu:
        parts = parts | {"weights at rest": resting}
    memory = sum(parts.values())
    fits = None if means.memory_gb is None else memory <= means.memory_gb
    return Stage(
        name=name,
        memory_gb=memory,
        parts=parts,
        steps=steps,
        petaflops=flops / 1e15,
        hours=flops / (means.tflops * 1e12) / 3600 if means.tflops else None,
        fits=fits,
        advice="" if fits is not False else _advice(parts, recipe),
        resting_gb=resting if means.gpu else 0.0,
    )


def _advice(parts: dict[str, float], recipe: Recipe) -> str:
    """What to change, the greatest part first."""
    greatest = max(parts, key=lambda name: parts[name])
    most = f"{greatest} {parts[greatest]:.1f} GB"
    if greatest == "activations":
        also = "" if recipe.training.checkpointing else ", or training.checkpointing"
        return f"{most}: a smaller compute.batch, more training.accumulate{also}"
    if greatest == "weights, gradients, Adam":
        return f"{most}: training.weights: adapters, which leaves them as they are, or more memory"
    return f"{most}: more memory, or a smaller model; one is not split between devices"


def parse_memory(text: str) -> float:
    """Gigabytes of ``80GB`` or ``80``.

    Raises:
        UserError: it is no positive number.
    """
    try:
        found = float(text.strip().upper().removesuffix("GB"))
    except ValueError:
        found = 0.0
    if found <= 0:
        raise UserError(f"memory {text!r}: expected gigabytes, such as 80GB")
    return found
