"""Splits that never mix: near-duplicates stay together, and the hash alone decides."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.tasks.rows import Row
from hwnas.tasks.splits import key, normalise, position, separate

SPLITS = ("train", "validation", "test")


def rows(texts: Iterable[str], label: str = "x") -> list[Row]:
    return [Row((text,), label, i) for i, text in enumerate(texts)]


def keys(split: Iterable[Row]) -> set[str]:
    return {key(row.texts) for row in split}


@pytest.mark.parametrize(
    "text",
    [
        "What a day!",
        "what a DAY",
        "  what   a\tday … ",
        "What a day http://t.co/iCGDaHqtES",
        "RT @someone: What a day!",
        "@a @b what a day www.example.org/x?y=1",
        "“What a day” #",
        "What a day &gt;&gt; @c",
    ],
)
def test_near_duplicates_have_one_normal_form(text: str) -> None:
    assert normalise(text) == "what a day"


def test_what_tells_texts_apart_is_kept() -> None:
    assert normalise("me@example.org and C3PO, 50%") == "me example org and c3po 50"
    assert normalise("हिन्दी") == "हिन्दी"
    assert normalise("Straße") == "straße"
    assert normalise(":)") == ":)" and normalise(":(") == ":("
    assert key(["a b", "c"]) != key(["a", "b c"])


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert position("what a day") == 0.22886895622806117
    assert position("") == 0.8931675160897388


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="abC !#@", max_size=6), max_size=60),
    st.sets(st.sampled_from(["validation", "test"])),
    st.randoms(use_true_random=False),
)
def test_every_row_stands_in_one_split_apart_from_its_near_duplicates(
    texts: list[str], held_out: set[str], rng: random.Random
) -> None:
    sources = ["train", *sorted(held_out)]
    sets: dict[str, list[Row]] = {source: [] for source in sources}
    for row in rows(texts):
        sets[rng.choice(sources)].append(row)

    parts, _ = separate(sets)

    assert tuple(parts) == SPLITS
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not keys(parts[one]) & keys(parts[other])
    ids = [row.id for split in SPLITS for row in parts[split]]
    assert len(set(ids)) == len(ids)
    assert len(ids) == len(texts) or held_out, "without given splits, nothing is dropped"
    if "test" in held_out:
        assert sorted(parts["test"]) == sorted(sets["test"]), "test wins over the others"


def test_the_split_depends_on_neither_order_nor_other_rows() -> None:
    whole = rows(f"text number {i}" for i in range(2000))
    parts, notes = separate({"train": whole})
    assert notes == []
    assert 0.08 < len(parts["test"]) / 2000 < 0.12
    assert 0.08 < len(parts["validation"]) / 2000 < 0.12

    shuffled = random.Random(1).sample(whole, len(whole))
    assert separate({"train": shuffled})[0] == parts

    half, _ = separate({"train": whole[::2]})
    for split in SPLITS:
        assert half[split] == [row for row in parts[split] if row.id % 2 == 0]


def test_the_order_is_shuffled() -> None:
    parts, _ = separate({"train": rows(f"text number {i}" for i in range(2000))})
    ids = [row.id for row in parts["train"]]
    early = sum(i < 1000 for i in ids[: len(ids) // 2])
    assert 0.4 < early / (len(ids) // 2) < 0.6


def test_given_splits_stay_and_lose_only_near_duplicates_of_those_before() -> None:
    given_splits = {
        "train": rows(["a b", "A, b!", "c", "d"]),
        "validation": rows(["c", "e", "f"]),
        "test": rows(["f", "g"]),
    }
    parts, notes = separate(given_splits)
    assert {split: keys(parts[split]) for split in SPLITS} == {
        "train": {"a b", "d"},
        "validation": {"c", "e"},
        "test": {"f", "g"},
    }
    assert len(parts["train"]) == 3, "near-duplicates within a split stay"
    assert notes == [
        "1 near-duplicates of held-out rows were dropped from validation",
        "1 near-duplicates of held-out rows were dropped from train",
    ]


def test_contradicting_labels_are_noted() -> None:
    both = [*rows(["same", "other"], "good"), *rows(["Same!"], "bad")]
    _, notes = separate({"train": both})
    assert notes == ["1 texts occur with more than one label; all their rows are kept"]
