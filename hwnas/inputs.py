"""What every stage of a run reads: the recipe, its data in tokens, the plan of compute.

Data are encoded when they are first asked for, and once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.anatomy import Shape, find_shape
from hwnas.latency.target import Target
from hwnas.models import load_model, on_gpu
from hwnas.recipe import Recipe
from hwnas.rundir import RunDirectory
from hwnas.tasks.embedding import Embedding, with_teacher
from hwnas.tasks.kinds import encode_training
from hwnas.tasks.loading import Task
from hwnas.tasks.predict import predict
from hwnas.tasks.regression import Regression
from hwnas.tasks.unlabelled import Unlabelled, load_text
from hwnas.training.compute import ComputePlan
from hwnas.training.optimization import Optimization
from hwnas.vocabulary import Kept, kept_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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
        task = self.task
        return encode_training(task.kind, task.train, self.tokenizer, task.max_length)

    @cached_property
    def unlabelled(self) -> Dataset:
        """Encoded text without labels; the recipe must have some."""
        assert self.recipe.unlabelled is not None
        found = load_text(self.recipe.unlabelled)
        return Unlabelled().encode(found, self.tokenizer, self.task.max_length)

    @cached_property
    def search_validation(self) -> Dataset:
        return self._first(self.plan.evaluation_rows)

    @cached_property
    def plateau_validation(self) -> Dataset:
        return self._first(self.plan.plateau_rows)

    @cached_property
    def choice_validation(self) -> Dataset:
        half = self.task.choice_validation
        return self.held_out(half.select(range(min(len(half), self.plan.choice_rows))))

    @property
    def test_split(self) -> Dataset:
        """The test rows that are scored."""
        whole = self.task.test
        return whole.select(range(min(len(whole), self.plan.test_rows or len(whole))))

    @cached_property
    def test(self) -> Dataset:
        return self.held_out(self.test_split)

    def optimization(
        self, steps: int, learning_rate: float, seed: int, *, student: bool = True
    ) -> Optimization:
        """The recipe's way of training, for one stage; `student`: one that has a teacher."""
        training = self.recipe.training
        dropout = training.students_dropout if student else self._baseline_dropout
        adapters = self.recipe.adapters
        return Optimization(
            steps=steps,
            learning_rate=adapters.rate_of(student=student) if adapters else learning_rate,
            batch=self.plan.batch,
            distill_weight=training.distill_weight,
            temperature=training.temperature,
            states_weight=training.states_weight,
            relations_weight=training.relations_weight,
            accumulate=training.accumulate,
            precision=training.precision,
            dropout=dropout,
            freeze_embeddings=training.freeze_embeddings,
            adapters=adapters and adapters.dropping(dropout),
            checkpointing=training.checkpointing,
            seed=self.recipe.seed * 1000 + seed,
        )

    @property
    def _baseline_dropout(self) -> bool:
        """By default, if its training sees rows twice, which it might learn by heart."""
        given = self.recipe.training.dropout
        if given is not None:
            return given
        longest = self.plan.baseline_steps(len(self.recipe.budgets))
        return longest * self.plan.batch > len(self.train)

    @property
    def mean_length(self) -> int:
        """Tokens of an average training row."""
        return mean_length(self.train)

    @cached_property
    def vocabulary(self) -> Kept | None:
        """What the chosen models keep of the tokens; None: all."""
        spec = self.recipe.vocabulary
        if not spec.trim:
            return None
        written = self.recipe.task.is_written
        usual = len(self.tokenizer) // 2 if written else 0
        common = usual if spec.common is None else spec.common
        if not written:
            return kept_tokens(self.tokenizer, self.task.texts(), least=spec.least, common=common)
        # as they are judged by: with templates, and all that is offered to choose from
        read = (self._encode(self.task.train), self.choice_validation)
        rows = itertools.chain.from_iterable(encoded["input_ids"] for encoded in read)
        return kept_tokens(self.tokenizer, least=spec.least, common=common, rows=rows)

    @property
    def tokens_written(self) -> int | None:
        """How many tokens the chosen models choose from at each step; None: as the original.

        An encoder's output layer has no tokens, so its vocabulary is no matter of latency.
        """
        if self.vocabulary is None or not self.recipe.task.is_written:
            return None
        return len(self.vocabulary.numbers)

    def _first(self, count: int) -> Dataset:
        half = self.task.search_validation
        return self.held_out(half.select(range(min(len(half), count))))

    def _encode(self, split: Dataset) -> Dataset:
        return self.task.kind.encode(split, self.tokenizer, self.task.max_length)

    def held_out(self, split: Dataset, tokenizer: PreTrainedTokenizerBase | None = None) -> Dataset:
        """Encoded rows to judge answers by; of embeddings, with those of the original model.

        Args:
            tokenizer: of the model that is judged; by default the original's.
        """
        kind, most = self.task.kind, self.task.max_length
        encoded = kind.encode(split, tokenizer or self.tokenizer, most)
        if isinstance(kind, Embedding):
            original, _ = load_for(self.recipe.model, self.task, seed=self.recipe.seed)
            encoded = with_teacher(encoded, predict(on_gpu(original), self._encode(split)))
        return encoded


def mean_length(encoded: Dataset) -> int:
    """Tokens of an average row."""
    lengths = encoded["length"]
    return max(1, round(float(sum(lengths)) / len(lengths)))


def load_for(
    name: str, task: Task, *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of that name with a head for the task, and its tokenizer; see `load_model`."""
    kind = task.kind
    return load_model(
        name,
        task=kind.task,
        labels=task.labels or None,
        regression=isinstance(kind, Regression),
        seed=seed,
    )
