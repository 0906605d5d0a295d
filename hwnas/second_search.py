"""A budget that the final file misses goes back into the search, once, with the budget corrected.

Before training a structure is timed with random weights, and what is handed over is timed in the
end; on a busy machine the two may differ. Where the files take longer than allowed, what was chosen
is set aside (`missed/<budget>/`), and the search begins again below the budget by as much. If
nothing fits there, what was set aside is handed over after all, and the run says that it missed.

Assumes one process: of several, none knows what the others have found.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field

from hwnas.errors import BudgetError
from hwnas.files import read_model, write_json
from hwnas.latency.target import Budget
from hwnas.processes import count
from hwnas.summary import Record

if TYPE_CHECKING:
    from hwnas.finalists import Winner
    from hwnas.inputs import Inputs

T = TypeVar("T")
FILE = "corrections.json"
MISSED = "missed"


class Correction(Record):
    """Of one budget."""

    factor: float  # by which the final files took longer than the budget allows
    finalists: float  # full-model steps spent on what was set aside


class Corrections(Record):
    """`corrections.json`: of the budgets that were searched a second time."""

    budgets: dict[str, Correction] = Field(default_factory=dict)


def read_corrections(run: Path) -> Corrections:
    """Those of a run; none where nothing was missed."""
    return read_model(run / FILE, Corrections) if (run / FILE).exists() else Corrections()


def set_aside(
    inputs: Inputs, winners: Mapping[str, Winner], cost: Callable[[Winner], float]
) -> bool:
    """Time the final files; set aside what misses its budget for the first time.

    Args:
        cost: full-model steps that a budget's finalists took.

    Returns:
        Whether anything was set aside, and is to be searched again.
    """
    from hwnas.delivery import exceeded

    measure = inputs.recipe.measure
    finished = (inputs.path / "summary.json").exists()
    if finished or not measure.search_again or count() > 1:
        return False
    before = read_corrections(inputs.path).budgets
    found = dict(before)
    for budget, winner in winners.items():
        if budget in before:
            continue
        factor = exceeded(inputs, budget, winners)
        if factor > 1 + measure.tolerance:
            found[budget] = Correction(factor=factor, finalists=cost(winner))
    if len(found) == len(before):
        return False
    for budget in found.keys() - before.keys():
        for mine, kept in _places(inputs.path, budget):
            if mine.exists():
                _move(mine, kept)
        _forget(inputs, budget)
    write_json(inputs.path / FILE, Corrections(budgets=found))
    return True


def or_set_aside(inputs: Inputs, budgets: Sequence[str], find: Callable[[], T]) -> T:
    """What is found; where nothing is within a budget, with what was set aside of it.

    Args:
        budgets: in the order in which `find` goes through them.

    Raises:
        BudgetError: nothing is found, and nothing of that budget was set aside.
    """
    while True:
        try:
            return find()
        except BudgetError:
            if not bring_back(inputs, budgets):
                raise


def bring_back(inputs: Inputs, budgets: Sequence[str]) -> bool:
    """Put back what was set aside of the first budget without a selection, if it was; whether so.

    Those after it have not been searched again yet.
    """
    for budget in budgets:
        selection, *others = _places(inputs.path, budget)
        if selection[0].exists():
            continue
        if not selection[1].exists():
            return False
        for mine, kept in (*others, selection):  # the selection last: then all is there
            if mine.exists():
                shutil.rmtree(mine) if mine.is_dir() else mine.unlink()
            if kept.exists():
                _move(kept, mine)
        _forget(inputs, budget)
        return True
    return False


def _places(run: Path, budget: str) -> tuple[tuple[Path, Path], ...]:
    """Where what belongs to a budget stands, and where it is set aside."""
    folder = Budget.parse(budget).folder
    aside = run / MISSED / folder
    return (
        (run / "selection" / f"{folder}.json", aside / "selection.json"),
        (run / "finalists" / folder, aside / "finalists"),
        (run / "cut" / folder, aside / "cut"),
        (run / "chosen" / folder, aside / "chosen"),
    )


def _move(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.exists():
        shutil.rmtree(to) if to.is_dir() else to.unlink()
    source.rename(to)


def _forget(inputs: Inputs, budget: str) -> None:
    """Measurements of the budget's final files."""
    gone = {f"chosen {budget}", f"first token {budget}"}
    lines = inputs.directory.lines("measurements.jsonl")
    inputs.directory.rewrite("measurements.jsonl", [x for x in lines if x["key"] not in gone])
