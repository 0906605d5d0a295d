"""The stages of a run, one function each: read what earlier stages left, write one result, whole.

A stage whose result exists returns it; so a stage can be resumed, inspected and replaced by hand.
The order, and what a stop does to it, are `pipeline`'s; here is what each stage computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hwnas.anatomy import Shape, find_shape
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import BudgetError
from hwnas.files import read_model, replacing, write_json
from hwnas.importance import Importance, first_order, reorder
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Budget, Target
from hwnas.models import load, load_model
from hwnas.recipe import Recipe
from hwnas.rundir import RunDirectory
from hwnas.space import SearchSpace
from hwnas.subnetwork import Block
from hwnas.training.baseline import BaselineHistory, Patience, read_history, train_baseline
from hwnas.training.compute import ComputePlan
from hwnas.training.data import Task, encode
from hwnas.training.evaluate import predict
from hwnas.training.halving import rows
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import Optimization, prepared, train

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_IMPORTANCE_ROWS = 256
_IMPORTANCE_BATCH = 8
_SPEED_STEPS = 6


@dataclass
class Inputs:
    """What every stage reads: the recipe, its data in tokens, and the plan of compute."""

    recipe: Recipe
    directory: RunDirectory
    plan: ComputePlan
    task: Task
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig  # of the original model, with the task's labels

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def target(self) -> Target:
        return Target.parse(self.recipe.target)

    @cached_property
    def shape(self) -> Shape:
        return find_shape(self.config)

    @cached_property
    def train(self) -> Dataset:
        return self._encode(self.task.train)

    @cached_property
    def search_validation(self) -> Dataset:
        return self._first(self.plan.evaluation_rows)

    @cached_property
    def plateau_validation(self) -> Dataset:
        return self._first(self.plan.plateau_rows)

    @cached_property
    def choice_validation(self) -> Dataset:
        half = self.task.choice_validation
        return self._encode(half.select(range(min(len(half), self.plan.choice_rows))))

    @cached_property
    def test(self) -> Dataset:
        return self._encode(self.task.test)

    def optimization(self, steps: int, learning_rate: float, seed: int) -> Optimization:
        """The recipe's way of training, for one stage."""
        training = self.recipe.training
        longest = self.plan.baseline_steps(len(self.recipe.budgets))
        sees_twice = longest * self.plan.batch > len(self.train)
        return Optimization(
            steps=steps,
            learning_rate=learning_rate,
            batch=self.plan.batch,
            distill_weight=training.distill_weight,
            temperature=training.temperature,
            states_weight=training.states_weight,
            dropout=sees_twice if training.dropout is None else training.dropout,
            freeze_embeddings=training.freeze_embeddings,
            seed=self.recipe.seed * 1000 + seed,
        )

    @property
    def mean_length(self) -> int:
        """Tokens of an average training row."""
        lengths = self.train["length"]
        return max(1, round(float(sum(lengths)) / len(lengths)))

    def _first(self, count: int) -> Dataset:
        half = self.task.search_validation
        return self._encode(half.select(range(min(len(half), count))))

    def _encode(self, split: Dataset) -> Dataset:
        return encode(split, self.tokenizer, self.task.max_length)


def baseline(inputs: Inputs) -> BaselineHistory:
    """`baseline/`: the original model trained on the task, and where the students start."""
    out = inputs.path / "baseline"
    if not (out / "history.json").exists():
        plan = inputs.plan
        steps = plan.baseline_steps(len(inputs.recipe.budgets))
        model, _ = load_model(
            inputs.recipe.model, labels=inputs.task.labels, seed=inputs.recipe.seed
        )
        # rows come in the order of their hash, so the first ones are a fair sample; what no
        # training needs stays unseen by all models of the run
        enough = min(len(inputs.train), steps * plan.batch)
        train_baseline(
            model,
            inputs.tokenizer,
            rows(inputs.train, 0, enough),
            inputs.plateau_validation,
            inputs.optimization(steps, inputs.recipe.training.baseline_rate, 1),
            start_step=plan.start_steps,
            patience=Patience(every=max(1, steps // 4)),
            out=out,
        )
    return read_history(out)


def latency_table(inputs: Inputs, given: Path | None) -> LatencyTable:
    """`table.json`: operator costs of the target, measured now or given (and checked) before."""
    path = inputs.path / "table.json"
    if not path.exists():
        if given is not None:
            table = LatencyTable.find(given)
        else:
            from hwnas.latency.profiling import profile

            table = profile(
                inputs.config,
                inputs.target,
                validate=inputs.recipe.measure.validate_table,
                seed=inputs.recipe.seed,
            )
        table.save(path)
    return LatencyTable.load(path)


def importance(inputs: Inputs) -> Importance:
    """`importance.safetensors`: first-order scores of the students' starting weights."""
    path = inputs.path / "importance.safetensors"
    if not path.exists():
        from transformers import DataCollatorWithPadding

        columns = [c for c in inputs.train.column_names if c != "length"]
        part = inputs.train.select_columns(columns)
        part = part.select(range(min(len(part), _IMPORTANCE_ROWS)))
        collate = DataCollatorWithPadding(inputs.tokenizer)
        batches = [
            dict(collate([part[i] for i in range(at, min(at + _IMPORTANCE_BATCH, len(part)))]))
            for at in range(0, len(part), _IMPORTANCE_BATCH)
        ]
        first_order(load(inputs.path / "baseline" / "start"), batches).save(path)
    return Importance.load(path)


def search_space(inputs: Inputs) -> SearchSpace:
    """`space.json`: which widths each block may have."""
    path = inputs.path / "space.json"
    if not path.exists():
        write_json(path, SearchSpace.whole(inputs.shape))
    space = read_model(path, SearchSpace)
    space.check(inputs.shape, where=str(path))
    return space


def check_budgets(inputs: Inputs, table: LatencyTable, space: SearchSpace) -> None:
    """Raise `BudgetError`, before anything is trained, if a budget is hopeless by the table."""
    predictor = table.predictor()
    fastest = predictor.fixed_ms + min(
        predictor.block_ms(Block(options.heads[0], options.ffn[0])) for options in space.blocks
    )
    for text in inputs.recipe.budgets:
        if Budget.parse(text).in_ms(table.reference_ms) < fastest:
            raise BudgetError(
                f"budget {text} cannot be met: the fastest subnetwork is predicted at "
                f"{fastest:.3g} ms, the whole model takes {table.reference_ms:.3g} ms"
            )


def teacher_logits(inputs: Inputs, teacher: PreTrainedModel) -> np.ndarray:
    """`teacher.safetensors`: the baseline's logits `(rows, classes)` by which the search judges."""
    from safetensors.numpy import load_file, save_file

    path = inputs.path / "teacher.safetensors"
    if not path.exists():
        with replacing(path) as partial:
            save_file({"search": predict(teacher, inputs.search_validation)}, partial)
    logits: np.ndarray = load_file(path)["search"]
    return logits


def starting_network(inputs: Inputs, scores: Importance) -> SuperNetwork:
    """The students' starting weights, reordered, elastic."""
    model = load(inputs.path / "baseline" / "start")
    reorder(model, scores)
    return SuperNetwork(model)


def sandwich(inputs: Inputs, space: SearchSpace) -> Sandwich:
    """How the super-network's subnetworks are sampled: a little beyond the budgets, either way."""
    shares = budget_shares(inputs)
    return Sandwich(
        space,
        seed=inputs.recipe.seed,
        smallest=max(0.05, 0.8 * min(shares)),
        largest=min(1.0, 1.2 * max(shares)),
    )


def budget_share(inputs: Inputs, text: str) -> float:
    """A budget as a share of the full model's latency, by the table."""
    table = LatencyTable.load(inputs.path / "table.json")
    return Budget.parse(text).in_ms(table.reference_ms) / table.reference_ms


def budget_shares(inputs: Inputs) -> list[float]:
    """All budgets as shares of the full model's latency."""
    return [budget_share(inputs, budget) for budget in inputs.recipe.budgets]


def supernet(
    inputs: Inputs, space: SearchSpace, scores: Importance, teacher: PreTrainedModel
) -> SuperNetwork:
    """`supernet/`: the weight-sharing network, trained by the sandwich rule with distillation."""
    out = inputs.path / "supernet"
    if not out.exists():
        network = starting_network(inputs, scores)
        steps = inputs.plan.supernet_steps
        train(
            network,
            inputs.tokenizer,
            rows(inputs.train, 0, steps * inputs.plan.batch),
            inputs.optimization(steps, inputs.recipe.training.supernet_rate, 2),
            out.with_name("supernet-training"),
            teacher=teacher,
            sandwich=sandwich(inputs, space),
            title="super-network",
        )
        with replacing(out) as partial:
            network.model.save_pretrained(partial)
    return SuperNetwork(load(out))


def rough_share(budget: str) -> float:
    """A budget as a share of the full model before measuring anything: half, if in milliseconds."""
    return Budget.parse(budget).fraction or 0.5


def seconds_per_step(inputs: Inputs) -> float:
    """How long one training step of the full model takes on this machine, median of a few."""
    import statistics
    import time

    from transformers import DataCollatorWithPadding

    model, _ = load_model(inputs.recipe.model, labels=inputs.task.labels, seed=inputs.recipe.seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    collate = DataCollatorWithPadding(inputs.tokenizer)
    columns = [c for c in inputs.train.column_names if c != "length"]
    part = inputs.train.select_columns(columns)
    seconds = []
    steps = inputs.plan.baseline_steps(len(inputs.recipe.budgets))
    with prepared(model, inputs.optimization(steps, 1e-5, 0)):
        for step in range(_SPEED_STEPS):
            begin = time.perf_counter()
            batch = collate([part[i % len(part)] for i in range(step, step + inputs.plan.batch)])
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
