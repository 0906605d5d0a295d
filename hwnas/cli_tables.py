"""The commands `hwnas tables …`: latency tables shown, asked, compared, joined, carried around."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.console import (
    DEFAULT_TARGET,
    Json,
    TargetSpec,
    print_json,
    print_plain,
    print_rich,
    quiet,
)
from hwnas.errors import UserError
from hwnas.files import check_writable
from hwnas.progress import warn

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable
    from hwnas.subnetwork import Subnetwork

tables = typer.Typer(help="Latency tables: show them, predict from them.", no_args_is_help=True)


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
    if html is not None:
        check_writable(html)
    found = print_table(table, json)
    if html is not None:
        from hwnas.report.tables import write_page

        write_page(found, html)
        if not json:
            print(f"page: {html}")


def print_table(path: Path, json: bool) -> LatencyTable:
    """Print a table, and say what may mislead; the table."""
    from hwnas.latency.table import LatencyTable

    table = LatencyTable.find(path)
    if json:
        print_json(table)
    else:
        from hwnas.report.tables import render_table

        print_rich(render_table(table))
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
    wanted = _subnetwork(subnetwork, loaded)
    loaded.check_subnetwork(wanted)
    warn(table.name, loaded.doubts())
    ms = loaded.predictor().predict(wanted)
    half = loaded.interval_90
    low, high = (None, None) if half is None else (ms * (1 - half), ms * (1 + half))
    if json:
        print_plain({"ms": ms, "low_90": low, "high_90": high})
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
    for path, table in zip((first, second), tables_of, strict=True):
        warn(path.name, table.doubts())
    found = compare(*tables_of)
    if json:
        print_plain([asdict(comparison) for comparison in found])
    else:
        from hwnas.report.tables import render_comparison

        print_rich(render_comparison(found, tables_of[0], tables_of[1]))


@tables.command("merge")
def tables_merge(
    parts: Annotated[list[Path], typer.Argument(help="Tables of one model, machine and target.")],
    out: Annotated[Path, typer.Option(help="Where the joined table goes (JSON).")],
    json: Json = False,
) -> None:
    """Join tables that differ in their lengths only, or in when they were measured."""
    from hwnas.latency.compare import merge
    from hwnas.latency.table import LatencyTable

    check_writable(out)
    merge([LatencyTable.find(path) for path in parts]).save(out)
    print_table(out, json)


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
    check_writable(out)
    quiet(json)
    adapt(source, model, wanted, validate=validate, seed=seed).save(out)
    print_table(out, json)


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
    check_writable(out)
    quiet(False)
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

    check_writable(out)
    table_from(result).save(out)
    print_table(out, json)


def _subnetwork(text: str, table: LatencyTable) -> Subnetwork:
    """What a genome or a model's folder says; that it is of the table's model."""
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

    shape, own = find_shape(load(Path(text)).config), table.model.shape
    if (shape.family, shape.head_size, shape.gated) != (own.family, own.head_size, own.gated):
        raise UserError(
            f"{text}: {shape.family} with heads of {shape.head_size}, the table is of a model of "
            f"{own.family} with heads of {own.head_size}"
        )
    full = Subnetwork.full(shape)
    return full if shape.hidden == own.hidden else full.narrowed(shape.hidden)
