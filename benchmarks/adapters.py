"""What training a super-network of adapters costs beside plain LoRA: memory and time.

SmolLM2-135M on tweets in classes, batches of 16 real rows, adapters of rank 32 on all projections.

- `peft`: plain LoRA of the whole model, by peft, in the usual loop;
- `plain`: the same by hwnas (a baseline's training), which makes logits for answers only;
- `supernet`: the super-network's sandwich of three subnetworks, taught by its frozen full width.

Each in a process of its own, a few steps: its largest resident size, and the median seconds of a
step. The size of a process that has only loaded the model stands beside.

    python benchmarks/adapters.py --json benchmarks/results/adapters.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import Results, largest_resident, options
from transformers import TrainerCallback

from hwnas.elastic.spec import AdapterSpec
from hwnas.elastic.supernet import SuperNetwork
from hwnas.models import load_model
from hwnas.space import SearchSpace
from hwnas.tasks.kinds import encode_training
from hwnas.tasks.loading import load_task
from hwnas.tasks.spec import TaskSpec
from hwnas.training.batches import collator, model_columns
from hwnas.training.optimization import Optimization
from hwnas.training.order import training_order
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import train

BATCH, STEPS, QUICK_STEPS = 16, 8, 3
WAYS = ("loaded", "peft", "plain", "supernet")
THREADS = 1
PROTOCOL = (
    "demo:smollm2, tweets as choices, batches of 16 rows, rank 32 on all projections, one thread; "
    "peak resident size of a process, median seconds of a step"
)
TASK = TaskSpec(
    data="demo:tweets",
    kind="choice",
    text="text",
    label="label",
    choices={name: name for name in ("negative", "neutral", "positive")},
    template="Tweet: {text}\nMood:",
    max_length=96,
)


class _Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def measured(way: str, steps: int) -> dict[str, Any]:
    """In this process: train one way."""
    torch.set_num_threads(THREADS)
    model, tokenizer = load_model("demo:smollm2", task="text-generation")
    task = load_task(TASK)
    rows = task.train.select(range(BATCH * steps))
    encoded = encode_training(task.kind, rows, tokenizer, task.max_length)
    clock = _Clock()
    if way == "peft":
        _peft(model, tokenizer, encoded, steps, clock)
    elif way != "loaded":
        network = SuperNetwork(model) if way == "supernet" else None
        sandwich = None
        if network is not None:
            sandwich = Sandwich(SearchSpace.whole(network.shape), seed=0)
        settings = Optimization(
            steps=steps, learning_rate=3e-4, batch=BATCH, adapters=AdapterSpec(), dropout=False
        )
        with tempfile.TemporaryDirectory() as folder:
            train(
                network or model,
                tokenizer,
                encoded,
                settings,
                Path(folder) / "work",
                kind=task.kind,
                own_teacher=network is not None,
                sandwich=sandwich,
                callbacks=(clock,),
            )
    apart = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    return {
        "peak_mib": largest_resident(),
        "seconds": statistics.median(apart) if apart else None,
    }


def _peft(model: Any, tokenizer: Any, encoded: Any, steps: int, clock: _Clock) -> None:
    from peft import LoraConfig, get_peft_model

    spec = AdapterSpec()
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=spec.rank,
            lora_alpha=int(spec.alpha),
            lora_dropout=spec.drops,
            target_modules=projections,
        ),
    )
    adapted.train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4)
    # in the batches that ours have, of like lengths
    order = training_order(encoded["length"], BATCH, steps, 0)
    rows = model_columns(encoded.select(order))
    collate = collator(tokenizer, rows)
    for step in range(steps):
        batch = collate([rows[i] for i in range(step * BATCH, (step + 1) * BATCH)])
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end()


def row(way: str, steps: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", way, str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure each way, and write the rows and the headline."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measured(sys.argv[2], int(sys.argv[3]))))
        return
    args = options("adapters", __doc__)
    results = Results("adapters", args.quick, PROTOCOL, args.json)
    steps = QUICK_STEPS if args.quick else STEPS
    found = {way: results.row({"way": way}, partial(row, way, steps)) for way in WAYS}
    results.finish(
        {
            "memory_of_peft": {
                way: round(found[way]["peak_mib"] / found["peft"]["peak_mib"], 3) for way in WAYS
            },
            "time_of_peft": {
                way: round(found[way]["seconds"] / found["peft"]["seconds"], 2)
                for way in ("plain", "supernet")
            },
        }
    )


if __name__ == "__main__":
    main()
