"""Where the demo's real weights and data lie: inside packages, so no other network is needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hwnas.errors import UserError


def package_folder(package: str, wanted_for: str) -> Path:
    """The folder of an installed package, found without importing (running) it.

    Args:
        package: its import name.
        wanted_for: what the user asked for, for the message.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{wanted_for}: package {package} is not installed; pip install 'hwnas[demo]'"
        )
    return Path(spec.submodule_search_locations[0])
