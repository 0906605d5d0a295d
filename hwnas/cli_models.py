"""The commands of one model: `hwnas profile|export|evaluate|ask`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli_tables import print_table
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
    print_rich,
    quiet,
)
from hwnas.errors import BudgetError, UserError
from hwnas.files import check_writable


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
    check_writable(out)
    quiet(json)
    table = measure(
        model, parsed, validate=validate, seed=seed, minutes=minutes, hidden=hidden or ()
    )
    table.save(out)
    print_table(out, json)


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
        require_servable(model, out, Target.parse(target))
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
