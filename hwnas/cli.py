"""The commands: they read options, call the library, and print. Nothing is computed here.

Exit codes: 0 ok, 1 bug, 2 bad input (one line says what to do), 3 budget cannot be met.
Heavy libraries load inside the command that needs them, so `hwnas --help` answers at once.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from hwnas import __version__
from hwnas.cli_federate import federate
from hwnas.cli_models import ask, evaluate, export, profile
from hwnas.cli_tables import tables
from hwnas.console import Json, print_json, print_plain, print_rich, quiet
from hwnas.errors import BudgetError, HwnasError
from hwnas.processes import leading
from hwnas.progress import warn

if TYPE_CHECKING:
    from hwnas.recipe import Recipe
    from hwnas.summary import Summary

app = typer.Typer(
    name="hwnas",
    help="Give a model, a task, a device and a latency budget; get a smaller model that meets it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tables, name="tables")

Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
GivenTable = Annotated[
    Path | None,
    typer.Option(help="A latency table of this model and target: a file, or a shipped one."),
]
Deployments = Annotated[
    list[str] | None,
    typer.Option(
        "--deployment",
        help="Runtime and precision that competes with the target's own, e.g. "
        "openvino:int8-static, or openvino:fp32:threads=4 with threads of its own; or auto: all "
        "that run here. Repeatable.",
    ),
]
MaxSize = Annotated[
    float | None,
    typer.Option("--max-size", help="MB (10^6 bytes) that the folder which is served may have."),
]
Reuse = Annotated[
    Path | None, typer.Option(help="Take baseline and table from this run directory.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="Recipe file (YAML), or the name of a shipped one, e.g. sst2."),
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Latency: 8ms, or 50% of the baseline. Repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="demo:minilm, a folder or a hub name.")] = None,
    data: Annotated[
        str | None, typer.Option(help="demo:tweets, a CSV or JSONL file, or a hub name.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="runtime:device[:key=value,…]")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Shrink by a rule instead of searching: uniform (all layers alike) or layers "
            "(the first ones whole, the last kept one as wide as fits)."
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="That a structure meets its budget before it is timed, e.g. 0.95; "
            "by default as likely as not."
        ),
    ] = None,
    max_size: MaxSize = None,
    deployment: Deployments = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Training time; scales the recipe's steps.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: new in runs/.")] = None,
    resume: Resume = False,
    table: GivenTable = None,
    reuse: Reuse = None,
    json: Json = False,
) -> None:
    """Shrink a model to its latency budgets: train, search, export, measure, report."""
    from hwnas.recipe import Recipe, load_recipe, override

    settings = load_recipe(recipe) if recipe else Recipe()
    changes: dict[str, Any] = {
        "model": model,
        "budgets": budget or None,
        "target": target,
        "strategy": baseline,
        "seed": seed,
        "deployments": deployment or None,
    }
    nested = settings.model_dump(mode="json")
    if data is not None:
        changes["task"] = nested["task"] | {"data": data}
    if minutes is not None:
        changes["compute"] = nested["compute"] | {"minutes": minutes}
    if max_size is not None:
        changes["max_size_mb"] = max_size
    if confidence is not None:
        changes["measure"] = nested["measure"] | {"confidence": confidence}
    given_changes = {key: value for key, value in changes.items() if value is not None}
    settings = override(settings, "options", given_changes)
    folder = out or _new_run()
    quiet(json)
    summary = _run(settings, folder, resume, table, reuse)
    if leading():
        _print_summary(summary, folder, json)


def _run(recipe: Recipe, folder: Path, resume: bool, table: Path | None, reuse: Path | None) -> Any:
    from hwnas.pipeline import Given
    from hwnas.pipeline import run as run_pipeline

    return run_pipeline(recipe, folder, resume=resume, given=Given(table, reuse))


def _print_summary(summary: Summary, folder: Path, json: bool) -> None:
    """Print how a run ended; a budget that was missed in the end is an error."""
    if json:
        print_json(summary)
    else:
        from hwnas.report.terminal import render

        print_rich(render(summary))
        print_rich(f"report: {folder / 'report.html'}")
    missed = [c for c in summary.chosen if not c.met]
    if missed:
        from hwnas.report.text import why_missed

        said = "; ".join(why_missed(c) for c in missed)
        raise BudgetError(f"{said}; see {folder}/report.html")


@app.command()
def supernet(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe file (YAML), or the name of a shipped one, e.g. sst2.")
    ],
    out: Annotated[Path, typer.Option(help="Run directory; `hwnas run --resume` goes on there.")],
    resume: Resume = False,
    table: GivenTable = None,
    reuse: Reuse = None,
    json: Json = False,
) -> None:
    """Train a recipe's super-network only; with torchrun, in several processes."""
    from hwnas.pipeline import Given, train_supernet
    from hwnas.recipe import load_recipe

    settings = load_recipe(recipe)
    quiet(json)
    made = train_supernet(settings, out, resume=resume, given=Given(table, reuse))
    if not leading():
        return
    steps, size = made.inputs.plan.supernet_steps, made.space.size()
    if json:
        print_plain({"path": str(out / "supernet"), "steps": steps, "subnetworks": size})
    else:
        print(f"{out / 'supernet'}: {steps} steps, {size:.3g} subnetworks")
        print(f"go on: hwnas run {recipe} --out {out} --resume")


@app.command()
def search(
    run_dir: Annotated[
        Path, typer.Argument(help="A run whose super-network is trained (hwnas supernet, or run).")
    ],
    out: Annotated[Path, typer.Option(help="Run directory for what is found.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Latency: 8ms, or 50% of the baseline. Repeatable; default: the run's."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="A latency table of the model for any target; default: the run's own."),
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Subnetworks to evaluate, for all budgets together.")
    ] = None,
    algorithm: Annotated[
        str,
        typer.Option(
            help="guided (ours), exact, evolution, nsga2, nsga3, tpe, regularised, local, random."
        ),
    ] = "guided",
    signal: Annotated[
        str | None, typer.Option(help="Of quality: divergence, loss or metric.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="That a structure meets its budget before it is timed.")
    ] = None,
    max_size: MaxSize = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that evaluate; default: one a core.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster to evaluate on.")
    ] = None,
    deployment: Deployments = None,
    warm_start: Annotated[
        Path | None, typer.Option(help="Another search's candidates.jsonl, looked at first.")
    ] = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Search a trained super-network for other budgets or another device; train nothing."""
    from hwnas.searching import Hands, Wanted, search_trained

    wanted = Wanted(
        table=table,
        budgets=tuple(budget or ()),
        evaluations=evaluations,
        algorithm=algorithm,
        signal=signal,
        seed=seed,
        confidence=confidence,
        max_size_mb=max_size,
        deployments=tuple(deployment or ()),
        warm_start=warm_start,
    )
    quiet(json)
    summary = search_trained(run_dir, out, wanted, Hands(workers, cluster), resume=resume)
    _print_summary(summary, out, json)


def _new_run() -> Path:
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")


@app.command()
def plan(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe file (YAML), or the name of a shipped one, e.g. sst2.")
    ],
    memory: Annotated[
        str | None, typer.Option(help="What there is to train in, e.g. 80GB; says what fits.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="10^12 operations a second that training reaches; for hours."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="A latency table of the model, to predict milliseconds.")
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="The memory is a GPU's; weights at rest are elsewhere.")
    ] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="As with training.precision: bf16 in the recipe.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="As with training.checkpointing: true.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="As with training.adapters.rank in the recipe.")
    ] = None,
    json: Json = False,
) -> None:
    """What a recipe will need: parameters, memory, operations; no weights are read."""
    from hwnas.latency.table import LatencyTable
    from hwnas.models import load_config
    from hwnas.planning import Means, changed, make_plan, parse_memory
    from hwnas.recipe import load_recipe

    settings = changed(
        load_recipe(recipe),
        precision="bf16" if bf16 else None,
        checkpointing=checkpointing or None,
        rank=rank,
    )
    known = LatencyTable.find(table) if table else None
    if table and known:
        warn(table.name, known.doubts())
    made = make_plan(
        settings,
        load_config(settings.model),
        means=Means(parse_memory(memory) if memory else None, tflops, gpu),
        table=known,
    )
    if json:
        print_json(made)
    else:
        from hwnas.report.terminal import render_plan

        print_rich(render_plan(made))
    short = [stage for stage in made.stages if stage.fits is False]
    if short:
        raise BudgetError("; ".join(f"{s.name} does not fit: {s.advice}" for s in short))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    rival: Annotated[
        list[Path] | None, typer.Option(help="Run directory to compare with. Repeatable.")
    ] = None,
) -> None:
    """Write a run's report.html again, beside other runs if they are named."""
    from hwnas.report.html import write_report

    print(write_report(run_dir, rival or []))


@app.command()
def doctor(json: Json = False) -> None:
    """What this machine can do, and what would make its measurements unreliable."""
    from hwnas.doctor import examine, render

    diagnosis = examine()
    if json:
        print_json(diagnosis)
    else:
        print_rich(render(diagnosis))


for _command in (profile, export, evaluate, ask, federate):
    app.command()(_command)


_STOPPED = 130  # exit code of who is stopped by Ctrl-C


def main() -> None:
    """Run the command line; the process ends with the exit code."""
    try:
        code = app(prog_name="hwnas", standalone_mode=False)
    except HwnasError as error:
        _say(str(error))
        code = error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        usage = f" (see {context.command_path} --help)" if context else ""
        said = error.format_message().replace("\n", " ")
        if said:  # of no arguments at all, the help has been shown
            _say(said + usage)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = _STOPPED
    if code == _STOPPED:  # typer's answer to Ctrl-C as well
        _say("stopped; a run goes on with --out and --resume")
    sys.exit(code if isinstance(code, int) else 0)


def _say(line: str) -> None:
    print(f"hwnas: {line}", file=sys.stderr)
