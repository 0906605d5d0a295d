"""The target: which runtime serves the model, on which device, at what shape; and budgets on it.

A target is written ``runtime:device[:key=value,…]``, for example
``openvino:cpu:threads=1,batch=1,seq=64,precision=int8-static`` or, for a language model,
``openvino:cpu:phase=decode,cache=512/2048,statistic=p95``. Requests of several lengths are a list
(``seq=32/64/128``, alike often), a list with shares (``seq=16*0.7/128*0.3``), or the lengths of the
user's own data (``seq=p:lengths.json``, a JSON list of token counts), which are reduced to a few. A
budget is written ``8ms``, ``12ms/token`` (to decode) or ``50%`` (of the measured baseline).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from hwnas.errors import UserError

DEVICES = {"openvino": ("cpu", "gpu"), "onnxruntime": ("cpu", "cuda"), "torch": ("cpu", "cuda")}
RUNTIMES = tuple(DEVICES)
PRECISIONS = {
    "openvino": ("fp32", "bf16", "int8-static", "int8-weights", "int4-weights"),
    "onnxruntime": ("fp32", "int8-dynamic", "int8-static"),
    "torch": ("fp32", "bf16"),
}
PHASES = ("encode", "prefill", "decode")
STATISTICS = ("median", "p95")
_WORDS = {"phase": PHASES, "statistic": STATISTICS}
_NUMBERS = ("threads", "batch")
_LENGTHS = ("seq", "cache")
_KEYS = (*_NUMBERS, *_LENGTHS, "precision", *_WORDS)
_MOST_LENGTHS = 6  # of a mix; each costs as much measuring as one
# quantiles of the user's lengths between which one length stands for all: closer where it is long
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_FROM_FILE = "p:"


class Length(NamedTuple):
    """Requests of so many tokens, and their share of all requests."""

    tokens: int
    share: float


@dataclass(frozen=True)
class Target:
    """Where and how latency is measured: one inference, or a mix of inferences of several lengths.

    `encode` and `prefill` read `(batch, seq)` token ids; `decode` reads one more token of each
    sequence after `cache` others.
    """

    runtime: str = "openvino"
    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    seq: int = 128  # the longest of `mix`, if there is one; 1 to decode
    precision: str = "fp32"
    phase: str = "encode"
    cache: int = 0  # the longest of `mix`, if there is one
    mix: tuple[Length, ...] = ()  # of seq or, to decode, of cache; empty where all are alike
    statistic: str = "median"  # with a mix, its mean over the shares

    @classmethod
    def parse(cls, spec: str) -> Target:
        """Parse ``runtime:device[:key=value,…]``.

        Raises:
            UserError: an unknown runtime, device or key, a value that is none of the key's, or
                keys that do not go together.
        """
        parts = spec.split(":", 2)
        if len(parts) < 2 or not all(parts):
            raise UserError(
                f"target {spec!r}: expected runtime:device[:key=value,...], "
                "for example openvino:cpu:threads=1,batch=1,seq=64"
            )
        runtime, device = parts[0], parts[1]
        if runtime not in RUNTIMES:
            raise UserError(
                f"target {spec!r}: unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}"
            )
        if device not in DEVICES[runtime]:
            raise UserError(
                f"target {spec!r}: unknown device {device!r}; "
                f"{runtime} has: {', '.join(DEVICES[runtime])}"
            )
        texts: dict[str, str] = {}
        for item in parts[2].split(",") if len(parts) == 3 else []:
            key, _, text = item.partition("=")
            if key not in _KEYS:
                raise UserError(f"target {spec!r}: unknown key {key!r}; known: {', '.join(_KEYS)}")
            if key in texts:
                raise UserError(f"target {spec!r}: {key} is given twice; give it once")
            texts[key] = text
        known = _WORDS | {"precision": PRECISIONS[runtime]}
        for key in known.keys() & texts.keys():
            if texts[key] not in known[key]:
                has = f"{runtime} has" if key == "precision" else "known"
                raise UserError(
                    f"target {spec!r}: unknown {key} {texts[key]!r}; {has}: {', '.join(known[key])}"
                )
        return cls(runtime, device, **_values(spec, texts))

    @property
    def points(self) -> tuple[tuple[Target, float], ...]:
        """The target at each single length of its mix, with that length's share."""
        if not self.mix:
            return ((self, 1.0),)
        alone = replace(self, mix=())
        if self.phase == "decode":
            return tuple((replace(alone, cache=tokens), share) for tokens, share in self.mix)
        return tuple((replace(alone, seq=tokens), share) for tokens, share in self.mix)

    @property
    def axis(self) -> str:
        """The key that says how long a request is: `seq`, or `cache` to decode."""
        return "cache" if self.phase == "decode" else "seq"

    @property
    def lengths(self) -> tuple[Length, ...]:
        """The mix, or the only length."""
        return self.mix or (Length(getattr(self, self.axis), 1.0),)

    def check_exportable(self, phases: Sequence[str] = ("encode",)) -> None:
        """Raise `UserError` if models can be profiled for this target, but not yet exported.

        Args:
            phases: that are served.
        """
        in_bf16 = self.precision == "bf16" and self.runtime != "openvino"
        if in_bf16 or self.phase not in phases:
            what = self.precision if self.phase in phases else f"phase={self.phase}"
            raise UserError(
                f"target {self}: {what} can be profiled, not yet exported; leave it out"
            )

    def __str__(self) -> str:
        tokens = "/".join(_length(length, self.mix) for length in self.lengths)
        shape = f"threads={self.threads},batch={self.batch},{self.axis}={tokens}"
        for key, usual in (("precision", "fp32"), ("phase", "encode"), ("statistic", "median")):
            value = getattr(self, key)
            shape += "" if value == usual else f",{key}={value}"
        return f"{self.runtime}:{self.device}:{shape}"


def reduced(tokens: Sequence[int]) -> tuple[Length, ...]:
    """A few lengths that stand for many, with their shares, ascending.

    Up to six different lengths stay as they are. Of more, those between two quantiles (0, 25, 50,
    75, 90, 100 %) become their mean, so that the mean latency is right to the first order.
    """
    ordered = sorted(tokens)
    n = len(ordered)
    if len(set(ordered)) <= _MOST_LENGTHS:
        return tuple(Length(t, ordered.count(t) / n) for t in sorted(set(ordered)))
    shares: dict[int, float] = {}
    for low, high in pairwise(_QUANTILES):
        part = ordered[round(low * n) : round(high * n)]
        if part:
            mean = round(sum(part) / len(part))
            shares[mean] = shares.get(mean, 0.0) + len(part) / n
    return tuple(Length(t, round(share, 4)) for t, share in sorted(shares.items()))


def _values(spec: str, texts: dict[str, str]) -> dict[str, Any]:
    """The fields of the target that its keys give."""
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key in _NUMBERS:
            values[key] = _number(spec, key, text)
        elif key not in _LENGTHS:
            values[key] = text
    decode = values.get("phase") == "decode"
    if "cache" in texts and not decode:
        raise UserError(f"target {spec!r}: cache is for phase=decode only; leave it out")
    if "seq" in texts and decode:
        raise UserError(f"target {spec!r}: phase=decode reads one token; give cache, not seq")
    if decode and "cache" not in texts:
        raise UserError(f"target {spec!r}: phase=decode needs cache, such as cache=512")
    if decode:
        values["seq"] = 1
    for key in _LENGTHS:
        if key in texts:
            mix = _mix(spec, key, texts[key])
            values[key] = mix[-1].tokens
            if len(mix) > 1:
                values["mix"] = mix
    return values


def _mix(spec: str, key: str, text: str) -> tuple[Length, ...]:
    """Ascending lengths with their shares, of `64`, `32/64`, `16*0.7/128*0.3` or `p:FILE`."""
    where = f"target {spec!r}: {key}"
    if text.startswith(_FROM_FILE):
        return reduced(_from_file(where, Path(text.removeprefix(_FROM_FILE))))
    items = [item.partition("*") for item in text.split("/")]
    tokens = [_number(spec, key, number) for number, _, _ in items]
    if len(set(tokens)) < len(tokens):
        raise UserError(f"{where}={text!r} names a length twice; name it once")
    if len(tokens) > _MOST_LENGTHS:
        raise UserError(f"{where}={text!r} has {len(tokens)} lengths; {_MOST_LENGTHS} at most")
    given = [share for _, star, share in items if star]
    if not given:
        return tuple(Length(t, 1 / len(tokens)) for t in sorted(tokens))
    shares = [_share(where, share) for share in given]
    if len(shares) < len(tokens) or abs(sum(shares) - 1) > 0.01:
        raise UserError(f"{where}={text!r}: give every length a share, 1 in all, as in 16*.7/64*.3")
    return tuple(Length(t, s) for t, s in sorted(zip(tokens, shares, strict=True)))


def _from_file(where: str, path: Path) -> list[int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{where}: {path} is not JSON; expected a list of token counts") from None
    if not isinstance(found, list) or not found:
        raise UserError(f"{where}: {path} is no list of token counts, such as [12, 31, 9]")
    for number, tokens in enumerate(found):
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens <= 65536:
            raise UserError(
                f"{where}: {path}: entry {number} is {tokens!r}, not a number from 1 to 65536"
            )
    return found


def _share(where: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"{where}: share {text!r} is not above 0 and at most 1")
    return share


def _length(length: Length, mix: tuple[Length, ...]) -> str:
    alike = len({round(other.share, 6) for other in mix}) < 2
    return str(length.tokens) if alike else f"{length.tokens}*{length.share:g}"


def _number(spec: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 65536):
        raise UserError(f"target {spec!r}: {key}={text!r} is not a whole number from 1 to 65536")
    return int(text)


@dataclass(frozen=True)
class Budget:
    """A latency budget: absolute milliseconds, or a fraction of the measured baseline."""

    text: str
    ms: float | None = None
    fraction: float | None = None
    per_token: bool = False  # written as such: it is of decoding

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse ``8ms``, ``12ms/token`` or ``50%``.

        Raises:
            UserError: not a positive number with a unit, or 100 % and more.
        """
        stripped = text.strip()
        unit = next((u for u in ("ms/token", "ms", "%") if stripped.endswith(u)), None)
        try:
            number = float(stripped.removesuffix(unit)) if unit else math.nan
        except ValueError:
            number = math.nan
        if unit is None or not math.isfinite(number):
            raise UserError(f"budget {text!r}: expected milliseconds like 8ms or a share like 50%")
        if number <= 0:
            raise UserError(f"budget {text!r}: must be above zero")
        if unit == "%":
            if number >= 100:
                raise UserError(f"budget {text!r}: must be below 100% of the baseline")
            return cls(stripped, fraction=number / 100)
        return cls(stripped, ms=number, per_token=unit == "ms/token")

    def check_phase(self, target: Target) -> None:
        """Raise `UserError` if it is of each token, and the target's latency is not."""
        if self.per_token and target.phase != "decode":
            raise UserError(
                f"budget {self.text}: is of each token that is written; give a target with "
                "phase=decode, or leave /token out"
            )

    def in_ms(self, baseline_ms: float) -> float:
        """The budget in milliseconds, given the baseline's measured latency."""
        if self.ms is not None:
            return self.ms
        assert self.fraction is not None
        return self.fraction * baseline_ms

    @property
    def folder(self) -> str:
        """The budget as a folder name: ``50pct``, ``8ms``."""
        plain = self.text.removesuffix("/token") if self.per_token else self.text
        return plain.replace("%", "pct").replace(" ", "")
