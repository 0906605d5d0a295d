"""Times structures before they are trained, for latency depends on shapes; and files that serve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.anatomy import find_shape
from hwnas.latency.measure import Paired, settled
from hwnas.latency.target import Target
from hwnas.rundir import RunDirectory
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hwnas.inputs import Inputs
    from hwnas.latency.session import Stopwatch


@dataclass
class StructureClock:
    """Times structures with random weights, in pairs with the full model; each only once a run."""

    config: PretrainedConfig
    target: Target
    reference_ms: float  # the full model's latency, by the table
    pairs: int
    repeats: int  # at most, see `settled`
    directory: RunDirectory  # where measurements are kept
    kept_as: str = "structure"
    vocab: int | None = None  # tokens that structures know; None: all that the full model does

    @cached_property
    def _stopwatch(self) -> Stopwatch:
        from hwnas.latency.graphs import builder, of_vocabulary
        from hwnas.latency.session import Stopwatch

        full = Subnetwork.full(find_shape(self.config))
        whole = builder(self.config, self.target)
        if self.vocab is None:
            return Stopwatch(whole, self.target, full)
        build = builder(of_vocabulary(self.config, self.vocab), self.target)
        return Stopwatch(build, self.target, full, whole)

    def time(self, subnetwork: Subnetwork) -> float:
        """Measured ms: the ratio to the full model times the table's reference."""

        def ratio() -> dict[str, float]:
            paired = settled(lambda: self._stopwatch.once(subnetwork, self.pairs), self.repeats)
            return {"ratio": paired.ratio, "spread": paired.ratio_spread}

        measured = self.directory.measured(f"{self.kept_as} {subnetwork}", ratio)
        return float(measured["ratio"]) * self.reference_ms


def time_files(inputs: Inputs, folder: Path, reference: Path, target: Target) -> Paired:
    """Two exported folders in pairs, as surely as the recipe has it.

    Args:
        target: that `folder` is served at; the reference has the threads of the run's own.
    """
    from hwnas.export import measure_against

    spec, threads = inputs.recipe.measure, inputs.target.threads

    def once() -> Paired:
        return measure_against(
            folder, reference, target, reference_threads=threads, pairs=spec.pairs
        )

    return settled(once, spec.repeats)
