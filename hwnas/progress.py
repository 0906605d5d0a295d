"""Progress bars with time left, and warnings, on standard error; bars are silent for machines.

Where standard error is no terminal (a log, CI), what took long says so in one line when it ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from hwnas.processes import leading

_LONG = 10.0  # seconds; what is quicker leaves no line in a log
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Show no bars from now on (True), or show them again (False)."""
    global _quiet
    _quiet = quiet


def warn(subject: str, doubts: Iterable[str]) -> None:
    """Say what may mislead in a line each, `warning: subject: doubt`."""
    for doubt in doubts if leading() else ():
        print(f"warning: {subject}: {doubt}", file=sys.stderr)


def say(line: str) -> None:
    """Tell what a run has found, where it changes what comes next."""
    if leading():
        print(line, file=sys.stderr)


@contextmanager
def bar(description: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar named `description`; the yielded function advances it by that many of `total`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    quiet = _quiet or not leading()
    hidden = quiet or not console.is_terminal
    begin = time.perf_counter()
    with Progress(*columns, console=console, disable=hidden, refresh_per_second=2) as progress:
        task = progress.add_task(description, total=total)

        def advance(amount: float = 1.0) -> None:
            progress.advance(task, amount)

        yield advance
    seconds = time.perf_counter() - begin
    if hidden and not quiet and seconds >= _LONG:
        console.print(f"{description}: {seconds:.0f} s", markup=False, highlight=False)
