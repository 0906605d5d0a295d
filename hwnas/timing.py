"""What a run measures of latency: its tables, what kept tokens save, single structures.

Tables are of the whole model; where chosen models keep fewer tokens, what that saves is measured
beside it, once a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.clock import StructureClock
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from hwnas.inputs import Inputs


def latency_table(inputs: Inputs, given: Path | None) -> LatencyTable:
    """`table.json`: operator costs of the target, measured now or given (and checked) before."""
    path = inputs.path / "table.json"
    if not path.exists() and given is not None:
        LatencyTable.find(given).save(path)
    return profiled(inputs, inputs.target, path)


def profiled(inputs: Inputs, target: Target, path: Path) -> LatencyTable:
    """The latency table in the file `path`, measured if it is not there.

    The file is of the whole model. Where chosen models keep only some of its tokens, what that
    saves is measured too, and the table that is returned is of such models.
    """
    from hwnas.latency.profiling import profile

    if not path.exists():
        profile(
            inputs.config,
            target,
            validate=inputs.recipe.measure.validate_table,
            minutes=inputs.recipe.measure.table_minutes,
            seed=inputs.recipe.seed,
            hidden=inputs.recipe.space.hidden,
        ).save(path)
    table = LatencyTable.load(path)
    if inputs.tokens_written is None:
        return table
    ratio = vocabulary_ratio(inputs, target, table.reference_ms)
    return table.of_vocabulary(inputs.tokens_written, ratio)


def vocabulary_ratio(inputs: Inputs, target: Target, reference_ms: float) -> float:
    """The latency of the full widths with the tokens that chosen models keep, to that with all.

    Measured once a run.

    Args:
        reference_ms: of the full model, by the table of that target.
    """
    if inputs.tokens_written is None:
        return 1.0
    kept_as = f"{inputs.tokens_written} tokens at {target}:"
    clock = structure_clock(inputs, target, reference_ms, kept_as)
    return clock.time(Subnetwork.full(inputs.shape)) / reference_ms


def structure_clock(
    inputs: Inputs, target: Target, reference_ms: float, kept_as: str
) -> StructureClock:
    """Times structures as the recipe has it, with the tokens that chosen models keep.

    Args:
        reference_ms: of the full model, by the table of that target.
        kept_as: what the measurements are called.
    """
    measure = inputs.recipe.measure
    return StructureClock(
        config=inputs.config,
        target=target,
        reference_ms=reference_ms,
        pairs=measure.pairs,
        repeats=measure.repeats,
        directory=inputs.directory,
        kept_as=kept_as,
        vocab=inputs.tokens_written,
    )
