"""What converts and quantizes here tells nobody over the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# a process of its own: NNCF is silent beside pytest, and who asked first decides for a process
# it reports from a process that it forks, and nothing else here forks
COUNTS_FORKS = """
import sys
import time

sent = []
sys.addaudithook(lambda name, args: sent.append(args) if name == "os.fork" else None)
"""
EVERYTHING_THAT_COULD_REPORT = """
import os
from pathlib import Path

if sys.argv[2] == "later":
    import openvino
    time.sleep(2)  # it reports from a thread
    sent.clear()

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hwnas.anatomy import find_shape
from hwnas.export.convert import export_model
from hwnas.export.quantize import quantize_folder
from hwnas.latency.graphs import builder
from hwnas.latency.target import Target
from hwnas.subnetwork import Subnetwork

folder, home = Path(sys.argv[1]), Path.home()
model = AutoModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
full = Subnetwork.full(find_shape(model.config))
for runtime in ("openvino", "onnxruntime"):
    builder(model.config, Target.parse(f"{runtime}:cpu:seq=16"))(full, 1)
written = export_model(model, tokenizer, home / "out")
quantize_folder(written["openvino"], home / "small", "int8-weights", ())
time.sleep(2)
assert "CI" not in os.environ
print(len(sent))
"""
IMPORT_ALONE = """
import openvino
time.sleep(2)
print(len(sent))
"""


def _said(script: str, home: Path, *arguments: str) -> str:
    """What a process prints that has no reason to believe to run in a CI job."""
    hidden = ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "NNCF_DEV")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", COUNTS_FORKS + script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout.splitlines()[-1]


@pytest.mark.parametrize("openvino", ["first", "later"])
def test_nothing_is_reported_over_the_network(
    openvino: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Whether hwnas is imported `first`, or `later` than OpenVINO."""
    model = str(tiny_recipe.parent / "model")
    assert int(_said(EVERYTHING_THAT_COULD_REPORT, tmp_path, model, openvino)) == 0


def test_without_hwnas_it_would_be(tmp_path: Path) -> None:
    assert int(_said(IMPORT_ALONE, tmp_path)) > 0
