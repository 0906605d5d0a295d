"""Runtimes, precisions and threads that compete with the target's own for the same budget.

Int8 is not always faster, and where it is, a wider int8 network may be better than a thinner fp32
one of the same latency (DESIGN, decision 6). So a search may look at several deployments at once:
each has a latency table of its own, and the structures that are best within the budget compete,
whatever they are served by.

What a deployment costs in quality, and what it saves for the unshrunk model, is measured before the
search on the baseline's own files, in pairs with the target's. Assumption: a subnetwork loses by a
precision about what the baseline does; how its own file answers is measured in the end. Device,
batch and lengths are the target's, and so are threads where a deployment does not state its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.clock import time_files
from hwnas.errors import UserError
from hwnas.files import read_model, write_json
from hwnas.latency.device import processors
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import PHASES, PRECISIONS, Target
from hwnas.summary import Record
from hwnas.timing import profiled

if TYPE_CHECKING:
    from hwnas.inputs import Inputs
    from hwnas.judge import Judge
    from hwnas.recipe import Recipe

AUTO = "auto"
FILE = "deployments.json"
_THREADS = ":threads="
TABLES = "tables"  # folder of the deployments' latency tables


class Anchor(Record):
    """The baseline at a deployment, beside itself at the run's target."""

    target: str
    ratio: float  # of its latencies, in pairs
    signal: float  # that the search's signal is higher
    loss: float  # that the loss on the rows that judge finalists is higher
    first_token: float | None = None  # ratio of times for a prompt, where that is limited


class Anchors(Record):
    """`deployments.json`."""

    anchors: tuple[Anchor, ...]
    loss: float | None = None  # of the baseline at the run's target, on the rows of `Anchor.loss`


@dataclass(frozen=True)
class Deployment:
    """A deployment as a search sees it.

    Attributes:
        name: how it is called, also in file names; see `name_of`.
        table: its own, of its own baseline.
        reference_ms: of the baseline at the run's target, by that target's table.
        worse: how much higher the baseline's loss is there, as a share of it; infinity if that was
            not measured.
    """

    name: str
    target: Target
    table: LatencyTable
    anchor: Anchor
    reference_ms: float
    worse: float

    @property
    def scale(self) -> float:
        """Milliseconds on the run's clock for one of the table's."""
        return self.anchor.ratio * self.reference_ms / self.table.reference_ms


def name_of(target: Target, own: Target) -> str:
    """How a deployment is called: runtime, precision, and threads if the run's target has others.

    Args:
        own: the run's target.
    """
    name = f"{target.runtime}-{target.precision}"
    return name if target.threads == own.threads else f"{name}-{target.threads}threads"


def targets_of(recipe: Recipe) -> list[Target]:
    """The deployments that a recipe names beside its target; `auto`: all that run here.

    Written `runtime:precision`, with `:threads=N` where they are not the target's.

    Raises:
        UserError: one is unknown, or cannot be served here.
    """
    from hwnas.export.auto import combinations
    from hwnas.latency.runtimes import require

    own = Target.parse(recipe.target)
    found: list[Target] = []
    for i, text in enumerate(recipe.deployments):
        if text == AUTO:
            found += combinations(own)
            continue
        try:
            one = _parse(text, own)
            one.check_exportable(PHASES)
            require(one)
        except UserError as error:
            raise UserError(f"deployments.{i}: {error}") from None
        found.append(one)
    return [target for target in dict.fromkeys(found) if target != own]


def _parse(text: str, own: Target) -> Target:
    """A deployment as a recipe has it.

    Raises:
        UserError: it is unknown, or has more threads than there are processors for it.
    """
    served, stated, threads = text.partition(_THREADS)
    runtime, _, precision = served.partition(":")
    if precision not in PRECISIONS.get(runtime, ()):
        known = [f"{r}:{p}" for r, all_ in PRECISIONS.items() for p in all_ if r != "torch"]
        raise UserError(
            f"{text!r} is unknown; known: auto, {', '.join(known)}, each also with {_THREADS}N"
        )
    one = replace(own, runtime=runtime, precision=precision)
    if not stated:
        return one
    most = processors()
    if not threads.isdecimal() or not 1 <= int(threads) <= most:
        raise UserError(f"{text!r}: {threads or 'no'} threads; 1 to {most} can be measured here")
    return replace(one, threads=int(threads))


def tables_of(inputs: Inputs) -> dict[Target, LatencyTable]:
    """`tables/`: latency tables of all deployments but the target's own, measured if missing."""
    return {
        target: profiled(
            inputs, target, inputs.path / TABLES / f"{name_of(target, inputs.target)}.json"
        )
        for target in targets_of(inputs.recipe)
    }


def deployments_of(inputs: Inputs, judge: Judge) -> tuple[Deployment, ...]:
    """`deployments.json`: the baseline at each deployment, measured once a run.

    Args:
        judge: of the search, which gives the signal that a deployment costs.
    """
    tables = tables_of(inputs)
    if not tables:
        return ()
    path = inputs.path / FILE
    if not path.exists():
        write_json(path, _anchors(inputs, judge, list(tables)))
    found = read_model(path, Anchors)
    anchors = {anchor.target: anchor for anchor in found.anchors}
    reference_ms = LatencyTable.load(inputs.path / "table.json").reference_ms
    return tuple(
        Deployment(
            name_of(target, inputs.target),
            target,
            table,
            anchors[str(target)],
            reference_ms,
            anchors[str(target)].loss / found.loss if found.loss else math.inf,
        )
        for target, table in tables.items()
    )


def read_anchors(run: Path) -> tuple[Anchor, ...]:
    """The baseline at each deployment of a run beside its target's own; empty if there are none."""
    return read_model(run / FILE, Anchors).anchors if (run / FILE).exists() else ()


def _anchors(inputs: Inputs, judge: Judge, targets: Sequence[Target]) -> Anchors:
    from hwnas.delivery import write_exact, write_quantized
    from hwnas.export import load_exported, served_folder
    from hwnas.limits import first_token_target
    from hwnas.progress import bar
    from hwnas.tasks.calibration import calibrated_loss
    from hwnas.tasks.predict import predict

    baseline, kind = inputs.path / "baseline", inputs.task.kind
    write_exact(inputs, baseline / "model", baseline)

    def answers(target: Target) -> tuple[float, float]:
        model = load_exported(baseline / served_folder(target), scoring=True)
        signal = judge.signal(predict(model, inputs.search_validation))
        choice = inputs.choice_validation
        return signal, calibrated_loss(kind, predict(model, choice), choice)

    def paired(target: Target, at: Target) -> dict[str, float]:
        mine, theirs = (baseline / served_folder(one) for one in (target, inputs.target))
        found = time_files(inputs, mine, theirs, at)
        return {"ratio": found.ratio, "spread": found.ratio_spread}

    def measured(key: str, target: Target, at: Target) -> float:
        return float(inputs.directory.measured(key, partial(paired, target, at))["ratio"])

    with bar("deployments of the baseline", len(targets)) as advance:
        write_quantized(inputs, baseline, inputs.target)
        own = np.array(answers(inputs.target))
        found = []
        for target in targets:
            write_quantized(inputs, baseline, target)
            name = name_of(target, inputs.target)
            ratio = measured(f"baseline at {name}", target, target)
            first = None
            if inputs.recipe.limits.first_token is not None:
                prompt = first_token_target(inputs, target)
                first = measured(f"first token of the baseline at {name}", target, prompt)
            signal, loss = np.array(answers(target)) - own
            found.append(
                Anchor(
                    target=str(target),
                    ratio=ratio,
                    signal=float(signal),
                    loss=float(loss),
                    first_token=first,
                )
            )
            advance(1)
    return Anchors(anchors=tuple(found), loss=float(own[1]))
