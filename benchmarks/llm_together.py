"""Structure and precision together: how fast, small and good a language model is as it is served.

Models that `quality_llm.py` or `quality_llm_apart.py` has trained, each exported for OpenVINO in
fp32 and with 8- and 4-bit weights (calibrated on training rows). The first model, in torch's fp32,
is what they are set beside. Tokens a second: the same prompts are continued greedily by both, in
turns, by a process that cannot import hwnas, one thread. Scores: as `quality_llm.py` has them.

    python benchmarks/llm_together.py --model "whole=DIR" --model "80%=DIR" --model "65%=DIR" \
        --json benchmarks/results/llm_together.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from quality_llm import LEARNED, recipe_of
from record import ROOT, Results, options

from hwnas.beside import load_beside
from hwnas.export import (
    calibration,
    export_model,
    folder_size_mb,
    load_exported,
    quantize_folder,
    served_folder,
)
from hwnas.files import replacing
from hwnas.latency.target import Target
from hwnas.models import load, load_model, load_tokenizer
from hwnas.tasks.loading import load_task

TARGETS = (
    "openvino:cpu:precision=int8-weights",
    "openvino:cpu:precision=int4-weights",
    "openvino:cpu",
)
RUNS = ROOT / "runs" / "llm_together"
_TOKENIZER = "tokenizer.json"
PROMPTS, TOKENS = 12, 64
QUICK_PROMPTS, QUICK_TOKENS = 2, 16
PROTOCOL = (
    f"tokens a second after the first of {PROMPTS} prompts of the task continued greedily by "
    f"{TOKENS}, one thread, in turns with the first model in torch's fp32; by a process without "
    "hwnas; scores by quality_llm's protocol, of the exported files"
)

# what a stranger would write, with both models in one process, in turns
_GENERATE = """
import json, os, statistics, sys, time
sys.modules["hwnas"] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

whole, served, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
if os.path.exists(os.path.join(served, "openvino_model.xml")):
    from optimum.intel import OVModelForCausalLM
    mine = OVModelForCausalLM.from_pretrained(served, ov_config=config)
else:
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForCausalLM
    options = SessionOptions()
    options.intra_op_num_threads = 1
    mine = ORTModelForCausalLM.from_pretrained(served, session_options=options)
models = [AutoModelForCausalLM.from_pretrained(whole).eval(), mine]
tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (whole, served)]

class Clock(BaseStreamer):
    def __init__(self): self.times = []
    def put(self, value): self.times.append(time.perf_counter())
    def end(self): pass

found = []
for prompt in json.load(sys.stdin):
    took = []
    for model, tokenizer in zip(models, tokenizers):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        clock = Clock()
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                           min_new_tokens=tokens, max_new_tokens=tokens, streamer=clock,
                           pad_token_id=0)
        times = clock.times[1:]
        took.append(statistics.median(b - a for a, b in zip(times, times[1:])))
    found.append(took)
print(json.dumps(found[1:]))  # the first is a warm-up
"""


def rates(whole: Path, served: Path, prompts: list[str], tokens: int) -> dict[str, float]:
    """Tokens a second of both, medians over the prompts, and of the ratios."""
    process = subprocess.run(
        [sys.executable, "-c", _GENERATE, str(whole), str(served), str(tokens)],
        input=json.dumps([prompts[0], *prompts]),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    if process.returncode:
        raise SystemExit(process.stderr[-2000:])
    found = json.loads(process.stdout.splitlines()[-1])
    ratios = [theirs / mine for theirs, mine in found]
    return {
        "tokens_per_s": round(1 / statistics.median(mine for _, mine in found), 2),
        "torch_tokens_per_s": round(1 / statistics.median(theirs for theirs, _ in found), 2),
        "times_torch": round(statistics.median(ratios), 3),
        "times_torch_least": round(min(ratios), 3),
        "times_torch_most": round(max(ratios), 3),
    }


def original() -> Path:
    """SmolLM2 as it is, in a folder that transformers reads."""
    folder = RUNS / "original"
    if not folder.exists():
        model, tokenizer = load_model("demo:smollm2", task="text-generation")
        with replacing(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return folder


class Bench:
    """What all rows share."""

    def __init__(self, whole: Path, quick: bool) -> None:
        self.whole, self.quick = whole, quick
        recipe = recipe_of(0, quick)
        self.task = load_task(recipe.task_at_target)
        self.rows = self.task.train.select(range(256))
        learned = {name: recipe.beside[name] for name in LEARNED}
        self.judged = load_beside(learned, self.task.max_length)
        self.questions = sum(len(one.split) for one in self.judged)
        prompts = QUICK_PROMPTS if quick else PROMPTS
        self.prompts = list(self.task.test.select(range(prompts))["text"])

    def scores(self, model: Any, folder: Path) -> dict[str, float]:
        """On each task's questions, and their mean."""
        tokenizer = load_tokenizer(folder)
        found = {one.name: one.score(model, tokenizer) for one in self.judged}
        return found | {"mean": statistics.mean(found.values())}

    def torch_row(self) -> dict[str, Any]:
        """The first model, in torch's fp32."""
        size = sum(f.stat().st_size for f in self.whole.iterdir()) / 1e6
        return {"size_mb": size, "scores": self.scores(load(self.whole), self.whole)}

    def row(self, folder: Path, text: str) -> dict[str, Any]:
        """One model at one precision."""
        target = Target.parse(text)
        RUNS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=RUNS) as made:
            out = Path(made)
            # a run's finalists have none of their own
            tokenizer = load_tokenizer(folder if (folder / _TOKENIZER).exists() else self.whole)
            export_model(load(folder), tokenizer, out, ["openvino"])
            served = out / served_folder(target)
            if target.precision != "fp32":
                encoded = self.task.kind.encode(self.rows, tokenizer, self.task.max_length)
                rows = calibration(encoded, tokenizer)
                quantize_folder(out / "openvino", served, target.precision, rows)
            tokens = QUICK_TOKENS if self.quick else TOKENS
            return {
                "size_mb": folder_size_mb(served),
                "scores": self.scores(load_exported(served, 1, scoring=True), served),
                "params": sum(p.numel() for p in load(folder).parameters()),
            } | rates(self.whole, served, self.prompts, tokens)


def main() -> None:
    """Measure what is missing, and write the rows and the headline."""

    def more(parser: Any) -> None:
        said = "NAME=FOLDER of a dense model; the first is the whole one; else SmolLM2 as it is"
        parser.add_argument("--model", action="append", help=said)
        parser.add_argument("--target", action="append", help="by default int8, int4 and fp32")

    args = options("llm_together", __doc__, more)
    given = [text.partition("=") for text in args.model or (f"original={original()}",)]
    models = [(name, Path(folder)) for name, _, folder in given]
    results = Results("llm_together", args.quick, PROTOCOL, args.json)
    (first, whole), *_ = models
    bench = Bench(whole, args.quick)
    asked = {"questions": bench.questions}
    plain = results.row({"model": first, "target": "torch:cpu"} | asked, bench.torch_row)
    rows = [
        results.row({"model": name, "target": target} | asked, partial(bench.row, folder, target))
        for target in args.target or (TARGETS[:1] if args.quick else TARGETS)
        for name, folder in models
    ]
    results.finish(
        {
            f"{row['model']} {Target.parse(row['target']).precision}": {
                "times_torch": row["times_torch"],
                "times_smaller": round(plain["size_mb"] / row["size_mb"], 2),
                "points_lost": round(plain["scores"]["mean"] - row["scores"]["mean"], 2),
            }
            for row in rows
        }
    )


if __name__ == "__main__":
    main()
