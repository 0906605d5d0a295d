"""The commands: they read options, call the library, and print. Nothing is computed here.

Exit codes: 0 ok, 1 bug, 2 bad input (one line says what to do), 3 budget cannot be met.
Heavy libraries load inside the command that needs them, so `hwnas --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from hwnas import __version__
from hwnas.errors import BudgetError, HwnasError, UserError
from hwnas.processes import leading
from hwnas.progress import warn

if TYPE_CHECKING:
    from pydantic import BaseModel

    from hwnas.latency.table import LatencyTable
    from hwnas.recipe import Recipe

app = typer.Typer(
    name="hwnas",
    help="Give a model, a task, a device and a latency budget; get a smaller model that meets it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tables = typer.Typer(help="Latency tables: show them, predict from them.", no_args_is_help=True)
app.add_typer(tables, name="tables")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, no progress bars.")]
TargetSpec = Annotated[
    str, typer.Option("--target", help="runtime:device[:key=value,…], e.g. openvino:cpu:seq=64")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
GivenTable = Annotated[
    Path | None,
    typer.Option(help="A latency table of this model and target: a file, or a shipped one."),
]
Reuse = Annotated[
    Path | None, typer.Option(help="Take baseline and table from this run directory.")
]
_LOG_WIDTH = 110
DEFAULT_TARGET = "openvino:cpu:threads=1,batch=1,seq=128"


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
    }
    nested = settings.model_dump(mode="json")
    if data is not None:
        changes["task"] = nested["task"] | {"data": data}
    if minutes is not None:
        changes["compute"] = nested["compute"] | {"minutes": minutes}
    if confidence is not None:
        changes["measure"] = nested["measure"] | {"confidence": confidence}
    given_changes = {key: value for key, value in changes.items() if value is not None}
    settings = override(settings, "options", given_changes)
    folder = out or _new_run()
    _quiet(json)
    summary = _run(settings, folder, resume, table, reuse)
    if not leading():
        return
    if json:
        _print_json(summary)
    else:
        from hwnas.report.terminal import render

        _print(render(summary))
        _print(f"report: {folder / 'report.html'}")
    missed = [c.budget for c in summary.chosen if not c.met]
    if missed:
        raise BudgetError(
            f"{', '.join(missed)}: measured above the budget in the end; see {folder}/report.html"
        )


def _run(recipe: Recipe, folder: Path, resume: bool, table: Path | None, reuse: Path | None) -> Any:
    from hwnas.pipeline import Given
    from hwnas.pipeline import run as run_pipeline

    return run_pipeline(recipe, folder, resume=resume, given=Given(table, reuse))


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
    _quiet(json)
    made = train_supernet(settings, out, resume=resume, given=Given(table, reuse))
    if not leading():
        return
    steps, size = made.inputs.plan.supernet_steps, made.space.size()
    if json:
        _print_plain({"path": str(out / "supernet"), "steps": steps, "subnetworks": size})
    else:
        print(f"{out / 'supernet'}: {steps} steps, {size:.3g} subnetworks")
        print(f"go on: hwnas run {recipe} --out {out} --resume")


def _new_run() -> Path:
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")


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
    _quiet(json)
    table = measure(
        model, parsed, validate=validate, seed=seed, minutes=minutes, hidden=hidden or ()
    )
    table.save(out)
    _show_table(out, json)


@tables.command("list")
def tables_list(json: Json = False) -> None:
    """The tables that hwnas ships."""
    from importlib.resources import files

    names = sorted(
        entry.name
        for entry in files("hwnas.latency_tables").iterdir()
        if entry.name.endswith(".json") and not entry.name.endswith(".schema.json")
    )
    if json:
        import json as json_module

        print(json_module.dumps(names))
    else:
        print("\n".join(names) or "no tables are shipped yet; make one with: hwnas profile")


@tables.command("show")
def tables_show(
    table: Annotated[Path, typer.Argument(help="A table's file, or the name of a shipped one.")],
    html: Annotated[
        Path | None, typer.Option(help="Draw it as a page of this name, beside printing it.")
    ] = None,
    json: Json = False,
) -> None:
    """What a table holds, how well it predicts first."""
    found = _show_table(table, json)
    if html is not None:
        from hwnas.report.tables import write_page

        write_page(found, html)
        if not json:
            print(f"page: {html}")


def _show_table(path: Path, json: bool) -> LatencyTable:
    """Print a table, and say what may mislead; the table."""
    from hwnas.latency.table import LatencyTable

    table = LatencyTable.find(path)
    if json:
        _print_json(table)
    else:
        from hwnas.report.tables import render_table

        _print(render_table(table))
    warn(path.name, table.doubts())
    return table


@tables.command("predict")
def tables_predict(
    table: Annotated[Path, typer.Argument(help="A table's file, or the name of a shipped one.")],
    subnetwork: Annotated[
        str, typer.Argument(help="A dense model's folder, or a genome [[heads, ffn], …].")
    ],
    json: Json = False,
) -> None:
    """Predict a subnetwork's latency in ms."""
    from hwnas.latency.table import LatencyTable

    loaded = LatencyTable.find(table)
    wanted = _subnetwork(subnetwork)
    loaded.check_subnetwork(wanted)
    warn(table.name, loaded.doubts())
    ms = loaded.predictor().predict(wanted)
    half = loaded.interval_90
    low, high = (None, None) if half is None else (ms * (1 - half), ms * (1 + half))
    if json:
        _print_plain({"ms": ms, "low_90": low, "high_90": high})
    elif low is None:
        print(f"{ms:.3f} ms")
    else:
        print(f"{ms:.3f} ms (9 of 10 measurements: {low:.3f} to {high:.3f})")


@tables.command("compare")
def tables_compare(
    first: Annotated[Path, typer.Argument(help="A table's file, or the name of a shipped one.")],
    second: Annotated[Path, typer.Argument(help="Another of the same model.")],
    json: Json = False,
) -> None:
    """What two tables of one model say of the same networks."""
    from hwnas.latency.compare import compare
    from hwnas.latency.table import LatencyTable

    tables_of = [LatencyTable.find(path) for path in (first, second)]
    found = compare(*tables_of)
    if json:
        _print_plain([asdict(comparison) for comparison in found])
    else:
        from hwnas.report.tables import render_comparison

        _print(render_comparison(found, tables_of[0], tables_of[1]))


@tables.command("merge")
def tables_merge(
    parts: Annotated[list[Path], typer.Argument(help="Tables of one model, machine and target.")],
    out: Annotated[Path, typer.Option(help="Where the joined table goes (JSON).")],
    json: Json = False,
) -> None:
    """Join tables that differ in their lengths only, or in when they were measured."""
    from hwnas.latency.compare import merge
    from hwnas.latency.table import LatencyTable

    merge([LatencyTable.find(path) for path in parts]).save(out)
    _show_table(out, json)


@tables.command("adapt")
def tables_adapt(
    table: Annotated[Path, typer.Argument(help="A table's file, or the name of a shipped one.")],
    model: Annotated[str, typer.Argument(help="The model: demo:minilm, a folder or a hub name.")],
    out: Annotated[Path, typer.Option(help="Where the adapted table goes (JSON).")],
    target: Annotated[
        str | None, typer.Option(help="Of this machine; by default the table's.")
    ] = None,
    validate: Annotated[
        int, typer.Option(min=0, help="Check it on this many unseen subnetworks.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Chooses the unseen subnetworks.")] = 0,
    json: Json = False,
) -> None:
    """Scale a table of a similar device or version to this machine, by a few measurements."""
    from hwnas.latency import Target
    from hwnas.latency.adapt import adapt
    from hwnas.latency.table import LatencyTable

    wanted = Target.parse(target) if target else None
    source = LatencyTable.find(table)
    _quiet(json)
    adapt(source, model, wanted, validate=validate, seed=seed).save(out)
    _show_table(out, json)


@tables.command("kit")
def tables_kit(
    model: Annotated[str, typer.Argument(help="demo:minilm, a folder or a hub name.")],
    out: Annotated[Path, typer.Option(help="Where the kit goes (a zip file).")],
    target: TargetSpec = DEFAULT_TARGET,
    validate: Annotated[
        int, typer.Option(min=0, help="Check the table on this many unseen subnetworks.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Chooses the unseen subnetworks.")] = 0,
) -> None:
    """A zip that measures a device on which hwnas cannot be installed: python kit.zip."""
    from hwnas.latency import Target
    from hwnas.latency.kit import write_kit

    parsed = Target.parse(target)
    _quiet(False)
    write_kit(model, parsed, out, validate=validate, seed=seed)
    print(f"{out}: on the device, with numpy and openvino: python {out.name} --out result.json")


@tables.command("import")
def tables_import(
    result: Annotated[Path, typer.Argument(help="What a kit wrote on the device.")],
    out: Annotated[Path, typer.Option(help="Where the table goes (JSON).")],
    json: Json = False,
) -> None:
    """The table of what a kit has measured."""
    from hwnas.latency.kit import table_from

    table_from(result).save(out)
    _show_table(out, json)


def _subnetwork(text: str) -> Any:
    import json as json_module

    from hwnas.subnetwork import Subnetwork

    if text.lstrip().startswith("["):
        try:
            return Subnetwork.of(json_module.loads(text))
        except (ValueError, TypeError):
            raise UserError(
                f"subnetwork {text!r}: expected [[heads, ffn], …] with one pair a block"
            ) from None
    from hwnas.anatomy import find_shape
    from hwnas.models import load

    return Subnetwork.full(find_shape(load(Path(text)).config))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A dense model's folder.")],
    out: Annotated[Path, typer.Option(help="Folder for model/, onnx/ and openvino/.")],
    target: TargetSpec = DEFAULT_TARGET,
    json: Json = False,
) -> None:
    """Write a dense model as ONNX and OpenVINO folders, compared with torch and timed."""
    from hwnas.export import export_and_check
    from hwnas.latency import Target

    parsed = Target.parse(target)
    _quiet(json)
    record = export_and_check(model, out, parsed)
    if json:
        _print_json(record)
    else:
        from hwnas.report.terminal import render_export

        _print(render_export(record, out))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A dense or exported model's folder.")],
    data: Annotated[Path, typer.Option(help="A CSV or JSONL file; every row is scored.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Column of the text; twice for pairs.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="One of the task's, e.g. f1; by default the usual one.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Of embeddings: the model whose they should be.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens; longer texts are cut.")] = 128,
    json: Json = False,
) -> None:
    """Score a model's folder (torch, ONNX or OpenVINO) on a file."""
    from hwnas.evaluation import evaluate_folder

    _quiet(json)
    result = evaluate_folder(model, data, text, label, metric, max_length, against)
    if json:
        _print_json(result)
    else:
        print(f"{result.metric}: {result.value:.2f} on {result.rows} rows")


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
        _print_json(diagnosis)
    else:
        _print(render(diagnosis))


def _quiet(json: bool) -> None:
    """Keep other libraries' chatter away from the output."""
    import logging
    import warnings

    from hwnas.progress import set_quiet

    set_quiet(json)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def _print(renderable: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a log or a pipe has no width of its own
        console = Console(width=_LOG_WIDTH)
    console.print(renderable)


def _print_plain(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1))


def _print_json(value: BaseModel) -> None:
    print(value.model_dump_json(indent=1))


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
