"""Evolution: within the budget, no worse than its seeds, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from problems import SteppedCost, loss_of, space_of

from hwnas.errors import BudgetError
from hwnas.search.evolution import Evaluated, evolve, finalists
from hwnas.search.seeds import seeds
from hwnas.subnetwork import Subnetwork

DEPTH, HEADS, FFN = 6, 12, 1536
SPACE = space_of(DEPTH, HEADS, FFN, 32)
LOSS = loss_of(DEPTH, HEADS, FFN, seed=3)
COST = SteppedCost()
FULL_MS = COST.predict(SPACE.largest)


def true_loss(subnetwork: Subnetwork) -> float:
    """What the additive guess does not know: neighbours that are both narrow lose more."""
    additive = sum(LOSS.of(i, b) for i, b in enumerate(subnetwork.blocks))
    narrow = np.array([1 - b.ffn / FFN for b in subnetwork.blocks])
    return float(additive + (narrow[1:] * narrow[:-1]).sum())


def run(seed: int = 0, evaluations: int = 60, share: float = 0.5) -> list[Evaluated]:
    return evolve(SPACE, LOSS, COST, share * FULL_MS, true_loss, evaluations=evaluations, seed=seed)


def test_all_candidates_are_in_the_space_within_the_budget_and_distinct() -> None:
    found = run()
    assert len(found) == 60
    assert all(c.predicted_ms <= 0.5 * FULL_MS * (1 + 1e-9) for c in found)
    assert all(c.subnetwork in SPACE for c in found)
    assert len({c.subnetwork for c in found}) == len(found)


def test_seeds_come_first_and_keep_their_kind() -> None:
    starts = seeds(SPACE, LOSS, COST, 0.5 * FULL_MS)
    found = run()
    assert [(c.kind, c.subnetwork) for c in found[: len(starts)]] == [
        (s.kind, s.subnetwork) for s in starts
    ]
    assert {c.kind for c in found[len(starts) :]} == {"evolved"}


def test_improves_on_its_seeds() -> None:
    found = run(evaluations=150)
    of_seeds = min(c.signal for c in found if c.kind != "evolved")
    assert min(c.signal for c in found) < of_seeds


def test_beats_random_structures_of_the_same_cost_and_number() -> None:
    import random

    rng = random.Random(0)
    sampled = []
    while len(sampled) < 60:
        subnetwork = SPACE.sample(rng, drop=0.1)
        if COST.predict(subnetwork) <= 0.5 * FULL_MS:
            sampled.append(true_loss(subnetwork))
    assert min(c.signal for c in run()) < min(sampled)


def test_same_seed_same_candidates_other_seed_others() -> None:
    assert run(seed=1) == run(seed=1)
    assert run(seed=1) != run(seed=2)


def test_tells_of_each_candidate_as_it_is_evaluated() -> None:
    told: list[Evaluated] = []
    counts: list[int] = []

    def evaluate(subnetwork: Subnetwork) -> float:
        counts.append(len(told))
        return true_loss(subnetwork)

    found = evolve(
        SPACE,
        LOSS,
        COST,
        0.4 * FULL_MS,
        evaluate,
        evaluations=25,
        seed=0,
        on_candidate=told.append,
    )
    assert told == found
    assert counts == list(range(25))


def test_a_small_space_is_used_up_without_waiting_for_more() -> None:
    tiny = space_of(2, 2, 64, 32)
    loss = loss_of(2, 2, 64, seed=0)
    full = COST.predict(tiny.largest)
    found = evolve(tiny, loss, COST, 0.9 * full, lambda s: 1.0, evaluations=60, seed=0)
    assert 0 < len(found) <= tiny.size()


@pytest.mark.parametrize("evaluations", [1, 2, 3, 7])
def test_few_evaluations(evaluations: int) -> None:
    assert len(run(evaluations=evaluations)) == evaluations


def test_an_impossible_budget_is_said() -> None:
    with pytest.raises(BudgetError, match="fastest"):
        run(share=0.001)


def test_finalists_are_the_best_of_each_kind_within_the_budget() -> None:
    found = run()
    best = finalists(found, 0.5 * FULL_MS)
    assert [c.subnetwork.depth == DEPTH for c in best] == [True, False]
    widths, depth = best
    assert widths.signal == min(c.signal for c in found if c.subnetwork.depth == DEPTH)
    assert depth.signal == min(c.signal for c in found if c.subnetwork.depth < DEPTH)


def test_finalists_leave_out_what_is_over_the_budget() -> None:
    slow = Evaluated("exact", SPACE.largest, 0.0, FULL_MS)
    assert finalists([slow], 0.5 * FULL_MS) == []
