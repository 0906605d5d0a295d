"""What a training step of the super-network costs beside plain fine-tuning: time and memory.

- `full_width`: a step of the elastic model at full width over one of the plain model, on the same
  batches in turns; processor time, one thread.
- `sandwich`: a step of the sandwich rule with distillation over the sum of its parts timed alone:
  the teacher's answers, and each subnetwork's forward and backward pass.
- `half`: a plain step in bf16 over one in fp32; left out where the processor has no units for it.
- `packed`: a forward and backward pass of SmolLM2 with rows as one sequence over one with rows side
  by side, padded; tweets with three moods to choose from, batches of 16.
- `memory`: the largest resident size of a process that trains so, over that of one that fine-tunes
  the plain model; each in a process of its own, ten steps.

MiniLM on tweets, but for `packed`; batches of 16 real rows.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from record import Results, largest_resident, options

from hwnas.elastic.supernet import SuperNetwork
from hwnas.models import load_model
from hwnas.space import SearchSpace
from hwnas.tasks.kinds import encode_training
from hwnas.tasks.loading import load_task
from hwnas.tasks.spec import TaskSpec
from hwnas.tasks.written import say
from hwnas.training.autocast import has_units, in_half
from hwnas.training.batches import collator, model_columns
from hwnas.training.optimization import Optimization
from hwnas.training.sampling import Sandwich
from hwnas.training.sandwich import SandwichTrainer
from hwnas.training.trainer import train

BATCH, STEPS = 16, 10
PAIRS, QUICK_PAIRS = 25, 6
PROTOCOL = "demo:minilm on demo:tweets, batch 16, one thread; medians over pairs of steps in turns"


def task_and_model() -> tuple[Any, Any, Any]:
    """The tweets, MiniLM with a head for them, and its tokenizer."""
    task = load_task(TaskSpec())
    model, tokenizer = load_model("demo:minilm", task=task.kind.task, labels=task.labels, seed=0)
    return task, model, tokenizer


def batches(
    task: Any, tokenizer: Any, count: int, length: int = 64
) -> list[dict[str, torch.Tensor]]:
    """Real batches, padded."""
    rows = task.train.select(range(BATCH * count))
    encoded = model_columns(encode_training(task.kind, rows, tokenizer, length))
    collate = collator(tokenizer, encoded)
    return [
        dict(collate([encoded[i] for i in range(at, at + BATCH)]))
        for at in range(0, BATCH * count, BATCH)
    ]


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def step(
    model: Any,
    optimizer: Any,
    batch: dict[str, torch.Tensor],
    forward: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """One step of plain fine-tuning."""
    with forward():
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def full_width(pairs: int) -> dict[str, Any]:
    """The elastic model's step over the plain one's."""
    task, plain, tokenizer = task_and_model()
    elastic = SuperNetwork(copy.deepcopy(plain)).model
    models = [m.train() for m in (plain, elastic)]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-5) for m in models]
    ratios = []
    for number, batch in enumerate(batches(task, tokenizer, pairs + 2)):
        took = [
            seconds(lambda m=m, o=o, b=batch: step(m, o, b))  # type: ignore[misc]
            for m, o in zip(models, optimizers, strict=True)
        ]
        if number >= 2:  # memory is taken in the first ones
            ratios.append(took[1] / took[0])
    return _spread(ratios)


def half(pairs: int) -> dict[str, Any]:
    """A step in bf16 (`training.precision`) over one in fp32."""
    task, model, tokenizer = task_and_model()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ratios = []
    for number, batch in enumerate(batches(task, tokenizer, pairs + 2)):
        exact = seconds(lambda b=batch: step(model, optimizer, b))  # type: ignore[misc]
        took = seconds(lambda b=batch: step(model, optimizer, b, in_half))  # type: ignore[misc]
        if number >= 2:
            ratios.append(took / exact)
    return _spread(ratios)


def packed(pairs: int) -> dict[str, Any]:
    """SmolLM2's pass over rows as one sequence, over that side by side."""
    moods = ["negative", "neutral", "positive"]
    spec = TaskSpec(kind="choice", text="text", label="label", choices=moods, learn="choices")
    task = load_task(spec)
    model, tokenizer = load_model("demo:smollm2", task=task.kind.task, seed=0)
    model.train()
    ratios = []
    for number, batch in enumerate(batches(task, tokenizer, pairs + 1, length=128)):

        def both(packs: bool, batch: dict[str, torch.Tensor] = batch) -> None:
            task.kind.hard_loss(say(model, model, batch, packs=packs), batch).backward()
            model.zero_grad(set_to_none=False)

        padded, one = (seconds(partial(both, packs)) for packs in (False, True))
        if number >= 1:  # memory is taken in the first
            ratios.append(one / padded)
    return _spread(ratios)


def sandwich(pairs: int) -> dict[str, Any]:
    """A whole sandwich step over the sum of its parts."""
    task, model, tokenizer = task_and_model()
    teacher = copy.deepcopy(model).eval()
    network = SuperNetwork(model)
    space = SearchSpace.whole(network.shape)
    made = batches(task, tokenizer, pairs + 2)
    rows = task.kind.encode(task.train.select(range(BATCH * len(made))), tokenizer, 64)
    found: list[float] = []

    class Timed(SandwichTrainer):
        """Times each step, then its parts on the same batch."""

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            whole = seconds(lambda: super(Timed, self).training_step(model, inputs))
            network.model.zero_grad()
            parts = sum(self._parts(inputs))
            if self.state.global_step >= 2:
                found.append(whole / parts)
            return torch.zeros(())

        def _parts(self, inputs: Any) -> list[float]:
            answers: list[Any] = []
            took = [seconds(lambda: answers.append(self.answers(inputs)))]
            for subnetwork in self.sandwich.at(self.state.global_step):
                with self.supernet.as_subnetwork(subnetwork) as active:

                    def run(active: Any = active) -> None:
                        self.distilled(active, active, inputs, answers[0])[1].backward()

                    took.append(seconds(run))
            return took

    from hwnas.training import trainer as module

    with (
        mock.patch.object(module, "SandwichTrainer", Timed),
        tempfile.TemporaryDirectory() as work,
    ):
        train(
            network,
            tokenizer,
            rows,
            Optimization(steps=len(made), learning_rate=1e-5, batch=BATCH),
            Path(work) / "training",
            kind=task.kind,
            teacher=teacher,
            sandwich=Sandwich(space, seed=0),
        )
    return _spread(found)


def memory() -> dict[str, Any]:
    """Peak resident sizes of both ways to train, each measured in its own process."""
    sizes = {}
    for way in ("plain", "sandwich"):
        command = [sys.executable, __file__, "--train", way]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, check=True, capture_output=True, env=environment)
        sizes[way] = json.loads(answer.stdout.splitlines()[-1])
    return {
        "plain_mib": sizes["plain"],
        "sandwich_mib": sizes["sandwich"],
        "ratio": sizes["sandwich"] / sizes["plain"],
    }


def train_here(way: str) -> None:
    """Train ten steps in this process; print its largest resident size in MiB."""
    torch.set_num_threads(1)
    task, model, tokenizer = task_and_model()
    rows = task.kind.encode(task.train.select(range(BATCH * STEPS)), tokenizer, 64)
    optimization = Optimization(steps=STEPS, learning_rate=1e-5, batch=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "training"
        if way == "plain":
            train(model, tokenizer, rows, optimization, work, kind=task.kind)
        else:
            teacher = copy.deepcopy(model).eval()
            network = SuperNetwork(model)
            rule = Sandwich(SearchSpace.whole(network.shape), seed=0)
            train(
                network,
                tokenizer,
                rows,
                optimization,
                work,
                kind=task.kind,
                teacher=teacher,
                sandwich=rule,
            )
    print(largest_resident())


def _spread(ratios: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": middle, "low": low, "high": high, "pairs": len(ratios)}


def main() -> None:
    """Measure, and write the rows and the headline."""
    if sys.argv[1:2] == ["--train"]:
        train_here(sys.argv[2])
        return
    args = options("supernet_step", __doc__)
    torch.set_num_threads(1)
    pairs = QUICK_PAIRS if args.quick else PAIRS
    results = Results("supernet_step", args.quick, PROTOCOL, args.json)
    results.row({"what": "full_width"}, lambda: full_width(pairs))
    results.row({"what": "sandwich"}, lambda: sandwich(pairs))
    if has_units():
        results.row({"what": "half"}, lambda: half(pairs))
    results.row({"what": "packed"}, lambda: packed(pairs // 2))
    results.row({"what": "memory"}, memory)
    ratios = {row["what"]: round(row["ratio"], 3) for row in results.rows}
    results.finish({f"{what}_ratio": ratio for what, ratio in ratios.items()})


if __name__ == "__main__":
    main()
