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
from hwnas.cli_tables import print_table, tables
from hwnas.console import (
    DEFAULT_TARGET,
    Against,
    Json,
    LabelColumn,
    MaxLength,
    Metric,
    TargetSpec,
    TextColumns,
    print_json,
    print_plain,
    print_rich,
    quiet,
)
from hwnas.errors import BudgetError, HwnasError, UserError
from hwnas.processes import leading

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
app.command()(federate)

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
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Frozen weights and activations in half precision.")
    ] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Activations are computed again, not kept.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="Of a language model's adapters.")] = None,
    json: Json = False,
) -> None:
    """What a recipe will need: parameters, memory, operations; no weights are read."""
    from hwnas.elastic.spec import AdapterSpec
    from hwnas.latency.table import LatencyTable
    from hwnas.models import load_config
    from hwnas.planning import Means, make_plan, parse_memory
    from hwnas.recipe import load_recipe

    settings = load_recipe(recipe)
    means = Means(parse_memory(memory) if memory else None, tflops, bf16, checkpointing)
    made = make_plan(
        settings,
        load_config(settings.model),
        means=means,
        table=LatencyTable.find(table) if table else None,
        adapters=AdapterSpec(rank=rank) if rank else None,
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
def profile(
    model: Annotated[str, typer.Argument(help="demo:minilm, a folder or a hub name.")],
    out: Annotated[Path, typer.Option(help="Where the table goes (JSON).")],
    target: TargetSpec = DEFAULT_TARGET,
    validate: Annotated[
        int, typer.Option(min=0, help="Check the table on this many unseen subnetworks.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Chooses the unseen subnetworks.")] = 0,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Of measuring at most; the check comes on top.")
    ] = None,
    hidden: Annotated[
        list[int] | None,
        typer.Option(help="A narrower residual width to measure as well. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a device: operator costs of a model's family at its sizes, as a table."""
    from hwnas.latency import Target
    from hwnas.latency import profile as measure

    parsed = Target.parse(target)
    quiet(json)
    table = measure(
        model, parsed, validate=validate, seed=seed, minutes=minutes, hidden=hidden or ()
    )
    table.save(out)
    print_table(out, json)


@app.command()
def export(
    model: Annotated[
        str | None, typer.Argument(help="demo:minilm, a dense model's folder or a hub name.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for model/, onnx/ and openvino/.")
    ] = None,
    target: TargetSpec = DEFAULT_TARGET,
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto (the fastest runtime and precision that answer the same, by measurement), "
            "fp32, bf16, int8, int4, or as the target has it."
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Of auto: points of the metric that may be lost.")
    ] = 1.0,
    keep_runtime: Annotated[
        bool, typer.Option("--keep-runtime", help="Of auto: try the target's runtime only.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled rows (CSV or JSONL), to calibrate, compare and score on."),
    ] = None,
    text: TextColumns = None,
    label: LabelColumn = None,
    metric: Metric = None,
    against: Against = None,
    max_length: MaxLength = None,
    model_server: Annotated[
        bool,
        typer.Option("--model-server", help="Also lay it out for OpenVINO Model Server."),
    ] = False,
    check: Annotated[
        Path | None, typer.Option(help="An earlier export, to verify here against its record.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a dense model as ONNX and OpenVINO folders, compared with torch and timed."""
    from hwnas.export.model_server import require_servable, write_repository
    from hwnas.exporting import Rows, export_model_as, recheck
    from hwnas.latency import Target

    rows = Rows(data, text, label, metric, max_length, against)
    quiet(json)
    if check is not None:
        if model is not None or out is not None:
            raise UserError("--check: looks at an earlier export; give neither MODEL nor --out")
        found = recheck(check, rows)
        if json:
            print_json(found)
        else:
            from hwnas.report.terminal import render_recheck

            print_rich(render_recheck(found, check))
        if found.broken:
            raise BudgetError(f"{check}: {'; '.join(found.broken)}")
        return
    if model is None or out is None:
        raise UserError("export: give MODEL and --out, or --check with an earlier export")
    if model_server:
        require_servable(model, Target.parse(target))
        keep_runtime = True
    record = export_model_as(
        model, out, Target.parse(target), precision, rows, max_drop, keep_runtime
    )
    if model_server:
        write_repository(out, Target.parse(record.target))
    if json:
        print_json(record)
    else:
        from hwnas.report.terminal import render_export

        print_rich(render_export(record, out))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A dense or exported model's folder.")],
    data: Annotated[Path, typer.Option(help="A CSV or JSONL file; every row is scored.")],
    text: TextColumns = None,
    label: LabelColumn = None,
    metric: Metric = None,
    against: Against = None,
    max_length: MaxLength = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Of a language model's task: language (usual), choice, instruction."),
    ] = None,
    json: Json = False,
) -> None:
    """Score a model's folder (torch, ONNX or OpenVINO) on a file."""
    from hwnas.evaluation import evaluate_folder

    quiet(json)
    result = evaluate_folder(model, data, text, label, metric, max_length, against, kind)
    if json:
        print_json(result)
    else:
        print(f"{result.metric}: {result.value:.2f} on {result.rows} rows")


@app.command()
def ask(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a language model's run.")],
    prompt: Annotated[str, typer.Argument(help="What the models go on from.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Say it as a chat, by the model's chat template.")
    ] = False,
    tokens: Annotated[
        int, typer.Option(min=1, help="That each model writes; its answer may end before.")
    ] = 64,
    json: Json = False,
) -> None:
    """What the models of a run answer, and how many tokens a second they write."""
    from hwnas.asking import ask as ask_models

    quiet(json)
    found = ask_models(run_dir, prompt, most=tokens, chat=chat)
    if json:
        print_json(found)
    else:
        from hwnas.report.terminal import render_replies

        print_rich(render_replies(found.replies))


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
        _say(error.format_message().replace("\n", " ") + usage)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        _say("stopped; a run goes on with --out and --resume")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _say(line: str) -> None:
    print(f"hwnas: {line}", file=sys.stderr)
