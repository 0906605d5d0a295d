"""Several processes of one run stay in step, however late one of them comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from hwnas.processes import alone, leading, made_once

out = Path(sys.argv[1])
alone(lambda: None)  # they have met
if not leading():
    time.sleep(2)  # the leader has made the first file by now
made_once(out / "first", lambda: (out / "first").write_text("once"))

def second():
    time.sleep(1)
    (out / "second").write_text("")

alone(second)
assert (out / "second").exists(), "who waited for another thing goes on too early"
made_once(out / "first", lambda: (out / "first").write_text("twice"))
print((out / "first").read_text())
"""


@pytest.mark.slow  # two Python processes that import torch
def test_a_late_process_waits_for_what_it_should(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # any free port
    done = subprocess.run(
        [*command, script, tmp_path], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["once", "once"]
