"""How large a subnetwork's served folder will be.

A folder is a fixed part (embeddings, graph, tokenizer) and so much for every head and FFN neuron.
The fixed part is found by writing the unshrunk model as it will be served. What came out is looked
at again in the end: the limit is on the folder that is handed over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.target import Target
from hwnas.limits import SIZE, Limit, straight
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from hwnas.inputs import Inputs

# of a weight of a block in the served folder
_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "int8-static": 1.0,
    "int8-dynamic": 1.0,
    "int8-weights": 1.0,
    "int4-weights": 0.55,
}


@dataclass(frozen=True)
class Sizes:
    """Megabytes (10^6 bytes) of served folders of one model's subnetworks, at one target."""

    fixed_mb: float  # of all but the blocks
    head_mb: float
    neuron_mb: float
    narrower: Mapping[int, Sizes] = field(default_factory=dict)  # by residual width

    def of(self, subnetwork: Subnetwork) -> float:
        """The size of a subnetwork's folder."""
        here = self.narrower[subnetwork.hidden] if subnetwork.hidden else self
        blocks = subnetwork.blocks
        heads, neurons = sum(b.heads for b in blocks), sum(b.ffn for b in blocks)
        return here.fixed_mb + here.head_mb * heads + here.neuron_mb * neurons

    def limit(self, most_mb: float) -> Limit:
        """That subnetworks' folders have at most so many megabytes."""
        return Limit(
            SIZE,
            "MB",
            most_mb,
            self._costs(),
            f"{self.fixed_mb:.1f} MB of the model are not in its blocks; vocabulary.trim and int8 "
            "make that smaller",
        )

    def _costs(self) -> LatencyPredictor:
        own = straight(self.fixed_mb, self.head_mb, self.neuron_mb)
        return replace(own, narrower={w: s._costs() for w, s in self.narrower.items()})


def sizes_at(inputs: Inputs, target: Target) -> Sizes:
    """The sizes at one target, from the baseline's folder there, written and weighed once a run."""

    def weigh() -> dict[str, float]:
        from hwnas.delivery import write_exact, write_quantized
        from hwnas.export import folder_size_mb, served_folder

        with tempfile.TemporaryDirectory(prefix="hwnas-") as temporary:
            folder = Path(temporary) / "whole"
            write_exact(inputs, inputs.path / "baseline" / "model", folder, trim=True)
            write_quantized(inputs, folder, target)
            return {"mb": folder_size_mb(folder / served_folder(target))}

    whole_mb = inputs.directory.measured(f"size at {target}", weigh)["mb"]
    shape = inputs.shape
    each = _BYTES[target.precision] / 1e6
    head = shape.head_size * 2 * (1 + 1 / shape.group) * each
    neuron = (3 if shape.gated else 2) * each

    def at(hidden: int) -> Sizes:
        return Sizes(0.0, head * hidden, neuron * hidden)

    full = Subnetwork.full(shape)
    fixed_mb = whole_mb - at(shape.hidden).of(full)
    narrower = {
        # nearly all of the rest are rows as wide as the residual stream
        hidden: replace(at(hidden), fixed_mb=fixed_mb * hidden / shape.hidden)
        for hidden in inputs.recipe.space.hidden
    }
    return replace(at(shape.hidden), fixed_mb=fixed_mb, narrower=narrower)


def size_limit(inputs: Inputs, target: Target, most_mb: float) -> Limit:
    """At most so many megabytes of the served folder."""
    return sizes_at(inputs, target).limit(most_mb)
