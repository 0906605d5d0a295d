"""What each choice of the method is worth: one is changed at a time, the rest are the defaults.

Per seed there is one baseline and one latency table; every variant shrinks that baseline to the
same latency with the same compute and is scored on tweets that no model of the run has ever seen.
Sampling matters only where the super-network is trained for long, so its variants, the default's
too, give it half of the compute. Where a choice is about the search space or the search, `best`
says how well the best candidate did with inherited weights (divergence from the baseline).

Runs are kept in `runs/ablations/`: an interrupted benchmark goes on inside the run that was cut.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from record import ROOT, Results, made, options

from hwnas.files import read_json, read_model, validate, write_json, write_text
from hwnas.models import load, load_tokenizer
from hwnas.recipe import Recipe, load_recipe
from hwnas.space import SearchSpace
from hwnas.summary import Summary
from hwnas.tasks.loading import load_task
from hwnas.tasks.predict import predict

RUNS = ROOT / "runs" / "ablations"
SEEDS = (0, 1, 2)
BUDGET = "33%"
UNLABELLED = RUNS / "tweets.jsonl"  # those that no other training reaches, nor the scoring
UNSEEN = 4000  # rows at the end of the training split, which no training reaches
PROTOCOL = (
    f"hwnas run, demo:minilm on demo:tweets at {BUDGET} of the latency; one thing changed at a "
    f"time, equal compute; scored on the last {UNSEEN} training rows, which no training reaches"
)
Changes = dict[str, dict[str, Any]]
START, SUPERNET, WINNER = 260, 16, 300  # steps
_SANDWICH, _FINALIST = 1.3, 0.67  # full-model steps that one step costs at this budget


def share(supernet: int, general: int = 0) -> Changes:
    """So many steps for the super-network, in one or two stages; the rest for the finalists."""
    winner = WINNER + (SUPERNET - supernet - general) * _SANDWICH / _FINALIST
    steps = {"supernet_steps": supernet, "winner_steps": round(winner), "general_steps": general}
    return {"compute": steps} | ({"unlabelled": {"data": str(UNLABELLED)}} if general else {})


LONG = share(100)  # half of the compute
# choice -> variant -> what it changes; the first variant is the default
CHOICES: dict[str, dict[str, Changes]] = {
    "importance": {
        "first_order": {},
        "fisher": {"importance": {"kind": "fisher"}},
        "movement": {"importance": {"kind": "movement"}},
        "magnitude": {"importance": {"kind": "magnitude"}},
    },
    "boundaries": {
        "whole": {},
        "automatic": {"space": {"boundaries": "automatic"}},
        "by hand": {
            "space": {
                "boundaries": "given",
                "heads": [2, 4, 6, 8, 10, 12],
                "ffn": [384, 768, 1152, 1536],
            }
        },
    },
    "options": {
        "every step": {},
        "snapped to latency": {"space": {"snap": True}},
        "automatic, snapped": {"space": {"boundaries": "automatic", "snap": True}},
    },
    "signal": {
        "divergence": {},
        "loss": {"search": {"signal": "loss"}},
        "metric": {"search": {"signal": "metric"}},
    },
    "sampling": {
        "structured": LONG,
        "even": LONG | {"training": {"sampling": "even"}},
        "independent": LONG | {"training": {"sampling": "independent"}},
    },
    "super-network's steps": {str(n): share(n) if n != SUPERNET else {} for n in (16, 1, 60, 100)},
    "stages": {
        "one": {},
        "two": share(SUPERNET, 60),  # the first on tweets without their labels
    },
    "students' dropout": {
        "none": {},
        "the model's own": {"training": {"students_dropout": True}},
    },
    "distillation": {
        "logits + states": {},
        "labels only": {"training": {"distill_weight": 0.0, "states_weight": 0.0}},
        "logits": {"training": {"states_weight": 0.0}},
        "logits + relations": {"training": {"states_weight": 0.0, "relations_weight": 1.0}},
        "all three": {"training": {"relations_weight": 1.0}},
    },
}
QUICK = {"importance": ("first_order", "magnitude")}


def recipe_of(seed: int, changes: Changes, quick: bool) -> Recipe:
    """The default with some changes."""
    compute = {
        "start_steps": START,
        "supernet_steps": SUPERNET,
        "winner_steps": WINNER,
        "minutes": 0.5 if quick else None,
    }
    value: dict[str, Any] = {"budgets": [BUDGET], "seed": seed, "compute": compute}
    for part, settings in changes.items():
        value[part] = value.get(part, {}) | settings
    return validate(Recipe, value, where="ablations")


def base(seed: int, quick: bool) -> Path:
    """The run whose baseline and table all variants of a seed take."""
    run = RUNS / ("quick" if quick else "full") / f"base-{seed}"
    if not (run / "supernet").exists():
        # trained as long as the variant that trains its winner longest, and with movement
        changes = share(1) | {"importance": {"kind": "movement"}}
        first = RUNS / ("quick" if quick else "full") / f"base-{SEEDS[0]}" / "table.json"
        table = ("--table", first) if seed != SEEDS[0] else ()
        made(run, recipe_of(seed, changes, quick), *table, command="supernet")
    return run


def write_unlabelled() -> None:
    """Tweets between those that are trained on and those that are scored, without labels."""
    task = load_task(Recipe().task)
    middle = task.train.select(range(len(task.train) - 3 * UNSEEN, len(task.train) - UNSEEN))
    lines = (json.dumps({"text": text}) + "\n" for text in middle["text"])
    write_text(UNLABELLED, "".join(lines))


def name_of(changes: Changes) -> str:
    """The first variant that changes just this: what is asked for twice runs once."""
    if not changes:
        return "default"
    return next(
        f"{choice}-{variant}".replace(" ", "_").replace("'", "")
        for choice, variants in CHOICES.items()
        for variant, its in variants.items()
        if its == changes
    )


def row(choice: str, variant: str, seed: int, quick: bool) -> dict[str, Any]:
    """The figures of one variant, after its run is made or finished."""
    changes = CHOICES[choice][variant]
    run = RUNS / ("quick" if quick else "full") / f"{name_of(changes)}-{seed}"
    made(run, recipe_of(seed, changes, quick), "--reuse", base(seed, quick))
    summary = read_model(run / "summary.json", Summary)
    (chosen,) = summary.chosen
    lines = (run / "candidates.jsonl").read_text().splitlines()
    space = read_model(run / "space.json", SearchSpace)
    return {
        **unseen(run, run / chosen.path / "model"),
        "baseline": unseen(run, run / "baseline" / "model"),
        "test": chosen.metric,
        "ratio": chosen.ratio,
        "met": chosen.met,
        "kind": chosen.kind,
        "genome": chosen.genome,
        "best": min(json.loads(line)["signal"] for line in lines),
        "subnetworks": float(space.size()),
        "compute": summary.compute.model_dump(),
        "seconds": sum(summary.seconds.values()),
    }


def unseen(run: Path, model: Path) -> dict[str, float]:
    """Loss and accuracy (%) of a dense model on rows that nothing has seen; kept beside it."""
    kept = model.with_name("unseen.json")
    if not kept.exists():
        recipe = load_recipe(run / "recipe.yaml")
        task = load_task(recipe.task_at_target)
        last = task.train.select(range(len(task.train) - UNSEEN, len(task.train)))
        data = task.kind.encode(last, load_tokenizer(model), task.max_length)
        answers = predict(load(model), data, progress=f"{run.name}, unseen rows")
        accuracy = task.kind.score("accuracy", answers, data)
        write_json(kept, {"loss": task.kind.loss(answers, data), "accuracy": accuracy})
    found: dict[str, float] = read_json(kept)
    return found


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    args = options("ablations", __doc__)
    results = Results("ablations", args.quick, PROTOCOL, args.json)
    write_unlabelled()
    for seed in SEEDS[:1] if args.quick else SEEDS:
        for choice, variants in CHOICES.items():
            for variant in QUICK.get(choice, ()) if args.quick else variants:
                key = {"choice": choice, "variant": variant, "seed": seed}
                results.row(key, partial(row, choice, variant, seed, args.quick))
    results.finish(headline(results.rows))


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per choice and variant: loss and accuracy less the default's, in pairs, means over seeds."""
    found: dict[str, Any] = {}
    for choice, variants in CHOICES.items():
        default = next(iter(variants))
        of = {
            name: {r["seed"]: r for r in rows if (r["choice"], r["variant"]) == (choice, name)}
            for name in variants
        }
        for name in variants:
            both = sorted(of[name].keys() & of[default].keys())
            if not both:
                continue
            worse = [of[name][s]["loss"] - of[default][s]["loss"] for s in both]
            better = [of[name][s]["accuracy"] - of[default][s]["accuracy"] for s in both]
            found[f"{choice}: {name}"] = {
                "loss": round(statistics.mean(of[name][s]["loss"] for s in both), 4),
                "accuracy": round(statistics.mean(of[name][s]["accuracy"] for s in both), 2),
                "loss_over_default": round(statistics.mean(worse), 4),
                "accuracy_over_default": round(statistics.mean(better), 2),
                "spread": round(statistics.stdev(better), 2) if len(both) > 1 else None,
                "seeds": len(both),
            }
    return found


if __name__ == "__main__":
    main()
