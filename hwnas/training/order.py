"""The order in which training sees its examples: fixed by the seed, batches of like length.

The order is a plain list of row numbers for the whole training, so an interrupted run resumes
at the same batch, and sentences of like length share a batch, which saves the padding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_POOL = 50  # batches sorted by length together: little padding, and still well mixed


def training_order(lengths: Sequence[int], batch: int, steps: int, seed: int) -> list[int]:
    """Row numbers for `steps` batches of `batch` rows, as many passes over the data as that takes.

    Args:
        lengths: the length of each row in tokens.
    """
    rng = random.Random(seed)
    rows: list[int] = []
    while len(rows) < steps * batch:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        rows += epoch
    rows = rows[: steps * batch]
    batches: list[list[int]] = []
    for at in range(0, len(rows), _POOL * batch):
        pool = sorted(rows[at : at + _POOL * batch], key=lambda row: (lengths[row], row))
        batches += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    # the pool's leftovers are full batches too, since steps * batch is a multiple of batch
    rng.shuffle(batches)
    return [row for rows_of_batch in batches for row in rows_of_batch]
