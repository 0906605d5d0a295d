"""Train, validation and test rows that never mix, chosen and ordered by a hash of the text.

Two rows whose normalised texts are equal (retweets, a link or a name exchanged) are
near-duplicates and never stand in two splits. The hash decides split and order, so both are
fixed for ever: they depend on neither the order of the file, nor a seed, nor the other rows.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from hwnas.progress import bar
from hwnas.tasks.rows import Row

HELD_OUT = 0.1  # the share of the training rows that is cut out for a missing split
_STRIDE = 1000  # rows between two moves of the progress bar
# a split wins near-duplicates from those after it
_PRIORITY = ("test", "validation", "train")

_LINK = re.compile(r"(?:https?://|www\.)\S+")
_MENTION = re.compile(r"(?:\brt\W*)?(?<!\w)@\w+")  # with the "RT" of a retweet


class _Signs(dict[int, str]):
    """A table for `str.translate` that makes signs spaces, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        # punctuation, symbols, controls; not marks, which are parts of letters in Hindi
        self[code] = " " if unicodedata.category(chr(code))[0] in "PSC" else chr(code)
        return self[code]


_SIGNS = _Signs()


def normalise(text: str) -> str:
    """`text` in lower case, without links, mentions, punctuation, symbols and repeated spaces.

    A text of nothing else (":)") keeps its symbols.
    """
    lower = html.unescape(text).lower()
    words = _MENTION.sub(" ", _LINK.sub(" ", lower)).translate(_SIGNS)
    return " ".join(words.split()) or " ".join(lower.split())


def key(texts: Sequence[str]) -> str:
    """What near-duplicates have in common: the normalised text, or both of a pair."""
    return "\n".join(normalise(text) for text in texts)


def position(row_key: str) -> float:
    """The hash of a key as a number in [0, 1)."""
    digest = hashlib.blake2b(row_key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


Identity = Callable[[Sequence[str]], Sequence[str]]


def separate(
    given: Mapping[str, Sequence[Row]], identity: Identity = tuple
) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of `train`, `validation` and `test`, in the order of their hash, and notes.

    Given splits stay as they are, but rows whose near-duplicate stands in a held-out split are
    dropped: test wins over validation, validation over train. A missing held-out split is cut
    from `train`: the tenth of the hashes that is its own.

    Args:
        given: rows of `train`, and of `validation` and `test` if they are separate sources.
        identity: those of a row's texts by which it is a near-duplicate of another.
    """
    splits: dict[str, list[tuple[float, str, Row]]] = {}
    notes: list[str] = []
    taken: set[str] = set()
    for split in _PRIORITY:
        if split not in given:
            continue
        placed = _placed(given[split], split, identity)
        splits[split] = sorted(item for item in placed if item[1] not in taken)
        dropped = len(placed) - len(splits[split])
        if dropped:
            notes.append(f"{dropped} near-duplicates of held-out rows were dropped from {split}")
        taken |= {row_key for _, row_key, _ in placed}
    for i, split in enumerate(_PRIORITY[:2]):
        if split not in given:
            low, high = i * HELD_OUT, (i + 1) * HELD_OUT
            splits[split] = [item for item in splits["train"] if low <= item[0] < high]
            splits["train"] = [item for item in splits["train"] if not low <= item[0] < high]
    contradictions = _contradictions((row for items in splits.values() for row in items), identity)
    if contradictions:
        notes.append(
            f"{contradictions} texts occur with more than one label; all their rows are kept"
        )
    return {s: [row for *_, row in splits[s]] for s in ("train", "validation", "test")}, notes


def _placed(rows: Sequence[Row], split: str, identity: Identity) -> list[tuple[float, str, Row]]:
    """Every row with its place in the order and its key."""
    placed = []
    with bar(f"Splitting {split}", len(rows)) as advance:
        for start in range(0, len(rows), _STRIDE):
            for row in rows[start : start + _STRIDE]:
                row_key = key(identity(row.texts))
                placed.append((position(row_key), row_key, row))
            advance(min(_STRIDE, len(rows) - start))
    return placed


def _contradictions(items: Iterable[tuple[float, str, Row]], identity: Identity) -> int:
    labels: dict[str, set[str]] = defaultdict(set)
    for _, row_key, row in items:
        whole = identity(row.texts) == row.texts
        labels[row_key if whole else key(row.texts)].add(row.label)
    return sum(len(names) > 1 for names in labels.values())
