"""Keeping OpenVINO and NNCF from reporting over the network that they are used, and what for.

They do so from `import openvino` on, unless a file in the home folder forbids it or they believe to
run in a CI job; hwnas uses no network for what its user has not named. They do without their
package that reports, so it is hidden from them. Whoever has imported OpenVINO before hwnas has it
already; then it is told to be silent while hwnas converts and quantizes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PACKAGE = "openvino_telemetry"


def hide() -> None:
    """Make the package that reports seem not installed, to what imports it from now on."""
    sys.modules.setdefault(_PACKAGE, None)  # type: ignore[arg-type]  # as import's documents say


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Nothing that OpenVINO and NNCF do meanwhile is reported."""
    if sys.modules.get(_PACKAGE) is None:
        yield
        return
    found = os.environ.get("CI")
    os.environ["CI"] = "true"  # for whoever asks first now
    reporter = _reporter()
    consent = reporter.consent if reporter is not None else None
    if reporter is not None:
        reporter.consent = False
    try:
        yield
    finally:
        if reporter is not None:
            reporter.consent = consent
        if found is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = found


def _reporter() -> Any:
    """The process's only one; None if there is none yet."""
    from openvino_telemetry import Telemetry

    try:
        return Telemetry()
    except RuntimeError:
        return None
