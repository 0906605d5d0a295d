"""`hwnas federate`: a federated recipe in simulation, on a SuperLink, or as a Flower app."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.console import Json, print_json, print_rich, quiet
from hwnas.errors import BudgetError, UserError

if TYPE_CHECKING:
    from hwnas.federated.summary import FederatedSummary


def federate(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Federated recipe (YAML), or a shipped one: demo, continual, prompt, reading."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Run directory; on a SuperLink, on its machine.")
    ] = None,
    simulate: Annotated[
        int | None, typer.Option(min=1, help="So many virtual clients, instead of the recipe's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that simulate them; default: a core each.")
    ] = None,
    superlink: Annotated[
        str | None, typer.Option(help="Address of a SuperLink to run on, e.g. 10.0.0.2:8000.")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="PEM file by which the SuperLink is known; else no TLS.")
    ] = None,
    app: Annotated[
        Path | None, typer.Option(help="Only write a Flower app here, for `flwr run`.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    json: Json = False,
) -> None:
    """Train a super-network where the data lives; end with a model for each tier of devices."""
    from hwnas.federated.recipe import load_federated, with_changes

    if superlink is not None and (simulate is not None or app is not None):
        raise UserError("--superlink: is instead of --simulate and --app; give one of them")
    if root_certificates is not None and superlink is None:
        raise UserError("--root-certificates: is for --superlink; give both")
    settings = with_changes(load_federated(recipe), clients=simulate, seed=seed)
    folder = out or Path("runs") / f"federated-{recipe.stem}"
    quiet(json)
    if settings.privacy is not None and not json:
        from hwnas.federated.privacy import epsilon

        promised = f"({epsilon(settings):.3g}, {settings.privacy.delta:g})"
        print_rich(f"privacy of a client after all rounds: {promised}")
    if app is not None:
        from hwnas.federated.apps import write_app

        if app.exists():
            raise UserError(f"--app {app}: exists; give another folder, or remove it")
        write_app(settings, app, folder, resume=resume)
        print_rich(f"{app}: run it with flwr run {app} CONNECTION --stream")
        return
    if superlink is not None:
        from hwnas.federated.superlink import submit

        found = submit(settings, folder, superlink, certificates=root_certificates, resume=resume)
        if found is None:
            print_rich(f"{superlink}: done; the run directory is {folder} on its machine")
            return
    else:
        from hwnas.federated.checks import check_simulated
        from hwnas.federated.simulation import require_flower
        from hwnas.federated.simulation import simulate as run_simulation

        require_flower()
        from hwnas.federated.handover import hand_over

        check_simulated(settings)
        found = run_simulation(settings, folder, resume=resume, workers=workers)
        found = hand_over(settings, folder, found)
    _print(found, folder, json)


def _print(summary: FederatedSummary, folder: Path, json: bool) -> None:
    """Print how a run ended; a tier's budget that was missed in the end is an error."""
    if json:
        print_json(summary)
    else:
        from hwnas.report.federated import render

        print_rich(render(summary))
        print_rich(f"models: {folder / 'tiers'}")
        if (folder / "report.html").exists():
            print_rich(f"report: {folder / 'report.html'}")
    missed = [tier for tier in summary.tiers if tier.met is False]
    if missed:
        said = "; ".join(
            f"tier {tier.name}: measured here at {tier.measured_ms:.3g} ms, "
            f"{100 * (tier.ratio or 0):.0f} % of the whole model"
            for tier in missed
        )
        said += ": over its budget; measure its table here, or lower the budget"
        raise BudgetError(said)
