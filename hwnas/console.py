"""What the commands share: options, printing for people and for machines, and quiet libraries."""

from __future__ import annotations

import json as json_module
import logging
import os
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.progress import set_quiet

if TYPE_CHECKING:
    from pydantic import BaseModel

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, no progress bars.")]
TargetSpec = Annotated[
    str, typer.Option("--target", help="runtime:device[:key=value,…], e.g. openvino:cpu:seq=64")
]
# how labelled rows are read
TextColumns = Annotated[
    list[str] | None, typer.Option("--text", help="Column of the text; twice for pairs.")
]
LabelColumn = Annotated[str | None, typer.Option("--label", help="Column of the label.")]
Metric = Annotated[
    str | None, typer.Option("--metric", help="One of the task's, e.g. f1; else the usual one.")
]
Against = Annotated[
    str | None,
    typer.Option("--against", help="Of embeddings: the model whose they should be."),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", min=4, help="Tokens; longer texts are cut. By default 128."),
]
DEFAULT_TARGET = "openvino:cpu:threads=1,batch=1,seq=128"
_LOG_WIDTH = 110


def quiet(json: bool) -> None:
    """Keep other libraries' chatter away from the output."""
    set_quiet(json)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def print_rich(renderable: Any) -> None:
    """Print a table or a line, as wide as the terminal is."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a log or a pipe has no width of its own
        console = Console(width=_LOG_WIDTH)
    console.print(renderable)


def print_plain(value: Any) -> None:
    """Print JSON."""
    print(json_module.dumps(value, indent=1))


def print_json(value: BaseModel) -> None:
    """Print a record as JSON."""
    print(value.model_dump_json(indent=1))
