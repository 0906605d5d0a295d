"""Training in two processes, or in parts of a batch, comes to the weights of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_in_processes.py")


def _trained(out: Path, kind: str, processes: int, accumulate: int = 1):
    out.mkdir()
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # any free port
    subprocess.run([*command, SCRIPT, out, kind, str(accumulate)], check=True, timeout=300)
    return load_file(out / "w.safetensors")


@pytest.mark.slow  # several Python processes, each of which imports torch and transformers
@pytest.mark.parametrize(
    "kind",
    [
        *(
            pytest.param(kind, marks=pytest.mark.variant)
            for kind in ("dense", "adapters", "supernet")
        ),
        "adapters-supernet",
    ],
)
def test_two_processes_and_parts_of_a_batch_give_the_weights_of_one(kind, tmp_path):
    alone = _trained(tmp_path / "one", kind, 1)
    pair = _trained(tmp_path / "two", kind, 2)
    parts = _trained(tmp_path / "parts", kind, 1, accumulate=2)
    both = _trained(tmp_path / "both", kind, 2, accumulate=2)
    # transformers norms a Llama in float32 whatever the model's type: its rounding depends on how
    # many rows a pass has; rows left out or averaged wrongly would show at 1e-4
    tolerance = 1e-8 if kind.startswith("adapters") else 1e-12
    for name, weight in alone.items():
        for other in (pair, parts, both):
            assert (weight - other[name]).abs().max() < tolerance, name
