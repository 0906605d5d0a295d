"""Virtual clients on this machine: Flower's simulation engine, with Ray's processes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError, UserError
from hwnas.federated.recipe import FederatedRecipe
from hwnas.latency.device import processors

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    from hwnas.federated.server import Federation
    from hwnas.federated.summary import FederatedSummary


def require_flower() -> None:
    """Raise `UserError` unless the extra `federated` is installed."""
    from importlib.util import find_spec

    for package in ("flwr", "ray"):
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed; pip install 'hwnas[federated]'")


def simulate(
    recipe: FederatedRecipe,
    out: Path,
    *,
    resume: bool = False,
    workers: int | None = None,
    kind: type[Federation] | None = None,
) -> FederatedSummary:
    """Run a recipe with as many virtual clients as it has, on `workers` processes.

    Args:
        workers: by default one for each core that this process may use.
        kind: of the server's rounds; by default `server.Federation`.

    Raises:
        UserError, BudgetError: as `server.federate`.
    """
    require_flower()
    # read when Flower and Ray are imported; nothing of a run is reported to anybody
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")  # they are the work; at 15 they starve
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from flwr.simulation import run_simulation

    from hwnas.federated.client import client_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    processes = min(workers or processors(), recipe.clients.count)
    ended: list[FederatedSummary | HwnasError] = []
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, _python_path():
        run_simulation(
            server_app=_server_app(recipe, out, resume, kind, ended),
            client_app=client_app(recipe),
            num_supernodes=recipe.clients.count,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {
                    "num_cpus": processes,
                    "include_dashboard": False,
                    "log_to_driver": False,
                    "_temp_dir": folder,
                },
            },
        )
    if not ended:
        raise RuntimeError("Flower's simulation ended without a result")
    if isinstance(ended[0], HwnasError):
        raise ended[0]
    return ended[0]


@contextmanager
def _python_path() -> Iterator[None]:
    """Flower gives its workers our modules by a variable that it leaves to all later processes."""
    before = os.environ.get("PYTHONPATH")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def _server_app(
    recipe: FederatedRecipe,
    out: Path,
    resume: bool,
    kind: type[Federation] | None,
    ended: list[FederatedSummary | HwnasError],
) -> ServerApp:
    """An app that leaves its summary, or the user's error, in `ended`."""
    from flwr.serverapp import ServerApp

    from hwnas.federated.server import Federation, federate

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            rounds = kind or Federation
            ended.append(federate(grid, recipe, out, resume=resume, kind=rounds))
        except HwnasError as error:
            ended.append(error)

    return app
