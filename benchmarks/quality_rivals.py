"""Structures that rivals of the search choose, written where a run finds them as its own.

They are trained, exported and scored by the very code that the searched models go through (`hwnas
run --baseline uniform`, with its selection already there). What differs is the structure, and
which heads and neurons it keeps.

- One shot: Torch-Pruning (Fang et al. 2023), group Taylor importance ranked over the whole model,
  heads and FFN neurons at one ratio, the least that meets the latency budget.
- Fresh: a smaller checkpoint out of every other layer of the teacher, as DistilBERT is made, its
  layers as wide as the budget allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import made
from torch import nn

from hwnas import stages
from hwnas.errors import BudgetError
from hwnas.files import read_model, write_json, write_text
from hwnas.importance.scores import Importance
from hwnas.inputs import Inputs
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.target import Budget
from hwnas.models import load, load_tokenizer
from hwnas.recipe import Recipe
from hwnas.search.evolution import Evaluated
from hwnas.selection import Allowance, select
from hwnas.space import SearchSpace
from hwnas.subnetwork import Block, Subnetwork
from hwnas.summary import Summary
from hwnas.timing import latency_table, structure_clock
from hwnas.training.batches import collator, model_columns, questions

_ROWS = 256  # of training data that Taylor importance looks at, as hwnas's does
_BATCH = 8
_FFN_STEP = 32
_ANSWERS = {"logits", "start_logits", "end_logits"}
_HALVINGS = 10
ROUNDS = 3  # of choosing again where a structure misses its budget, as the search has


class Kept(NamedTuple):
    """The heads and the FFN neurons that are kept in each block."""

    heads: list[list[int]]
    ffn: list[list[int]]

    @property
    def subnetwork(self) -> Subnetwork:
        blocks = zip(self.heads, self.ffn, strict=True)
        return Subnetwork(tuple(Block(len(heads), len(ffn)) for heads, ffn in blocks))


@dataclass
class TaylorPruning:
    """Torch-Pruning on a BERT, at any ratio; gradients are taken once."""

    model: Any  # with gradients
    example: dict[str, torch.Tensor]

    @classmethod
    def of(cls, inputs: Inputs) -> TaylorPruning:
        """Of the students' starting weights, with gradients of the task's loss."""
        model = load(inputs.path / "baseline" / "start")
        rows = model_columns(inputs.train)
        rows = rows.select(range(min(len(rows), _ROWS)))
        collate = collator(inputs.tokenizer, rows)
        model.eval()
        model.zero_grad()
        for at in range(0, len(rows), _BATCH):
            batch = dict(collate([rows[i] for i in range(at, min(at + _BATCH, len(rows)))]))
            inputs.task.kind.probe(model(**questions(batch)), batch).backward()
        batch = dict(collate([rows[i] for i in range(2)]))
        return cls(model, dict(questions(batch)))

    def kept(self, ratio: float) -> Kept:
        """What is left when this share of all heads and of all FFN neurons goes."""
        import torch_pruning

        config = self.model.config
        layers = self.model.base_model.encoder.layer
        attention = {
            layer: index
            for index, block in enumerate(layers)
            for layer in (
                block.attention.self.query,
                block.attention.self.key,
                block.attention.self.value,
            )
        }
        ffn = {block.intermediate.dense: index for index, block in enumerate(layers)}
        rest = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm)
            and module not in attention
            and module not in ffn
        ]
        pruner = torch_pruning.pruner.BasePruner(
            self.model,
            self.example,
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=ratio,
            head_pruning_ratio=ratio,
            num_heads=dict.fromkeys(attention, config.num_attention_heads),
            prune_num_heads=True,
            prune_head_dims=False,
            ignored_layers=rest,
            round_to=_FFN_STEP,
            output_transform=lambda outputs: sum(
                outputs[n].sum() for n in _ANSWERS & outputs.keys()
            ),
        )
        heads = [set(range(config.num_attention_heads)) for _ in layers]
        neurons = [set(range(config.intermediate_size)) for _ in layers]
        size = config.hidden_size // config.num_attention_heads
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                module = dependency.target.module
                if not pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                    continue
                if module in attention:
                    heads[attention[module]] -= {index // size for index in indices}
                elif module in ffn:
                    neurons[ffn[module]] -= set(indices)
        return Kept(
            [sorted(kept) or [0] for kept in heads],
            [sorted(kept) or list(range(_FFN_STEP)) for kept in neurons],
        )


def one_shot(inputs: Inputs) -> Kind:
    """Torch-Pruning's choice within a budget, and the importance that orders a model by it."""
    pruning = TaylorPruning.of(inputs)
    chosen: dict[Subnetwork, Kept] = {}

    def propose(predictor: LatencyPredictor, budget_ms: float) -> Subnetwork:
        low, high = 0.0, 0.98
        fitting: Kept | None = None
        for _ in range(_HALVINGS):
            ratio = (low + high) / 2
            kept = pruning.kept(ratio)
            if predictor.predict(kept.subnetwork) <= budget_ms:
                fitting, high = kept, ratio
            else:
                low = ratio
        if fitting is None:
            raise BudgetError(f"budget {budget_ms:.3g} ms: nothing that is left fits")
        chosen[fitting.subnetwork] = fitting
        return fitting.subnetwork

    def importance(selected: Sequence[Subnetwork]) -> Importance:
        """In how many of the structures a part is kept: a smaller one keeps part of a larger's."""

        def counted(
            full: Sequence[int], kept: Iterable[list[list[int]]]
        ) -> tuple[torch.Tensor, ...]:
            scores = [torch.zeros(width) for width in full]
            for blocks in kept:
                for score, parts in zip(scores, blocks, strict=True):
                    score[parts] += 1
            return tuple(scores)

        shape = inputs.shape
        heads = counted(shape.heads, (chosen[s].heads for s in selected))
        ffn = counted(shape.ffn, (chosen[s].ffn for s in selected))
        return Importance(
            heads,
            ffn,
            head_weights=tuple(score.clone() for score in heads),
            ffn_weights=tuple(score.clone() for score in ffn),
            layers=torch.zeros(1),
            residual=torch.zeros(1),
            vocabulary=torch.zeros(1),
        )

    return Kind("one-shot", propose, importance)


def fresh(inputs: Inputs) -> Kind:
    """Every other layer, or every third where the budget is tighter, as wide as fits."""
    space = SearchSpace.whole(inputs.shape)
    depth = inputs.shape.depth

    def propose(predictor: LatencyPredictor, budget_ms: float) -> Subnetwork:
        share = budget_ms / predictor.predict(Subnetwork.full(inputs.shape))
        kept = {round(i / share) for i in range(math.ceil(share * depth)) if i / share < depth}
        for width in range(100, 0, -1):
            found = space.scaled(width / 100, [i in kept for i in range(depth)])
            if predictor.predict(found) <= budget_ms:
                return found
        raise BudgetError(f"budget {budget_ms:.3g} ms: no {len(kept)} layers fit")

    return Kind("fresh", propose, lambda _: stages.importance(inputs))


CHOSEN = "chosen"  # a file in `selection/`, once a rival has chosen for all budgets


class Kind(NamedTuple):
    """How a rival chooses a structure within a budget, and orders a model's parts."""

    name: str
    propose: Callable[[LatencyPredictor, float], Subnetwork]
    importance: Callable[[Sequence[Subnetwork]], Importance]


def choose(inputs: Inputs, kind: Kind, time: Callable[[Subnetwork], float] | None = None) -> None:
    """Write `selection/` and `importance.safetensors` for every budget of a rival's run.

    Structures are timed, and chosen again where they miss, as the searched ones are.

    Args:
        time: ms of a structure; by default it is measured on the target.
    """
    recipe = inputs.recipe
    table = latency_table(inputs, None)
    clock = structure_clock(inputs, inputs.target, table.reference_ms, "structure")

    def propose(predictor: LatencyPredictor, budget_ms: float, number: int) -> Iterable[Evaluated]:
        found = kind.propose(predictor, budget_ms)
        yield Evaluated(kind.name, found, math.nan, predictor.predict(found))

    selected = []
    for text in recipe.budgets:
        budget = Budget.parse(text)
        allowance = Allowance(
            text=text,
            ms=budget.in_ms(table.reference_ms),
            margin=recipe.measure.margin,
            tolerance=recipe.measure.tolerance,
        )
        selection = select(propose, time or clock.time, table.predictor(), allowance, ROUNDS)
        write_json(inputs.path / "selection" / f"{budget.folder}.json", selection)
        selected.append(selection.structures[0].subnetwork)
    kind.importance(selected).save(inputs.path / "importance.safetensors")
    write_text(inputs.path / "selection" / CHOSEN, kind.name)


def int8(run: Path, inputs: Inputs) -> dict[str, Any]:
    """The baseline in static int8 by NNCF, calibrated on the task's rows; nothing is trained."""
    from hwnas.export import (
        calibration,
        folder_size_mb,
        measure_against,
        quantize_folder,
        score_folder,
    )

    source, out = run / "baseline" / "openvino", run / "baseline" / "openvino-int8-static"
    rows = calibration(inputs.train, load_tokenizer(run / "baseline" / "model"))
    quantize_folder(source, out, "int8-static", rows)
    paired = measure_against(out, source, inputs.target, pairs=inputs.recipe.measure.pairs)
    metric = score_folder(out, inputs.test, inputs.task.kind, inputs.task.metric)
    return {"metric": metric, "ratio": paired.ratio, "size_mb": folder_size_mb(out)}


def finished(recipe: Recipe, run: Path, ours: Path | None) -> Summary:
    """The summary of a run, which is made or finished first."""
    made(run, recipe, *(["--reuse", ours] if ours else []))
    return read_model(run / "summary.json", Summary)
