"""What precision alone does to a small language model: tokens a second, size, and what it writes.

SmolLM2-135M, exported for OpenVINO (fp32, int8 weights, int4 weights) and ONNX Runtime (fp32,
dynamic int8), beside torch in fp32. Each goes on from 20 real tweets by 64 tokens, greedily, by
Optimum's classes, one thread. Of each: the share of written tokens before the first that differs
from torch's, tokens a second after the first, in turns with torch, the folder's size, and the
accuracy of its choices on ARC-easy.

    python benchmarks/llm_export.py --json benchmarks/results/llm_export.json
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llm_together import original, rates
from record import ROOT, Results, options

from hwnas.beside import Beside, BesideSpec
from hwnas.export import (
    calibration,
    export_model,
    folder_size_mb,
    load_exported,
    quantize_folder,
    served_folder,
)
from hwnas.latency.target import Target
from hwnas.models import load_model
from hwnas.tasks.language import Language
from hwnas.tasks.loading import load_task
from hwnas.tasks.spec import TaskSpec

THREADS = 1
PROMPTS, TOKENS = 20, 64
QUICK_PROMPTS, QUICK_TOKENS = 3, 24
QUESTIONS, QUICK_QUESTIONS = 200, 16
TARGETS = (
    "openvino:cpu",
    "openvino:cpu:precision=int8-weights",
    "openvino:cpu:precision=int4-weights",
    "onnxruntime:cpu",
    "onnxruntime:cpu:precision=int8-dynamic",
)
ARC = ROOT.parent / "shared" / "data" / "commonsense" / "arc_easy_dev.jsonl"
PROTOCOL = (
    f"demo:smollm2, {PROMPTS} tweets continued greedily by {TOKENS} tokens, one thread, Optimum's "
    "classes; ARC-easy by likelihood per byte, 200 questions"
)


def written(model: Any, prompts: Sequence[list[int]], tokens: int) -> list[Any]:
    """What a model writes after each prompt, greedily."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        found.append(torch.as_tensor(out)[0, len(prompt) :].tolist())
    return found


def agreement(mine: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of tokens before the first that differs, mean over the prompts."""
    shares = []
    for a, b in zip(mine, theirs, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(b))
        shares.append(same / len(b))
    return statistics.mean(shares)


class Bench:
    """The model, its exports in a folder, and what all rows share."""

    def __init__(self, folder: Path, quick: bool) -> None:
        torch.set_num_threads(THREADS)
        self.folder = folder
        self.tokens = QUICK_TOKENS if quick else TOKENS
        self.model, self.tokenizer = load_model("demo:smollm2", task="text-generation")
        task = load_task(TaskSpec())
        kind = Language()
        rows = task.train.select(range(128)).select_columns(["text", "id"])
        self.calibrating = kind.encode(rows, self.tokenizer, 128)
        count = QUICK_PROMPTS if quick else PROMPTS
        texts = task.test.select(range(count))["text"]
        self.texts = list(texts)
        self.prompts = [self.tokenizer(text)["input_ids"] for text in texts]
        self.questions: Beside | None = None
        if ARC.exists():
            spec = BesideSpec(
                data=str(ARC),
                kind="choice",
                text="instruction",
                label="answer",
                metric="accuracy_norm",
                rows=QUICK_QUESTIONS if quick else QUESTIONS,
            )
            self.questions = Beside.load("arc_easy", spec, 192)
        self.reference: list[list[int]] = []

    def torch_row(self) -> dict[str, Any]:
        """The model as it is."""
        self.reference = written(self.model, self.prompts, self.tokens)
        return {
            "size_mb": sum(p.numel() for p in self.model.parameters()) * 4 / 1e6,
            "accuracy": self._accuracy(self.model),
            "written": self.reference,
        }

    def row(self, text: str) -> dict[str, Any]:
        """One export."""
        target = Target.parse(text)
        out = self.folder / served_folder(target)
        exact = self.folder / target.runtime.replace("onnxruntime", "onnx")
        if not exact.exists():
            export_model(self.model, self.tokenizer, self.folder, [exact.name])
        if not out.exists():
            rows = calibration(self.calibrating, self.tokenizer)
            quantize_folder(exact, out, target.precision, rows)
        found = written(load_exported(out, THREADS), self.prompts, self.tokens)
        return {
            "size_mb": folder_size_mb(out),
            "accuracy": self._accuracy(load_exported(out, THREADS, scoring=True)),
            "as_torch": agreement(found, self.reference),
        } | rates(original(), out, self.texts, self.tokens)

    def _accuracy(self, model: Any) -> float | None:
        return self.questions.score(model, self.tokenizer) if self.questions else None


def main() -> None:
    """Measure what is missing, and write the rows and the headline."""
    args = options("llm_export", __doc__)
    results = Results("llm_export", args.quick, PROTOCOL, args.json)
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        bench = Bench(Path(folder), args.quick)
        first = results.row({"target": "torch"}, bench.torch_row)
        bench.reference = first["written"]
        for target in TARGETS[:2] if args.quick else TARGETS:
            results.row({"target": target}, partial(bench.row, target))
    plain = results.rows[0]
    results.finish(
        {
            row["target"]: {
                "times_torch": row["times_torch"],
                "size_ratio": round(plain["size_mb"] / row["size_mb"], 2),
                "as_torch": round(row["as_torch"], 3),
                "points_lost": None
                if row["accuracy"] is None
                else round(plain["accuracy"] - row["accuracy"], 2),
            }
            for row in results.rows[1:]
        }
    )


if __name__ == "__main__":
    main()
