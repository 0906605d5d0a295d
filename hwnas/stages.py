"""The stages of a run, one function each: read what earlier stages left, write one result, whole.

A stage whose result exists returns it; so a stage can be resumed, inspected and replaced by hand.
The order, and what a stop does to it, are `pipeline`'s; here is what each stage computes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import convert_to_fp32

from hwnas.boundaries import automatic, snapped
from hwnas.budgets import budget_shares, structure_shares
from hwnas.elastic.adapters import Adapters, merge_adapter
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.files import read_model, read_tensors, replacing, write_json
from hwnas.importance.kinds import measure
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.importance.sensitivity import with_losses
from hwnas.inputs import Inputs, load_for
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget
from hwnas.models import load, on_gpu
from hwnas.networks import Networks, load_teacher, starting_network
from hwnas.processes import alone, made_once
from hwnas.space import FFN_STEP, SearchSpace
from hwnas.subnetwork import Subnetwork, macs
from hwnas.tasks.embedding import Embedding
from hwnas.tasks.predict import outputs_of, predict
from hwnas.tasks.unlabelled import Unlabelled
from hwnas.timing import latency_table
from hwnas.training.autocast import in_half, on_processor
from hwnas.training.baseline import (
    MOVEMENT,
    BaselineHistory,
    Patience,
    keep_original,
    read_history,
    train_baseline,
)
from hwnas.training.batches import collator, model_columns, small_batches
from hwnas.training.compute import ComputePlan
from hwnas.training.halving import rows
from hwnas.training.optimization import Optimization, prepared
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

_SPEED_STEPS = 6
_BELOW = 0.8  # of the smallest budget, that automatic boundaries begin with


def baseline(inputs: Inputs) -> BaselineHistory:
    """`baseline/`: the original model trained on the task, and where the students start."""
    out = inputs.path / "baseline"

    def original() -> PreTrainedModel:
        return load_for(inputs.recipe.model, inputs.task, seed=inputs.recipe.seed)[0]

    if isinstance(inputs.task.kind, Embedding):
        made_once(out / "history.json", lambda: keep_original(original(), inputs.tokenizer, out))
    elif not (out / "history.json").exists():
        plan = inputs.plan
        steps = plan.baseline_steps(len(inputs.recipe.budgets))
        model = original()
        adapters = inputs.recipe.adapters
        if adapters is not None and adapters.start is not None:
            merge_adapter(model, Path(adapters.start).expanduser())
        # rows come in the order of their hash, so the first ones are a fair sample; what no
        # training needs stays unseen by all models of the run
        enough = min(len(inputs.train), steps * plan.batch)
        train_baseline(
            model,
            inputs.tokenizer,
            rows(inputs.train, 0, enough),
            inputs.plateau_validation,
            inputs.optimization(steps, inputs.recipe.training.baseline_rate, 1, student=False),
            kind=inputs.task.kind,
            start_step=plan.start_steps,
            patience=Patience(every=max(1, steps // 4)),
            movement=inputs.recipe.importance.kind == "movement",
            out=out,
        )
    return read_history(out)


def importance(inputs: Inputs) -> Importance:
    """`importance.safetensors`: the scores of the students' starting weights."""
    path = inputs.path / "importance.safetensors"
    if not path.exists():
        spec = inputs.recipe.importance
        start = on_gpu(load(inputs.path / "baseline" / "start"))
        movement = None
        if spec.kind == "movement":
            kept = inputs.path / "baseline" / MOVEMENT
            if not kept.exists():
                raise UserError(
                    "importance.kind: movement is found while the baseline is trained, and this "
                    "one was trained for another kind; choose first_order"
                )
            movement = read_tensors(kept)
        kind = inputs.task.kind
        batches = small_batches(inputs.train, inputs.tokenizer, spec.rows)
        scores = measure(start, batches, spec, loss_of=kind.probe, movement=movement)
        usual = "measured" if inputs.recipe.task.is_written else "scores"
        if (spec.losses or usual) == "measured":
            reorder(start, scores)
            few = [
                {name: x.to(start.device) for name, x in batch.items()}
                for batch in small_batches(inputs.train, inputs.tokenizer, spec.loss_rows)
            ]
            scores = with_losses(scores, SuperNetwork(start), few, kind)
        scores.save(path)
    return Importance.load(path)


def search_space(inputs: Inputs, table: LatencyTable, scores: Importance) -> SearchSpace:
    """`space.json`: which widths each block may have."""
    path = inputs.path / "space.json"
    if not path.exists():
        wanted = inputs.recipe.space
        space = SearchSpace.whole(inputs.shape)
        if wanted.boundaries == "automatic":
            space = _automatic_space(inputs, scores)
        elif wanted.boundaries == "given":
            space = SearchSpace.given(wanted, inputs.shape)
        if wanted.snap:
            space = snapped(space, table.predictor(), inputs.shape)
        write_json(path, space.model_copy(update={"hidden": wanted.hidden}))
    space = read_model(path, SearchSpace)
    space.check(inputs.shape, where=str(path))
    return space


def _automatic_space(inputs: Inputs, scores: Importance) -> SearchSpace:
    """What survives of each block at a few complexities, from just below the smallest budget on."""
    wanted, shape = inputs.recipe.space, inputs.shape
    full, seq = Subnetwork.full(shape), inputs.mean_length

    def operations(subnetwork: Subnetwork) -> float:
        return macs(subnetwork, shape, seq) / macs(full, shape, seq)

    smallest = wanted.smallest or max(0.02, _BELOW * min(budget_shares(inputs)))
    shares = np.linspace(smallest, wanted.largest or 1.0, wanted.targets)
    cost = _latency_share(inputs) if wanted.complexity == "latency" else operations
    return automatic(scores, shape, cost, [float(share) for share in shares], FFN_STEP)


def teacher_answers(inputs: Inputs, scores: Importance) -> np.ndarray:
    """`teacher.safetensors`: the baseline's answers, by which the search judges."""
    from safetensors.numpy import save_file

    path = inputs.path / "teacher.safetensors"
    if not path.exists():
        answers = predict(load_teacher(inputs, scores), inputs.search_validation)
        with replacing(path) as partial:
            save_file({"search": answers}, partial)
    return np.asarray(read_tensors(path)["search"])


def sandwich(inputs: Inputs, space: SearchSpace) -> Sandwich:
    """How the super-network's subnetworks are sampled: a little beyond the budgets, either way."""
    shares = structure_shares(inputs)
    return Sandwich(
        space,
        seed=inputs.recipe.seed,
        sampling=inputs.recipe.training.sampling,
        cost=_latency_share(inputs),
        smallest=max(0.05, 0.8 * min(shares)),
        largest=min(1.0, 1.2 * max(shares)),
    )


def _latency_share(inputs: Inputs) -> Callable[[Subnetwork], float]:
    """The predicted share of the full model's latency, its whole vocabulary's included."""
    whole = LatencyTable.load(inputs.path / "table.json").predictor()
    full = whole.predict(Subnetwork.full(inputs.shape))
    predictor = latency_table(inputs, None).predictor()
    return lambda subnetwork: predictor.predict(subnetwork) / full


def general_network(inputs: Inputs, space: SearchSpace, networks: Networks) -> None:
    """`general/`: the super-network after the first of two stages, on text without labels.

    What its subnetworks learn there is to have the teacher's states and relations of tokens
    (general distillation; TinyBERT, section 3.2).
    """
    out = inputs.path / "general"
    if not out.exists():
        _train_network(
            starting_network(inputs, networks.scores),
            inputs,
            inputs.unlabelled,
            inputs.optimization(inputs.plan.general_steps, inputs.recipe.training.supernet_rate, 3),
            out,
            kind=Unlabelled(),
            teacher=networks.teacher,
            sandwich=sandwich(inputs, space),
            title="super-network, general",
        )


def supernet(inputs: Inputs, space: SearchSpace, networks: Networks) -> SuperNetwork:
    """`supernet/`: the weight-sharing network, trained by the sandwich rule with distillation.

    It starts where the students do, or where the first of two stages ended.
    """
    out = inputs.path / "supernet"
    if not out.exists():
        steps = inputs.plan.supernet_steps
        frozen = inputs.recipe.adapters is not None
        if inputs.recipe.unlabelled is not None:
            network = SuperNetwork(on_gpu(load(inputs.path / "general")))
        else:
            network = starting_network(inputs, networks.scores)
        _train_network(
            network,
            inputs,
            rows(inputs.train, 0, steps * inputs.plan.batch),
            inputs.optimization(steps, inputs.recipe.training.supernet_rate, 2),
            out,
            kind=inputs.task.kind,
            teacher=None if frozen else networks.teacher,
            own_teacher=frozen,
            sandwich=sandwich(inputs, space),
            title="super-network",
        )
        del network  # what is read below is as large
    return SuperNetwork(on_gpu(load(out)))


def _train_network(
    network: SuperNetwork,
    inputs: Inputs,
    examples: Dataset,
    optimization: Optimization,
    out: Path,
    **how: Any,
) -> None:
    """`out/`: the super-network after a training as `how` says."""
    work = out.with_name(f"{out.name}-training")
    train(network, inputs.tokenizer, examples, optimization, work, **how)

    def keep() -> None:
        with replacing(out) as partial:
            network.model.save_pretrained(partial)

    alone(keep)


def rough_share(budget: str) -> float:
    """A budget as a share of the full model before measuring anything: half, if in milliseconds."""
    return Budget.parse(budget).fraction or 0.5


def fitted_to_minutes(inputs: Inputs, minutes: float) -> ComputePlan:
    """The recipe's steps scaled so that all training takes about so many minutes here.

    The speed of a training step is a measurement, made once a run.
    """
    plan = inputs.recipe.compute
    speed = inputs.directory.measured(
        "training step", lambda: {"seconds": seconds_per_step(inputs)}
    )
    shares = [rough_share(budget) for budget in inputs.recipe.budgets]
    return plan.scaled(minutes * 60 / (plan.total(shares) * speed["seconds"]))


def seconds_per_step(inputs: Inputs) -> float:
    """How long one training step of the full model takes on this machine, median of a few."""
    import statistics
    import time

    model = on_gpu(load_for(inputs.recipe.model, inputs.task, seed=inputs.recipe.seed)[0])
    model.train()
    spec = inputs.recipe.adapters
    if spec is not None:
        Adapters(SuperNetwork(model), spec)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    part = model_columns(inputs.train)
    collate = collator(inputs.tokenizer, part)
    seconds = []
    precision = inputs.recipe.training.precision
    computing: Callable[[], AbstractContextManager[Any]]
    if on_processor(precision):
        computing = in_half
    elif precision == "bf16" and model.device.type == "cuda":
        computing = partial(torch.autocast, "cuda", torch.bfloat16)
    else:
        computing = nullcontext
    steps = inputs.plan.baseline_steps(len(inputs.recipe.budgets))
    with prepared(model, inputs.optimization(steps, 1e-5, 0, student=False)):
        for step in range(_SPEED_STEPS):
            begin = time.perf_counter()
            batch = collate([part[i % len(part)] for i in range(step, step + inputs.plan.batch)])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            with computing():
                outputs = convert_to_fp32(outputs_of(model, batch))
            inputs.task.kind.probe(outputs, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            if model.device.type == "cuda":  # which is only asked to do it, and answers at once
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
