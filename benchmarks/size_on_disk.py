"""How small an encoder gets on disk: structure, vocabulary and precision together.

The shipped recipe `smallest` on SST-2 (fewer and narrower layers, the task's tokens only, static
int8), as `hwnas run` makes it. The file is then loaded by Optimum alone, in a process that does
not have hwnas, and scored there on the official dev split, which nothing has looked at.

Runs are kept in `runs/size/`: an interrupted benchmark goes on inside the run that was cut off.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from record import ROOT, Results, made, options

from hwnas.files import read_model
from hwnas.recipe import load_recipe, override
from hwnas.summary import Summary

DATA = ROOT.parent / "shared" / "data" / "sst2"
RUNS = ROOT / "runs" / "size"
SEEDS = (0, 1, 2)
COMPUTE = {
    "minutes": None,
    "start_steps": 780,
    "supernet_steps": 48,
    "first_rung_steps": 160,
    "winner_steps": 1600,
}
PROTOCOL = (
    "recipe smallest on SST-2 (6,920 training sentences), official dev split; sizes are of all "
    "that the served folder needs: weights, graph, config and tokenizer"
)
# a stranger's program: Optimum only
SCORE = """
import json, sys
sys.modules["hwnas"] = None  # an import of it fails
import numpy as np
from optimum.intel import OVModelForSequenceClassification
from transformers import AutoTokenizer

folder, data = sys.argv[1:]
model = OVModelForSequenceClassification.from_pretrained(
    folder, ov_config={"INFERENCE_PRECISION_HINT": "f32"}
)
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = [json.loads(line) for line in open(data, encoding="utf-8")]
right = 0
for row in rows:
    encoded = tokenizer(row["sentence"], truncation=True, max_length=64, return_tensors="pt")
    best = int(np.argmax(model(**encoded).logits.numpy()))
    right += model.config.id2label[best] == str(row["label"])
print(100 * right / len(rows))
"""


def row(seed: int, quick: bool) -> dict[str, Any]:
    """Size and accuracy of one seed's model, after its run is made or finished."""
    run = RUNS / ("quick" if quick else "full") / str(seed)
    recipe = load_recipe(Path("smallest"))
    train, dev = DATA / "train.jsonl", DATA / "dev.jsonl"
    minutes = {"minutes": 1.0} if quick else {}
    changes = {
        "seed": seed,
        "task": {"data": str(train), "test": str(dev), "text": "sentence", "max_length": 64},
        "compute": COMPUTE | minutes,
    }
    made(run, override(recipe, "size_on_disk", changes))
    summary = read_model(run / "summary.json", Summary)
    (chosen,) = summary.chosen
    exact = summary.baseline.unquantized
    assert exact is not None
    folder = run / chosen.path / f"openvino-{chosen.precision}"
    score = [sys.executable, "-c", SCORE, str(folder), str(dev)]
    answer = subprocess.run(score, check=True, capture_output=True, text=True)
    trimmed = json.loads((run / chosen.path / "vocabulary.json").read_text())
    return {
        "size_mb": chosen.size_mb,
        "original_mb": exact.size_mb,
        "times_smaller": exact.size_mb / chosen.size_mb,
        "original_int8_mb": summary.baseline.size_mb,
        "accuracy": chosen.metric,
        "accuracy_in_optimum": float(answer.stdout.split()[-1]),
        "original_accuracy": exact.metric,
        "original_int8_accuracy": summary.baseline.metric,
        "points_lost": exact.metric - chosen.metric,
        "latency_share_of_int8": chosen.ratio,
        "latency_share": chosen.measured_ms / exact.latency_ms,
        "met": chosen.met,
        "genome": chosen.genome,
        "vocabulary": trimmed,
        "steps": chosen.steps,
        "seconds": sum(summary.seconds.values()),
    }


def main() -> None:
    """Run what is missing, and write the rows and the headline."""
    args = options("size_on_disk", __doc__)
    results = Results("size_on_disk", args.quick, PROTOCOL, args.json)
    for seed in SEEDS[:1] if args.quick else SEEDS:
        results.row({"seed": seed}, partial(row, seed, args.quick))
    headline = {
        name: round(statistics.mean(r[name] for r in results.rows), 3)
        for name in ("times_smaller", "points_lost", "size_mb", "latency_share")
    }
    results.finish(headline | {"seeds": len(results.rows)})


if __name__ == "__main__":
    main()
