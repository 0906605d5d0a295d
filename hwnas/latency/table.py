"""The latency table: what a model's operators cost on one target, as a file that can be shared.

A table belongs to the sizes of one model (hidden width, head size, blocks) and to one target, with
the costs at each of the target's lengths. It says on which machine, with which versions and by
which protocol it was measured, and how well it predicts whole subnetworks that it had not seen. Its
JSON Schema is `latency_tables/latency-table.schema.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, field_validator, model_validator

from hwnas.anatomy import Shape
from hwnas.errors import UserError
from hwnas.files import read_model, write_json
from hwnas.latency.checks import contradiction, doubts
from hwnas.latency.parts import (
    Adaptation,
    AtLength,
    Device,
    Entry,
    Milliseconds,
    ModelSizes,
    Narrower,
    Operator,
    Part,
    Protocol,
    Validation,
    describe_device,
    versions_of,
)
from hwnas.latency.predictor import Curve, LatencyPredictor, weighted
from hwnas.latency.target import Target
from hwnas.subnetwork import Subnetwork, Weights

SCHEMA_VERSION = 2  # that this module reads and writes
_WIDTH = {  # of each
    "fixed": (),
    "attention": ("heads",),
    "ffn": ("width",),
    "pressure": ("weights",),
}
_SHARE_TOLERANCE = 0.001


class LatencyTable(Part):
    """Operator costs of one model's sizes on one target."""

    schema_version: Literal[2] = 2
    model: ModelSizes
    target: str
    device: Device
    versions: dict[str, str]
    protocol: Protocol
    reference_ms: PositiveFloat  # latency of the full model, as the target states latency
    lengths: tuple[AtLength, ...]
    entries: tuple[Entry, ...]
    narrower: tuple[Narrower, ...] = ()
    # nine of ten measurements are expected within this share of the predicted latency
    interval_90: NonNegativeFloat | None = None
    adapted_from: Adaptation | None = None
    validation: Validation | None = None

    @field_validator("schema_version", mode="before")
    @classmethod
    def _known_version(cls, version: Any) -> Any:
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"this hwnas reads version {SCHEMA_VERSION}, the table is of version {version!r}; "
                "profile the device again"
            )
        return version

    @field_validator("target")
    @classmethod
    def _known_target(cls, target: str) -> str:
        try:
            if "=p:" in target:  # a table holds numbers; whose file that is, nobody knows
                raise UserError(f"target {target!r}: lengths of a file; a table has numbers")
            return str(Target.parse(target))
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _complete(self) -> LatencyTable:
        target = Target.parse(self.target)
        stated = [(length.tokens, length.share) for length in self.lengths]
        if [tokens for tokens, _ in stated] != [length.tokens for length in target.lengths]:
            raise ValueError(
                f"lengths: of {', '.join(str(tokens) for tokens, _ in stated) or 'none'} tokens, "
                f"the target is {target}"
            )
        for number, ((_, share), length) in enumerate(zip(stated, target.lengths, strict=True)):
            if abs(share - length.share) > _SHARE_TOLERANCE:
                raise ValueError(
                    f"lengths.{number}.share: {share:g}, the target says {length.share:g}"
                )
        self._check_entries(target)
        widths = [part.hidden for part in self.narrower]
        for number, width in enumerate(widths):
            if width >= self.model.hidden or width in widths[:number]:
                why = f"{width}, the model has {self.model.hidden}"
                why = f"{width} is given twice" if width in widths[:number] else why
                raise ValueError(f"narrower.{number}.hidden: {why}")
            try:
                self.at_hidden(width)._check_entries(target)
            except ValueError as error:
                raise ValueError(f"narrower.{number}.{error}") from None
        return self

    def at_hidden(self, hidden: int) -> LatencyTable:
        """The table of a narrower residual stream alone; 0: of the model's own.

        It says what operators cost. Latencies are `predictor_at`'s to predict, which knows how many
        weights such networks have beside the full model.

        Raises:
            UserError: it was not measured.
        """
        if not hidden:
            return self.model_copy(update={"narrower": ()})
        for part in self.narrower:
            if part.hidden == hidden:
                alone = {"entries": part.entries, "narrower": (), "validation": None}
                return self.model_copy(update=alone)
        self.predictor().at_hidden(hidden)  # says which there are
        raise AssertionError

    def of_vocabulary(self, tokens: int, ratio: float) -> LatencyTable:
        """The costs of subnetworks that know so many tokens only, beside the same full model.

        What a smaller output layer saves, it saves every subnetwork.

        Args:
            ratio: of the full widths' latency with so many tokens to that with all.
        """
        axis = Target.parse(self.target).axis
        saved = {one.tokens: (1 - ratio) * one.reference_ms for one in self.lengths}

        def less(entry: Entry) -> Entry:
            if entry.op != "fixed":
                return entry
            at = entry.dims[axis]
            was = entry.ms
            ms = {name: max(0.0, getattr(was, name) - saved[at]) for name in type(was).model_fields}
            share = ms["median"] * entry.ratio_to_reference / was.median if was.median else 0.0
            update = {"ms": Milliseconds(**ms), "ratio_to_reference": share}
            return entry.model_copy(update=update)

        return self.model_copy(
            update={
                "model": self.model.model_copy(update={"vocab": tokens}),
                "entries": tuple(map(less, self.entries)),
                "validation": None,
            }
        )

    def _check_entries(self, target: Target) -> None:
        """Raise `ValueError` unless the entries are whole and contradict nothing."""
        for number, entry in enumerate(self.entries):
            wanted = [*_WIDTH[entry.op], target.axis]
            if sorted(entry.dims) != sorted(wanted):
                raise ValueError(
                    f"entries.{number}.dims: {entry.op} with {entry.dims}, expected {wanted}"
                )
            if entry.dims[target.axis] not in {length.tokens for length in self.lengths}:
                raise ValueError(
                    f"entries.{number}.dims.{target.axis}: {entry.dims[target.axis]}, which is "
                    "none of lengths"
                )
        for length in self.lengths:
            self._complete_at(length.tokens, target.axis)
        wrong = contradiction(self)
        if wrong is not None:
            raise ValueError(wrong)

    def _complete_at(self, tokens: int, axis: str) -> None:
        here = [entry for entry in self.entries if entry.dims[axis] == tokens]
        at = f"at {axis} {tokens}"
        if [entry.op for entry in here].count("fixed") != 1:
            raise ValueError(
                f"entries: exactly one of 'fixed' is needed {at}; profile the device again"
            )
        for op, dim, most in (
            ("attention", "heads", max(self.model.heads)),
            ("ffn", "width", max(self.model.ffn)),
            ("pressure", "weights", 100),
        ):
            sizes = [entry.dims[dim] for entry in here if entry.op == op]
            if op == "pressure" and not sizes:
                continue
            if len(set(sizes)) < len(sizes):
                raise ValueError(f"entries: a width of {op!r} is given twice {at}")
            if not sizes or max(sizes) < most:
                raise ValueError(
                    f"entries: none of {op!r} at the model's width {most} {at}; "
                    "profile the device again"
                )

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read and check a table.

        Raises:
            UserError: the file is missing, damaged, or no table of this version.
        """
        return read_model(path, cls, strict=True)

    @classmethod
    def find(cls, name: Path | str) -> LatencyTable:
        """The table in a file, or the shipped one of this name, as `hwnas tables list` prints it.

        Raises:
            UserError: as `load` does.
        """
        name = Path(name)
        if not name.exists() and len(name.parts) == 1 and _shipped(name.name).is_file():
            return cls.shipped(name.name)
        return cls.load(name)

    @classmethod
    def shipped(cls, name: str) -> LatencyTable:
        """The table that comes with hwnas under this name; no other file is looked at.

        Raises:
            UserError: there is none.
        """
        if Path(name).name != name or not _shipped(name).is_file():
            raise UserError(f"no table {name!r} is shipped; hwnas tables list has those that are")
        with resources.as_file(_shipped(name)) as path:
            return cls.load(path)

    def doubts(self) -> list[str]:
        """Why the table may mislead on this machine, a line each; see `checks.doubts`."""
        target = Target.parse(self.target)
        return doubts(self, describe_device(target), versions_of(target))

    def save(self, path: Path) -> None:
        """Write the table as JSON, at once."""
        write_json(path, self)

    def check_model(self, shape: Shape) -> None:
        """Raise `UserError` unless the table is of a model of these sizes."""
        mine, theirs = dict(self.model), dict(ModelSizes.of(shape))
        other = [name for name in mine if mine[name] != theirs[name]]
        if other:
            sides = [", ".join(f"{n} {_short(side[n])}" for n in other) for side in (mine, theirs)]
            raise UserError(
                f"latency table: measured for a model of {sides[0]}, this one is of {sides[1]}; "
                "profile this model or give a table of it"
            )

    def check_subnetwork(self, subnetwork: Subnetwork) -> None:
        """Raise `UserError` unless the table's model has such a subnetwork."""
        blocks, most = len(self.model.heads), (max(self.model.heads), max(self.model.ffn))
        if len(subnetwork.blocks) > blocks:
            raise UserError(
                f"subnetwork {subnetwork}: {len(subnetwork.blocks)} blocks, the table's model "
                f"has {blocks}"
            )
        for number, block in enumerate(subnetwork.blocks):
            if min(block) < 0 or (block.heads > 0) != (block.ffn > 0):
                raise UserError(
                    f"subnetwork {subnetwork}: block {number} has {block.heads} heads and FFN "
                    f"{block.ffn}; both are above 0, or both 0 where it is left out"
                )
            if block.heads > most[0] or block.ffn > most[1]:
                raise UserError(
                    f"subnetwork {subnetwork}: block {number} has {block.heads} heads and FFN "
                    f"{block.ffn}, the table's model at most {most[0]} and {most[1]}"
                )
        self.predictor().at_hidden(subnetwork.hidden)

    def check_target(self, target: Target) -> None:
        """Raise `UserError` unless the table is of this target."""
        if self.target != str(target):
            raise UserError(
                f"latency table: measured for target {self.target}, the run's is {target}; "
                "profile this target or give the table's"
            )

    def predictor(self, confidence: float | None = None) -> LatencyPredictor:
        """The additive predictor on these costs, of the latency as the target states it.

        Args:
            confidence: predict a latency that a measurement exceeds with a probability of
                1 - `confidence` only, 0.5 to below 1; by default the most likely latency.

        Raises:
            UserError: the table has no interval to be confident by.
        """
        target = Target.parse(self.target)
        at_each = [self.predictor_at(length.tokens) for length in self.lengths]
        if target.statistic == "median":
            mean = weighted(at_each, [length.share for length in self.lengths])
        else:
            number, factor = _percentile(self.lengths, 0.95)
            mean = at_each[number].scaled(factor)
        likely = replace(mean, baseline_ms=self.reference_ms)
        return likely if confidence is None else likely.scaled(self.margin(confidence))

    def margin(self, confidence: float) -> float:
        """What a prediction is multiplied by, so that so many of the measurements are below.

        Raises:
            UserError: the table has no interval, or the confidence is none.
        """
        from scipy.stats import norm

        if not 0.5 <= confidence < 1:
            raise UserError(f"confidence {confidence:g}: expected 0.5 to below 1, such as 0.95")
        if self.interval_90 is None:
            raise UserError(
                "latency table: it has no interval_90, so no confidence can be had; "
                "profile the device again"
            )
        return 1 + self.interval_90 * float(norm.ppf(confidence) / norm.ppf(0.95))

    def predictor_at(self, tokens: int, hidden: int = 0) -> LatencyPredictor:
        """The predictor of the median latency at one of the lengths, at one residual width."""
        if hidden:
            alone = self.at_hidden(hidden).predictor_at(tokens)
            return replace(alone, weights=Weights.of(self.model.shape, hidden))
        axis = Target.parse(self.target).axis
        here = [entry for entry in self.entries if entry.dims[axis] == tokens]
        reference = next(length for length in self.lengths if length.tokens == tokens)

        def curve(op: Operator, dim: str) -> Curve:
            return Curve.of({e.dims[dim]: e.ms.median for e in here if e.op == op})

        pressure = {e.dims["weights"]: e.ms.median for e in here if e.op == "pressure"}

        return LatencyPredictor(
            fixed_ms=next(entry for entry in here if entry.op == "fixed").ms.median,
            attention=curve("attention", "heads"),
            ffn=curve("ffn", "width"),
            baseline_ms=reference.reference_ms,
            pressure=Curve.of({0: 0.0, 100: 0.0} | pressure),
            weights=Weights.of(self.model.shape),
            narrower={
                part.hidden: self.predictor_at(tokens, part.hidden) for part in self.narrower
            },
        )


def stated_reference(lengths: Sequence[AtLength], target: Target) -> float:
    """The full model's latency as the target states it, from that at each length, ms."""
    if target.statistic == "median":
        return float(sum(length.share * length.reference_ms for length in lengths))
    number, factor = _percentile(lengths, 0.95)
    return lengths[number].reference_ms * factor


def _percentile(lengths: Sequence[AtLength], at: float) -> tuple[int, float]:
    """The length whose requests are at this quantile of all, and their time over the median's.

    Longer requests take longer, so all requests stand in the order of their lengths.
    """
    before = 0.0
    for length in lengths[:-1]:
        if at <= before + length.share:
            break
        before += length.share
    else:
        length = lengths[-1]
    inside = min(1.0, (at - before) / length.share)
    known = length.quantiles or {"0.5": 1.0}
    at_quantiles = np.array(sorted((float(q), f) for q, f in known.items())).T
    return lengths.index(length), float(np.interp(inside, *at_quantiles))


def json_schema() -> str:
    """The table's JSON Schema, as `latency_tables/latency-table.schema.json` holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | LatencyTable.model_json_schema(), indent=1) + "\n"


def _shipped(name: str) -> Traversable:
    return resources.files("hwnas.latency_tables") / f"{name.removesuffix('.json')}.json"


def _short(value: Any) -> str:
    """A size, or those of the blocks: `12 (6 blocks)` where all are alike."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return f"{value[0]} ({len(value)} blocks)"
    return str(list(value)) if isinstance(value, tuple) else str(value)
