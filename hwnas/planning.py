"""What a recipe will need, told in seconds and without its weights: on meta tensors, by formula.

Parameters are counted on models without memory, subnetworks of the space included. Memory is that
of weights, gradients and Adam's moments (16 bytes for each trained weight in float32), and of what
a block keeps for its backward pass, with attention that keeps no probabilities. A decoder is
planned as LoNAS trains it: frozen, with adapters.

Assumptions: one process, one GPU or one machine's memory; the runtimes' own needs (about a
gigabyte) come on top. Time is operations over a rate that the caller states.
"""

from __future__ import annotations

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
    from hwnas.recipe import Recipe

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


@dataclass(frozen=True)
class Means:
    """What there is to train with; None: not said."""

    memory_gb: float | None = None
    tflops: float | None = None  # 10^12 operations a second that training really reaches
    bf16: bool = False  # frozen weights and activations; encoders' masters stay in float32
    checkpointing: bool = False  # a block's activations are computed again


def make_plan(
    recipe: Recipe,
    config: PretrainedConfig | Any,
    *,
    means: Means | None = None,
    table: LatencyTable | None = None,
    adapters: AdapterSpec | None = None,
) -> Plan:
    """The plan of a recipe for a model of this config.

    Args:
        table: of the model, by which subnetworks' milliseconds are predicted.
        adapters: of a decoder; by default LoNAS's.

    Raises:
        UserError: the recipe's space or the table is of another model.
    """
    means = means or Means()
    shape = find_shape(config)
    space = space_of(recipe, shape)
    if table is not None:
        table.check_model(shape)
    counts = _Counts.of(config, shape, adapters or AdapterSpec())
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
    )


def space_of(recipe: Recipe, shape: Shape) -> SearchSpace:
    """The recipe's space as far as it can be known before training: given, or the whole one."""
    if recipe.space.boundaries == "given":
        return SearchSpace.given(recipe.space, shape)
    return SearchSpace.whole(shape).model_copy(update={"hidden": recipe.space.hidden})


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


@dataclass(frozen=True)
class _Counts:
    all: int
    blocks: int
    trained: int

    @classmethod
    def of(cls, config: Any, shape: Shape, adapters: AdapterSpec) -> _Counts:
        full = Subnetwork.full(shape)
        every = count_params(config, full)
        none = count_params(config, Subnetwork.of([full.genome[0], *[[0, 0]] * (shape.depth - 1)]))
        blocks = (every - none) * shape.depth // max(1, shape.depth - 1) if shape.depth > 1 else 0
        trained = every
        if shape.decoder:
            trained = adapters.rank * sum(_adapter_widths(shape))
        return cls(every, blocks, trained)


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
    tokens = compute.batch // recipe.training.accumulate * seq
    each = _HALF if means.bf16 else _FULL
    kept = [kept_values(shape, i) for i in range(shape.depth)]
    if means.checkpointing:
        activations = (max(kept) + shape.depth * shape.hidden) * tokens * each
    else:
        activations = sum(kept) * tokens * each
    if shape.decoder:
        # logits of every token, in float32, and their gradient
        activations += 2 * _FULL * tokens * shape.vocab
        weights = {
            "frozen weights": each * counts.all / GB,
            "adapters with Adam": _TRAINED * counts.trained / GB,
        }
        teacher: dict[str, float] = {}  # the frozen model itself
    else:
        weights = {"weights, gradients, Adam": _TRAINED * counts.all / GB}
        teacher = {"teacher": _FULL * counts.all / GB}
    trained = {"activations": activations / GB}
    # one batch through the whole model, forward and backward
    forward = 2 * macs(Subnetwork.full(shape), shape, seq) * compute.batch
    backward = 1 if shape.decoder else 2  # frozen weights need no gradient
    step = (1 + backward) * forward
    sandwich = 3  # largest, smallest, one between: at most so many whole ones
    budgets = len(recipe.budgets)
    finalists = compute.winner_steps + (budgets - 1) * compute.heir_steps
    exported = {"weights, twice": 2 * _FULL * counts.all / GB}
    rows = [
        ("super-network", weights | teacher | trained, compute.supernet_steps, sandwich * step),
        ("finalists", weights | teacher | trained, finalists, step + forward),
        ("export", exported, 0, 0.0),
    ]
    if not shape.decoder:
        baseline = compute.baseline_steps(budgets)
        rows.insert(0, ("baseline", weights | trained, baseline, step))
    return [_stage(name, parts, steps, cost, means) for name, parts, steps, cost in rows]


def _stage(name: str, parts: dict[str, float], steps: int, flops: float, means: Means) -> Stage:
    memory = sum(parts.values())
    fits = None if means.memory_gb is None else memory <= means.memory_gb
    total = steps * flops
    return Stage(
        name=name,
        memory_gb=memory,
        parts=parts,
        steps=steps,
        petaflops=total / 1e15,
        hours=total / (means.tflops * 1e12) / 3600 if means.tflops else None,
        fits=fits,
        advice="" if fits is not False else _advice(parts, means),
    )


def _advice(parts: dict[str, float], means: Means) -> str:
    """What to change, the greatest part first."""
    greatest = max(parts, key=lambda name: parts[name])
    most = f"{greatest} {parts[greatest]:.1f} GB"
    if greatest == "activations" and not means.checkpointing:
        return f"{most}: a smaller compute.batch, training.accumulate, or checkpointing"
    if greatest == "activations":
        return f"{most}: a smaller compute.batch, or training.accumulate"
    if not means.bf16:
        return f"{most}: bf16 halves frozen weights and activations"
    return f"{most}: more memory, or several processes that share the weights"


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
