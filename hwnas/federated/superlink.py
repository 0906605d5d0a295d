"""A recipe on a real SuperLink: submit the app as `flwr run` does, and wait for its end.

The run directory is the SuperLink's: it lies on that machine, which may be this one. SuperNodes
join by themselves; what each needs is in README.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hwnas.errors import BudgetError, HwnasError, UserError
from hwnas.federated.apps import PROBLEM, Problem, write_app
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.simulation import require_flower
from hwnas.federated.summary import FederatedSummary
from hwnas.files import read_model

_CONNECTION = "hwnas"


def submit(
    recipe: FederatedRecipe,
    out: Path,
    address: str,
    *,
    certificates: Path | None,
    resume: bool = False,
) -> FederatedSummary | None:
    """Run a recipe on the SuperLink at `address`; None if its folder is not on this machine.

    Args:
        certificates: of the authority that signed the SuperLink's; without it, no TLS.

    Raises:
        UserError: the SuperLink cannot be reached, or the run failed by the user's error.
        BudgetError: a tier's budget cannot be met.
    """
    require_flower()
    if certificates is not None and not certificates.is_file():
        raise UserError(f"--root-certificates {certificates}: no such file")
    (out / PROBLEM).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        app, home = Path(folder) / "app", Path(folder) / "flower"
        write_app(recipe, app, out, resume=resume)
        home.mkdir()
        (home / "config.toml").write_text(_connection(address, certificates), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("flwr")), "run", str(app), _CONNECTION]
        environment = os.environ | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
        done = subprocess.run(
            [*command, "--stream"], env=environment, capture_output=True, text=True
        )
    if (out / PROBLEM).exists():
        problem = read_model(out / PROBLEM, Problem)
        kind = {2: UserError, 3: BudgetError}.get(problem.exit_code, HwnasError)
        raise kind(problem.error)
    if done.returncode:
        said = [line.strip(" │╭╰─╮╯") for line in (done.stdout + done.stderr).splitlines()]
        last = next((line for line in reversed(said) if line), "it said nothing")
        raise UserError(f"SuperLink {address}: the run could not be started: {last}")
    if not (out / "summary.json").exists():
        return None
    return read_model(out / "summary.json", FederatedSummary)


def _connection(address: str, certificates: Path | None) -> str:
    security = (
        f'root-certificates = "{certificates.resolve()}"' if certificates else "insecure = true"
    )
    lines = (
        "[superlink]",
        f'default = "{_CONNECTION}"',
        f"[superlink.{_CONNECTION}]",
        f'address = "{address}"',
        security,
    )
    return "\n".join(lines) + "\n"
