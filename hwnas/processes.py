"""Several processes of one run: the first leads, the others join where there is something to train.

`torchrun --nproc-per-node 2 -m hwnas run …` starts the same run twice. Training is shared, by the
Trainer. Everything else, measuring above all, the leader does alone while the others wait; they
then find it in the run directory, which all must see. So only the leader writes there, and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

_PATIENCE = timedelta(days=7)  # of processes that wait while the leader measures or searches


def count() -> int:
    """How many processes `torchrun` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leading() -> bool:
    """Whether this process is the leader."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def leader_first() -> Iterator[None]:
    """The leader runs the body, then the others do; not to be nested."""
    if count() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    with state.main_process_first():
        yield


def alone(work: Callable[[], object]) -> None:
    """The leader does `work` while the others wait."""
    with leader_first():
        if leading():
            work()


def made_once(path: Path, work: Callable[[], object]) -> None:
    """The leader does `work`, which makes `path`, unless that is there; the others wait.

    Nobody else may look whether it is there: who comes late would find it, and not wait.
    """
    alone(lambda: None if path.exists() else work())
