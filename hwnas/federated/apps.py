"""The `ServerApp` and `ClientApp` that a generated Flower app folder names, and that folder.

Both read the recipe from Flower's run config, where it stands as JSON, so that the same folder
runs by `flwr run`, and every SuperNode that has hwnas installed can take part in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from hwnas import __version__
from hwnas.errors import HwnasError
from hwnas.federated.client import RECIPE_KEY
from hwnas.federated.originals import recipe_of
from hwnas.federated.recipe import FederatedRecipe
from hwnas.files import replacing, write_json

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

PROBLEM = "problem.json"  # why a run on a SuperLink ended without a summary
_PACKAGE = "federation"
_MODULE = '''"""hwnas federated training; the recipe stands in pyproject.toml."""

from hwnas.federated.apps import client_app, server_app

server = server_app()
client = client_app()
'''


class Problem(BaseModel):
    """A user's error, as the process that began the run can raise it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error: str
    exit_code: int


def server_app() -> ServerApp:
    """The app of a SuperLink: runs the recipe of the run config in the folder `out`."""
    from flwr.serverapp import ServerApp

    from hwnas.console import quiet
    from hwnas.federated.checks import check
    from hwnas.federated.server import federate

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        quiet(json=True)
        given = context.run_config
        out = Path(str(given["out"]))
        try:
            recipe = recipe_of(str(given[RECIPE_KEY]))
            if recipe.evaluation.server:
                check(recipe)
            federate(grid, recipe, out, resume=bool(given["resume"]))
        except HwnasError as error:
            write_json(out / PROBLEM, Problem(error=str(error), exit_code=error.exit_code))
            raise

    return app


def client_app() -> ClientApp:
    """The app of a SuperNode."""
    from hwnas.federated.client import client_app as make

    return make()


def write_app(recipe: FederatedRecipe, folder: Path, out: Path, *, resume: bool) -> None:
    """Write a Flower app that runs the recipe, for `flwr run FOLDER`.

    Args:
        out: run directory, on the machine of the SuperLink.

    Raises:
        UserError: the folder exists.
    """
    text = f"""[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "hwnas-federation"
version = "{__version__}"
description = "hwnas federated training of {recipe.model}"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["{_PACKAGE}"]

[tool.flwr.app]
publisher = "hwnas"

[tool.flwr.app.components]
serverapp = "{_PACKAGE}.app:server"
clientapp = "{_PACKAGE}.app:client"

[tool.flwr.app.config]
out = {json.dumps(str(out.resolve()))}
resume = {json.dumps(resume)}
{RECIPE_KEY} = {json.dumps(recipe.model_dump_json())}
"""
    with replacing(folder) as partial:
        (partial / _PACKAGE).mkdir(parents=True)
        (partial / _PACKAGE / "__init__.py").write_text("", encoding="utf-8")
        (partial / _PACKAGE / "app.py").write_text(_MODULE, encoding="utf-8")
        (partial / "pyproject.toml").write_text(text, encoding="utf-8")
