"""How much a small language model keeps at a measured decode latency, beside other ways to shrink.

SmolLM2-135M learns ARC-easy, OpenBookQA and BoolQ together, by adapters. From one plain LoRA
baseline per seed, within the same budgets:

- `deployed`: `hwnas run` with 8-bit weights competing, all tokens kept, which is what we advise:
  structure and precision together;
- `ours`: `hwnas run` in fp32 only (importance, elastic adapters on the frozen baseline, search,
  finalists), with fewer tokens;
- `uniform`: all layers alike;
- `shortgpt`: layers left out by how little they change the stream (Men et al. 2024);
- `one-shot`: first-order importance of weights, the middle layers cut at one ratio (LLM-Pruner, Ma
  et al. 2023);
- `int8`, `int4`: the baseline with 8- or 4-bit weights, nothing else;
- `lora`: plain LoRA on the whole model for all the steps that our models have seen, their upper
  bound.

Every rival is trained by adapters with the same distillation, for all the compute that our run
spent after the baseline, each budget for its part. Answers are scored by likelihood as
lm-evaluation-harness does: by byte for ARC-easy and OpenBookQA, plainly for BoolQ, on all 3,073
questions of their held-out halves. Beside them stands what was not trained on: ARC-challenge, the
perplexity of WikiText, and word problems of MAWPS, answered in writing.

Runs are kept in `runs/quality_llm/`: an interrupted benchmark goes on inside the run that was cut
off. All take their baseline and latency table from the run of `ours`.

    python benchmarks/quality_llm.py --json benchmarks/results/quality_llm.json
    python benchmarks/quality_llm.py --only 0:deployed 0:int4 --json ...    # some of the rows
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quality_rivals import CHOSEN, Kind, choose, finished
from record import ROOT, Results, options, rank, spread

from hwnas import stages
from hwnas.anatomy.modules import blocks
from hwnas.beside import load_beside
from hwnas.delivery import write_exact, write_quantized
from hwnas.errors import BudgetError
from hwnas.files import validate, write_text
from hwnas.importance.scores import Importance
from hwnas.inputs import Inputs
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.target import Budget
from hwnas.models import load, load_tokenizer
from hwnas.pipeline import Given, prepare
from hwnas.recipe import Recipe, VocabularySpec
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Summary
from hwnas.tasks.written import states_of
from hwnas.timing import latency_table
from hwnas.training.batches import collator, model_columns

DATA = ROOT.parent / "shared" / "data"
RUNS = ROOT / "runs" / "quality_llm"
BUDGETS = ("80%", "65%")
LEARNED = {"arc_easy": "accuracy_norm", "openbookqa": "accuracy_norm", "boolq": "accuracy"}
ROWS = 2000  # questions of each that are scored at most: 1,188, 250 and 1,635, all there are
OURS = ("ours", "deployed")
PRECISIONS = ("int8", "int4")  # of weights
WAYS = ("deployed", *PRECISIONS, "ours", "lora", "uniform", "shortgpt", "one-shot")
SEEDS = 3
WHOLE_FIRST, WHOLE_LAST = 4 / 32, 2 / 32  # of the layers, that LLM-Pruner leaves whole
_BATCH = 8
PROTOCOL = (
    "demo:smollm2 by adapters on ARC-easy, OpenBookQA and BoolQ; decode with a cache of 128, one "
    "thread; choices by likelihood (by byte but for BoolQ), 3,073 questions; paired latency of the "
    "exported files; all train in bf16, rivals for all the compute that ours spends after the "
    "baseline"
)
COMPUTE = {
    "batch": 16,
    "start_steps": 690,
    "supernet_steps": 60,
    "winner_steps": 300,
    "heir_steps": 150,
    "first_rung_steps": 30,
    "evaluations": 10,
    "evaluation_rows": 96,
    "plateau_rows": 192,
    "choice_rows": 384,
}
QUICK = {
    "start_steps": 2,
    "supernet_steps": 1,
    "winner_steps": 2,
    "heir_steps": 2,
    "first_rung_steps": 1,
    "evaluations": 2,
    "evaluation_rows": 8,
    "plateau_rows": 8,
    "choice_rows": 8,
    "test_rows": 8,
}


def _commonsense(name: str, split: str) -> list[dict[str, str]]:
    path = DATA / "commonsense" / f"{name}_{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def data_files() -> tuple[Path, Path]:
    """All three training files as one, and a few of the held-out questions likewise."""
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not there")
    found = []
    for split, most in (("train", None), ("dev", 40)):
        rows = [row for name in LEARNED for row in _some(_commonsense(name, split), most)]
        path = RUNS / "data" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        found.append(path)
    return found[0], found[1]


def _some(rows: list[dict[str, str]], most: int | None) -> list[dict[str, str]]:
    return rows if most is None or len(rows) <= most else random.Random(0).sample(rows, most)


def recipe_of(seed: int, quick: bool) -> Recipe:
    """The searched run's recipe."""
    train, test = data_files()
    choice = {"kind": "choice", "text": "instruction", "label": "answer"}
    dev = DATA / "commonsense"
    rows = 8 if quick else ROWS
    scored: dict[str, Any] = {
        name: choice | {"data": str(dev / f"{name}_dev.jsonl"), "metric": metric, "rows": rows}
        for name, metric in (LEARNED | {"arc_challenge": "accuracy_norm"}).items()
    }
    scored["wikitext"] = {
        "kind": "language",
        "data": str(DATA / "wikitext2" / "dev.jsonl"),
        "rows": 8 if quick else 200,
    }
    scored["mawps"] = {
        "kind": "instruction",
        "data": str(DATA / "math" / "mawps_valid.jsonl"),
        "metric": "exact_match",
        "template": "{question}",
        "chat": True,
        "rows": 2 if quick else 40,
    }
    value = {
        "model": "demo:smollm2",
        "task": choice
        | {
            "data": str(train),
            "test": str(test),
            "metric": "accuracy_norm",
            "max_length": 192,
            "learn": "choices",
            "ends": False,  # nothing is written here, and rows began without
        },
        "target": "openvino:cpu:threads=1,phase=decode,cache=128",
        "budgets": BUDGETS[:1] if quick else BUDGETS,
        "seed": seed,
        "beside": scored,
        "compute": COMPUTE | (QUICK if quick else {}),
        "measure": {"validate_table": 0 if quick else 8, "table_minutes": 0.5 if quick else None},
        "importance": {"rows": 8, "loss_rows": 2} if quick else {},
        "training": {
            "precision": "bf16",
            "distill_weight": 1.0,  # the labels were learned by the baseline
            "adapters": {"students_rate": 4e-4},
        },
        # words of the questions to come are not all in those that are learned
        "vocabulary": {"trim": True, "least": 2, "common": 24_576},
    }
    return validate(Recipe, value, where="quality_llm")


def run_of(seed: int, way: str, quick: bool) -> Path:
    """Where the run of one way to shrink is kept."""
    return RUNS / ("quick" if quick else "full") / f"{seed}-{way}"


def shortgpt(inputs: Inputs) -> Kind:
    """Layers go by their influence: one less the cosine of the stream before and after them."""
    influence = _influence(inputs)
    order = sorted(range(len(influence)), key=lambda i: influence[i])
    full = Subnetwork.full(inputs.shape)

    def propose(predictor: LatencyPredictor, budget_ms: float) -> Subnetwork:
        for gone in range(len(order)):
            out = set(order[:gone])
            kept = [[0, 0] if i in out else list(b) for i, b in enumerate(full.blocks)]
            if predictor.predict(Subnetwork.of(kept)) <= budget_ms:
                return Subnetwork.of(kept)
        raise BudgetError(f"budget {budget_ms:.3g} ms: not even one layer fits")

    return Kind("shortgpt", propose, lambda _: stages.importance(inputs))


@torch.no_grad()
def _influence(inputs: Inputs) -> list[float]:
    """Of every layer, over some training rows."""
    model = load(inputs.path / "baseline" / "start")
    rows = model_columns(inputs.train).select(range(min(128, len(inputs.train))))
    collate = collator(inputs.tokenizer, rows)
    totals = [0.0] * len(blocks(model))
    tokens = 0
    for at in range(0, len(rows), _BATCH):
        batch = dict(collate([rows[i] for i in range(at, min(at + _BATCH, len(rows)))]))
        real = batch["attention_mask"].bool()
        states = states_of(model, model, batch, True).every or ()
        for i in range(len(totals)):
            alike = torch.cosine_similarity(states[i][real], states[i + 1][real], dim=-1)
            totals[i] += float((1 - alike).sum())
        tokens += int(real.sum())
    return [total / tokens for total in totals]


def one_shot(inputs: Inputs) -> Kind:
    """The middle layers cut at one ratio, by the first-order importance of single weights."""
    shape = inputs.shape
    depth = shape.depth
    first, last = round(WHOLE_FIRST * depth), depth - round(WHOLE_LAST * depth)
    space = SearchSpace.whole(shape)
    full = Subnetwork.full(shape)

    def propose(predictor: LatencyPredictor, budget_ms: float) -> Subnetwork:
        for percent in range(100, 0, -1):
            cut = space.scaled(percent / 100).blocks
            kept = [cut[i] if first <= i < last else block for i, block in enumerate(full.blocks)]
            if predictor.predict(Subnetwork(tuple(kept))) <= budget_ms:
                return Subnetwork(tuple(kept))
        raise BudgetError(f"budget {budget_ms:.3g} ms: the layers that stay whole do not fit")

    def importance(_: Sequence[Subnetwork]) -> Importance:
        found = stages.importance(inputs)
        return Importance(
            tuple(weights.clone() for weights in found.head_weights),
            tuple(weights.clone() for weights in found.ffn_weights),
            found.head_weights,
            found.ffn_weights,
            found.layers,
            found.residual,
            found.vocabulary,
        )

    return Kind("one-shot", propose, importance)


def row(seed: int, way: str, quick: bool) -> dict[str, Any]:
    """The budgets of one way to shrink, after what is missing of its run is made."""
    recipe = recipe_of(seed, quick)
    ours, run = (run_of(seed, each, quick) for each in ("ours", way))
    begin(recipe, ours)
    if way in PRECISIONS:
        return precision_alone(recipe, ours, f"{way}-weights")
    if way == "lora":
        return lora(recipe, ours, run)
    if way == "deployed":
        update = {"deployments": ("openvino:int8-weights",), "vocabulary": VocabularySpec()}
        recipe = recipe.model_copy(update=update)
    elif way != "ours":
        recipe = recipe.model_copy(update={"strategy": "uniform"})
    if way not in OURS and not (ours / "summary.json").exists():
        raise SystemExit(f"{seed}:{way}: trains for what ours spent; run {seed}:ours first")
    if way in ("shortgpt", "one-shot") and not (run / "selection" / CHOSEN).exists():
        inputs = prepare(recipe, run, resume=True, given=Given(reuse=ours))
        choose(inputs, (shortgpt if way == "shortgpt" else one_shot)(inputs))
        inputs.directory.close()
    return _figures(finished(recipe, run, None if way == "ours" else ours))


def begin(recipe: Recipe, ours: Path) -> None:
    """The table and the baseline that all ways share, in the folder of our run."""
    if (ours / "baseline" / "history.json").exists():
        return
    inputs = prepare(recipe, ours, resume=True, given=Given())
    with inputs.directory.stage("table"):
        latency_table(inputs, None)
    with inputs.directory.stage("baseline"):
        stages.baseline(inputs)
    inputs.directory.close()


def _mean(scores: dict[str, float]) -> float:
    return statistics.mean(scores[name] for name in LEARNED)


def _figures(summary: Summary) -> dict[str, Any]:
    def scores(of: str) -> dict[str, float]:
        return {
            one.name: getattr(one, of) if of in ("original", "baseline") else one.chosen[of]
            for one in summary.beside
        }

    return {
        "questions": sum(one.rows for one in summary.beside if one.name in LEARNED),
        "original": scores("original") | {"mean": _mean(scores("original"))},
        "baseline": scores("baseline") | {"mean": _mean(scores("baseline"))},
        "baseline_steps": summary.baseline.steps,
        "converged": summary.baseline.converged,
        "budgets": {
            chosen.budget: {
                "scores": scores(chosen.budget) | {"mean": _mean(scores(chosen.budget))},
                "ratio": chosen.ratio,
                "met": chosen.met,
                "served": f"{chosen.runtime}:{chosen.precision}",
                "kind": chosen.kind,
                "genome": chosen.genome,
                "steps": chosen.steps,
                "params": chosen.params,
                "size_mb": chosen.size_mb,
            }
            for chosen in summary.chosen
        },
        "compute": summary.compute.model_dump(),
        "seconds": sum(summary.seconds.values()),
    }


def precision_alone(recipe: Recipe, ours: Path, precision: str) -> dict[str, Any]:
    """The baseline quantized by NNCF, calibrated on training rows; nothing is trained."""
    from hwnas.export import folder_size_mb, measure_against, served_folder

    inputs = prepare(recipe, ours, resume=True, given=Given())
    baseline, target = ours / "baseline", replace(inputs.target, precision=precision)
    write_exact(inputs, baseline / "model", baseline)
    write_quantized(inputs, baseline, target)
    out, source = (baseline / served_folder(one) for one in (target, inputs.target))
    paired = measure_against(out, source, inputs.target, pairs=recipe.measure.pairs)
    scores = _scores(recipe, inputs, out)
    inputs.directory.close()
    found = {"scores": scores, "ratio": paired.ratio, "size_mb": folder_size_mb(out)}
    most = paired.ratio / (1 + recipe.measure.tolerance)  # as ours is said to have met a budget
    met = [text for text in recipe.budgets if most <= Budget.parse(text).in_ms(1.0)]
    return {"alone": found, "budgets": {budget: found | {"met": True} for budget in met}}


def lora(recipe: Recipe, ours: Path, run: Path) -> dict[str, Any]:
    """Plain LoRA on the whole model for all the steps that a model of ours may have seen."""
    plan = recipe.compute
    steps = plan.start_steps + plan.student_steps(len(recipe.budgets))
    compute = plan.model_copy(update={"start_steps": steps})
    longer = recipe.model_copy(update={"compute": compute})
    inputs = prepare(longer, run, resume=True, given=Given(table=ours / "table.json"))
    history = stages.baseline(inputs)
    write_exact(inputs, run / "baseline" / "model", run / "baseline")
    scores = _scores(recipe, inputs, run / "baseline" / "openvino")
    inputs.directory.close()
    return {"lora": {"scores": scores, "steps": history.steps, "converged": history.converged}}


def _scores(recipe: Recipe, inputs: Inputs, folder: Path) -> dict[str, float]:
    from hwnas.export import load_exported

    tokenizer = load_tokenizer(folder)
    data = load_beside(recipe.beside, inputs.task.max_length)
    models = {writes: load_exported(folder, scoring=not writes) for writes in (False, True)}
    found = {
        one.name: one.score(models[one.by_writing], tokenizer, inputs.tokenizer) for one in data
    }
    return found | {"mean": _mean(found)}


def wanted(quick: bool) -> Iterator[tuple[int, str]]:
    """Seed and way: all ways with one seed, then ours and the bound with the others."""
    if quick:
        yield from ((0, way) for way in ("deployed", "int4", "ours"))
        return
    yield from ((0, way) for way in WAYS)
    for seed in range(1, SEEDS):
        yield from ((seed, way) for way in ("deployed", *PRECISIONS, "ours", "lora"))
    yield from ((1, way) for way in ("one-shot", "uniform", "shortgpt"))


def main() -> None:
    """Run what is missing, and write the rows and the headline."""

    def more(parser: Any) -> None:
        parser.add_argument("--only", nargs="+", help="SEED:WAY, of the rows")

    args = options("quality_llm", __doc__, more)
    results = Results("quality_llm", args.quick, PROTOCOL, args.json)
    for seed, way in wanted(args.quick):
        if args.only is None or f"{seed}:{way}" in args.only:
            results.row({"seed": seed, "way": way}, partial(row, seed, way, args.quick))
    results.finish(headline(results.rows))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Points below plain LoRA at each budget, our rank among the rivals, and every mean."""
    found: dict[str, Any] = {}
    bound = {r["seed"]: r["lora"]["scores"]["mean"] for r in rows if "lora" in r}
    for budget in BUDGETS:
        name = budget.rstrip("%")
        scores: dict[str, dict[int, float]] = {}
        met: dict[str, dict[int, float]] = {}
        for r in rows:
            if (at := r.get("budgets", {}).get(budget)) is not None:
                for into in (scores, met) if at["met"] else (scores,):
                    into.setdefault(r["way"], {})[r["seed"]] = at["scores"]["mean"]
        found[f"means_{name}"] = {
            way: round(statistics.mean(of.values()), 2) for way, of in scores.items()
        }
        found[f"spread_{name}"] = {
            way: apart
            for way, of in scores.items()
            if (apart := spread([*of.values()])) is not None
        }
        for mine in OURS:
            drops = [
                bound[r["seed"]] - r["budgets"][budget]["scores"]["mean"]
                for r in rows
                if r["way"] == mine and r["seed"] in bound and budget in r["budgets"]
            ]
            said = "" if mine == "ours" else f"{mine}_"
            if drops:
                found[f"{said}drop_at_{name}"] = round(statistics.mean(drops), 2)
            if (place := rank(met, mine)) is not None:
                found[f"{said}rank_at_{name}"] = place
    return found


if __name__ == "__main__":
    main()
