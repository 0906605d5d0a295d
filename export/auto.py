"""The fastest way to serve a model here that still answers the same, found by trying.

Which of them is fastest nobody can tell beforehand: int8 may be slower than fp32, and the other
runtime twice as fast (DESIGN, decision 6). So every combination that this machine can run is
written and timed in turns with the exact model; then they are scored on the user's rows, the
fastest first, until one loses no more than is allowed. Slower ones are timed, but not scored.
Static int8 in OpenVINO that loses too much, but is much faster than what was chosen, is tried again
with accuracy control (`control`), which takes minutes. What was tried stays with the model, in
`export.json`.

Rows that static quantization is calibrated on are not scored.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.errors import HwnasError, UserError
from hwnas.export.compare import check_parity
from hwnas.export.control import quantize_controlled
from hwnas.export.convert import export_model
from hwnas.export.folders import RUNTIMES, folder_size_mb, served_folder
from hwnas.export.quantize import calibration, quantize_folder
from hwnas.export.verify import (
    Judged,
    Tried,
    Verification,
    for_model,
    measure_against,
    write_record,
)
from hwnas.files import replacing
from hwnas.latency.measure import settled
from hwnas.latency.target import DEVICES, PHASES, PRECISIONS, Target
from hwnas.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.export.quantize import Feed
    from hwnas.latency.measure import Paired

_CONTROLLED = "with accuracy control"
_WORTH = 0.9  # of the chosen one's time, that int8 must stay below to be tried with that
_AGAIN = 3  # of the fastest, that are timed again until they are sure
SERVED = ("openvino", "onnxruntime")  # runtimes that may be chosen
# of encoders: answers suffer, and computing is no faster; of language models: they suffer more
_NOT_TRIED = {"encode": ("int4-weights",), "prefill": ("int8-static",), "decode": ("int8-static",)}


def combinations(target: Target, runtimes: Sequence[str] = SERVED) -> list[Target]:
    """The target in every runtime and precision that this machine can run, fp32 first."""
    from hwnas.latency.runtimes import require

    found = []
    for runtime in runtimes:
        if target.device not in DEVICES[runtime]:
            continue
        for precision in PRECISIONS[runtime]:
            one = replace(target, runtime=runtime, precision=precision)
            if precision in _NOT_TRIED[target.phase] or (
                target.device != "cpu" and precision != "fp32"
            ):
                continue
            try:
                one.check_exportable(PHASES)
                require(one)
            except UserError:
                continue
            found.append(one)
    return found


def export_fastest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    target: Target,
    judged: Judged,
    *,
    max_drop: float = 1.0,
    runtimes: Sequence[str] = SERVED,
) -> Verification:
    """Write the exact folders of the model and the fastest admissible one into `out`.

    Args:
        target: the device, threads and shape; its own runtime and precision bind nothing.
        judged: rows to calibrate and score on.
        max_drop: points of the metric, in per cent, that may be lost against the exact model.
        runtimes: which may be chosen.

    Raises:
        UserError: `out` holds something already, or no runtime fits the target's device.
        HwnasError: an exact folder's logits differ from torch's, or it cannot be timed.
    """
    from hwnas.latency.runtimes import check_length

    target = for_model(target, model.config)
    check_length(model.config, target)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another --out or remove it")
    tried = combinations(target, runtimes)
    if not tried:
        raise UserError(f"target {target}: none of {', '.join(runtimes)} has {target.device}")
    with replacing(out) as staged:
        export_model(model, tokenizer, staged)
        parity = {
            name: check_parity(model, staged / name, judged.compared, target.threads)
            for name in RUNTIMES
        }
        rows = calibration(judged.calibrating, tokenizer)
        trial = _Trial(staged, judged, rows, tried[0])
        with bar("try runtimes and precisions", len(tried)) as advance:
            for one in tried:
                trial.time(one)
                advance(1)
        if tried[0] in trial.failed:
            raise HwnasError(f"{tried[0]}: the exact model fails here: {trial.failed[tried[0]]}")
        trial.time_fastest_again()
        chosen, found = trial.choose(max_drop)
        for folder in trial.folders - {served_folder(chosen), *RUNTIMES}:
            shutil.rmtree(staged / folder)
        record = Verification.timed(
            trial.paired[chosen],
            target=str(chosen),
            reference=served_folder(trial.reference),
            parity=parity,
            size_mb={n: folder_size_mb(staged / n) for n in {*RUNTIMES, served_folder(chosen)}},
            metric=judged.metric,
            max_drop=max_drop,
            tried=tuple(found),
        )
        record = write_record(staged, record)
    return record


class _Trial:
    """Combinations written, timed and scored in one folder."""

    def __init__(self, out: Path, judged: Judged, rows: Sequence[Feed], reference: Target) -> None:
        self.out = out
        self.judged = judged
        self.rows = rows  # to calibrate on
        self.reference = reference  # the exact model that all are timed beside
        self.folders: set[str] = set()
        self.paired: dict[Target, Paired] = {}
        self.failed: dict[Target, str] = {}

    def time(self, one: Target) -> None:
        """Write the combination's folder, unless it is an exact one, and time it."""
        name = served_folder(one)
        exact = self.out / served_folder(replace(one, precision="fp32"))
        try:
            if not (self.out / name).exists():
                quantize_folder(exact, self.out / name, one.precision, self.rows)
            self.folders.add(name)
            self.paired[one] = self._measure(one)
        except HwnasError:
            raise
        except Exception as error:  # quantizers raise anything; the others are still worth trying
            self.failed[one] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            shutil.rmtree(self.out / name, ignore_errors=True)
            self.folders.discard(name)

    def time_fastest_again(self) -> None:
        """Be sure of the fastest, between which a per cent may decide."""
        for one in sorted(self.paired, key=self._ratio)[:_AGAIN]:
            self.paired[one] = settled(lambda one=one: self._measure(one))  # type: ignore[misc]

    def choose(self, max_drop: float) -> tuple[Target, list[Tried]]:
        """The fastest that loses no more than allowed, and the record of all."""
        exact = self._score(self.reference)
        chosen: Target | None = None
        found = []
        for one in sorted(self.paired, key=self._ratio):
            metric = exact if one == self.reference else None
            if chosen is None and metric is None:
                metric = self._score(one)
            drop = None if metric is None else exact - metric
            if chosen is None and drop is not None and drop <= max_drop:
                chosen = one
            found.append(self._tried(one, metric, drop))
        assert chosen is not None  # the exact model itself loses nothing
        controlled = self._controllable(chosen)
        if controlled is not None:
            self._control(controlled, max_drop)
            metric = self._score(controlled)
            found.append(self._tried(controlled, metric, exact - metric, _CONTROLLED))
            if exact - metric <= max_drop and self._ratio(controlled) < self._ratio(chosen):
                chosen = controlled
        found = sorted(found, key=lambda one: one.ratio or 0.0)
        won = (chosen.runtime, chosen.precision, _CONTROLLED if chosen == controlled else "")
        found = [
            one.model_copy(update={"chosen": (one.runtime, one.precision, one.note) == won})
            for one in found
        ]
        found += [
            Tried(runtime=one.runtime, precision=one.precision, note=f"failed: {why}")
            for one, why in self.failed.items()
        ]
        return chosen, found

    def _controllable(self, chosen: Target) -> Target | None:
        """Static int8 in OpenVINO, if it lost too much and would be worth it."""
        for one in self.paired:
            served = one.runtime == self.reference.runtime == "openvino" and one.device == "cpu"
            worth = self._ratio(one) < _WORTH * self._ratio(chosen)
            if served and one.precision == "int8-static" and worth:
                return one
        return None

    def _control(self, one: Target, max_drop: float) -> None:
        """Write it again with accuracy control, and time that."""
        folder, exact = (self.out / served_folder(t) for t in (one, self.reference))
        quantize_controlled(exact, folder, self.judged, self.rows, max_drop)
        self.paired[one] = settled(lambda: self._measure(one))

    def _tried(
        self, one: Target, metric: float | None, drop: float | None, note: str = ""
    ) -> Tried:
        return Tried(
            runtime=one.runtime,
            precision=one.precision,
            ratio=self._ratio(one),
            ms=self._ratio(one) * self.paired[one].reference_ms,
            size_mb=folder_size_mb(self.out / served_folder(one)),
            metric=metric,
            drop=drop,
            note=note or ("" if metric is not None else "not scored: slower than the chosen one"),
        )

    def _ratio(self, one: Target) -> float:
        return float(self.paired[one].ratio)

    def _measure(self, one: Target) -> Paired:
        folder = self.out / served_folder(one)
        return measure_against(folder, self.out / served_folder(self.reference), one)

    def _score(self, one: Target) -> float:
        return self.judged.score(self.out / served_folder(one))
