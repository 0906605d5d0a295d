"""The front's search: what it measures, and that ours needs few evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from problems import loss_of, space_of

from hwnas.errors import BudgetError, UserError
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.search.evolution import Evaluated
from hwnas.search.front import FrontProblem, front, hypervolume, search_front
from hwnas.search.guided import _AIMED, expected_gains, starts
from hwnas.search.rivals import SEARCHERS, require_algorithm
from hwnas.search.surrogate import Surrogate
from hwnas.subnetwork import Subnetwork, genomes

DEPTH, HEADS, FFN = 6, 12, 1536
SPACE = space_of(DEPTH, HEADS, FFN, 32)
LOSS = loss_of(DEPTH, HEADS, FFN, seed=3)
PREDICTOR = LatencyPredictor(
    fixed_ms=0.3,
    attention=Curve.of({1: 0.2, 6: 0.6, 12: 1.2}),
    ffn=Curve.of({32: 0.1, 768: 0.9, 1536: 1.7}),
    baseline_ms=0.3 + DEPTH * 2.9,
)
WORST = 20.0
PROBLEM = FrontProblem.of(SPACE, LOSS, PREDICTOR, WORST)


def error(subnetwork: Subnetwork) -> float:
    """Per cent of wrong answers: the additive guess, and what it does not know.

    Neighbours that are both narrow lose more, and early blocks matter more than it says.
    """
    additive = sum(LOSS.of(i, b) * (1.5 - i / DEPTH) for i, b in enumerate(subnetwork.blocks))
    narrow = np.array([1 - b.ffn / FFN for b in subnetwork.blocks])
    lost = 0.8 * additive + float((narrow[1:] * narrow[:-1]).sum())
    return 10 + 40 * (1 - float(np.exp(-lost / 10)))


def searched(name: str, evaluations: int, seed: int) -> list[Evaluated]:
    searcher = SEARCHERS[name](PROBLEM, evaluations, seed)
    return search_front(PROBLEM, searcher, lambda all_: [error(s) for s in all_], evaluations)


def at(ms: float, signal: float) -> Evaluated:
    return Evaluated("", SPACE.largest, signal, ms)


def test_the_range_is_that_of_the_space_or_narrower() -> None:
    assert PROBLEM.least_ms == pytest.approx(0.6)  # one block at its narrowest
    assert PROBLEM.most_ms == pytest.approx(PREDICTOR.baseline_ms)
    narrower = FrontProblem.of(SPACE, LOSS, PREDICTOR, WORST, least_ms=3.0, most_ms=9.0)
    assert (narrower.least_ms, narrower.most_ms) == (3.0, 9.0)
    with pytest.raises(BudgetError, match=r"no structure between 0 and 0.5 ms; the fastest"):
        FrontProblem.of(SPACE, LOSS, PREDICTOR, WORST, most_ms=0.5)
    with pytest.raises(BudgetError, match=r"no structure between 9 and 3 ms"):
        FrontProblem.of(SPACE, LOSS, PREDICTOR, WORST, least_ms=9.0, most_ms=3.0)


def test_front_and_hypervolume() -> None:
    span = PROBLEM.most_ms - PROBLEM.least_ms
    quarter, half = (PROBLEM.least_ms + share * span for share in (0.25, 0.5))
    good, cheap, beaten, useless = (
        at(half, WORST / 4),
        at(quarter, WORST / 2),
        at(half, WORST / 2),
        at(quarter, WORST * 2),
    )
    assert front([beaten, good, useless, cheap]) == [cheap, good]
    # by hand: from 1/4 on half of the height, from 1/2 on a quarter more
    expected = 0.75 * 0.5 + 0.5 * 0.25
    assert hypervolume(PROBLEM, [beaten, good, cheap]) == pytest.approx(expected)
    assert hypervolume(PROBLEM, [good, cheap, useless]) == pytest.approx(expected)
    assert hypervolume(PROBLEM, [useless]) == hypervolume(PROBLEM, []) == 0


def test_what_is_known_for_sure_gains_what_it_adds_to_the_hypervolume() -> None:
    rng = np.random.default_rng(0)
    found = [at(*pair) for pair in zip(rng.uniform(1, 17, 9), rng.uniform(2, 25, 9), strict=True)]
    unseen = [
        at(*pair) for pair in zip(rng.uniform(1, 17, 40), rng.uniform(2, 25, 40), strict=True)
    ]
    box = (PROBLEM.most_ms - PROBLEM.least_ms) * WORST
    gains = expected_gains(
        PROBLEM,
        found,
        np.array([c.predicted_ms for c in unseen]),
        np.log([c.signal for c in unseen]),
        np.zeros(40),
    )
    added = [
        box * (hypervolume(PROBLEM, [*found, c]) - hypervolume(PROBLEM, found)) for c in unseen
    ]
    assert gains == pytest.approx(added)
    assert max(added) > 0


def test_at_an_aim_being_better_counts_though_the_volume_gains_nothing() -> None:
    aimed = replace(PROBLEM, most_ms=10.0, aims=(5.0, 10.0))
    found = [at(4.0, 12.0), at(8.0, 8.0)]
    unseen = np.array([10.0, 5.0, 5.001, 8.0])
    signals = np.log([6.0, 10.0, 10.0, 8.0])

    def gains(problem: FrontProblem) -> list[float]:
        return list(expected_gains(problem, found, unseen, signals, np.zeros(4)))

    weight = _AIMED * (10.0 - PROBLEM.least_ms) / 2
    area = gains(replace(aimed, aims=()))
    assert area == pytest.approx([0, 3 * 2, 2.999 * 2, 0])
    # 2 below the best within 10; 2 below the best within 5, and above what is within 10
    assert gains(aimed) == pytest.approx([2 * weight, 6 + 2 * weight, area[2], 0])


def test_where_the_constant_answer_is_the_best_that_counts_all_do() -> None:
    hopeless = FrontProblem.of(SPACE, LOSS, PREDICTOR, worst=1e-6)
    found = search_front(
        hopeless, SEARCHERS["guided"](hopeless, 50, 0), lambda all_: [error(s) for s in all_], 50
    )
    assert hypervolume(PROBLEM, found) > 0.9 * hypervolume(PROBLEM, searched("guided", 50, 0))


def test_doubt_is_a_chance() -> None:
    found, unseen = [at(5.0, 10.0)], np.array([5.0])
    sure, doubtful = (
        expected_gains(PROBLEM, found, unseen, np.log([10.0]), np.array([deviation]))[0]
        for deviation in (0.0, 0.3)
    )
    assert sure == pytest.approx(0, abs=1e-9) and doubtful > 0


def test_starts_span_the_range_and_fit_it() -> None:
    found = starts(PROBLEM, 16)
    ms = np.array([PREDICTOR.predict(s) for s in found])
    assert len(set(found)) == 16 and all(s in SPACE for s in found)
    share = (ms - PROBLEM.least_ms) / (PROBLEM.most_ms - PROBLEM.least_ms)
    assert share.min() < 0.3 and share.max() == pytest.approx(1)
    assert {s.depth for s in found} > {DEPTH}
    assert all(len(set(s.blocks)) == 1 for s in found[:8])
    proven = starts(PROBLEM, 16, alike=0)
    assert len(set(proven)) == 16 and set(found[8:]) <= set(starts(PROBLEM, 64, alike=0))


def test_the_surrogate_learns_what_the_additive_guess_does_not_know() -> None:
    found = [
        Evaluated("", s, error(s), PREDICTOR.predict(s))
        for s in (*starts(PROBLEM, 40), *(c.subnetwork for c in searched("random", 80, 5)))
    ]
    unseen = [c.subnetwork for c in searched("random", 60, 6)]
    true = np.log([error(s) for s in unseen])
    mean, deviation = Surrogate(PROBLEM, found, 0).predict(genomes(unseen))
    additive = PROBLEM.additive_loss(genomes(unseen))
    assert np.corrcoef(mean, true)[0, 1] > np.corrcoef(additive, true)[0, 1]
    # nine of ten within 1.64 standard deviations, if these say what they mean
    assert np.mean(np.abs(mean - true) < 1.64 * deviation) > 0.6


def test_a_rival_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_algorithm("guided")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_algorithm("nsga2")
    with pytest.raises(UserError, match=r"search.algorithm: tpe is Optuna's; pip install optuna"):
        require_algorithm("tpe")


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_same_seed_same_archive_and_all_of_it_in_the_space(name: str) -> None:
    if name in ("tpe", "nsga3"):
        pytest.importorskip("optuna", reason="a sampler of Optuna's")
    found = searched(name, 30, seed=1)
    assert len({c.subnetwork for c in found}) == len(found) == 30
    assert all(c.subnetwork in SPACE for c in found)
    assert all(c.predicted_ms == PREDICTOR.predict(c.subnetwork) for c in found)
    assert searched(name, 30, seed=1) == found
    if name != "exact":
        assert searched(name, 30, seed=2) != found


def test_ours_needs_a_tenth_of_plain_nsga2s_evaluations() -> None:
    ours, plain = (
        [hypervolume(PROBLEM, searched(name, n, seed)) for seed in range(3)]
        for name, n in (("guided", 50), ("nsga2", 500))
    )
    assert np.median(ours) >= np.median(plain)


def test_looking_pays_beside_the_exact_answers_alone() -> None:
    ours, exact = (hypervolume(PROBLEM, searched(name, 50, seed=0)) for name in ("guided", "exact"))
    assert ours > exact


def test_an_evaluation_is_asked_for_once_and_none_beyond_the_limit() -> None:
    asked: list[Subnetwork] = []

    def evaluate(all_: Sequence[Subnetwork]) -> list[float]:
        asked.extend(all_)
        return [error(s) for s in all_]

    batches: list[int] = []
    found = search_front(
        PROBLEM,
        SEARCHERS["nsga2"](PROBLEM, 83, 0),
        evaluate,
        83,
        on_batch=lambda batch: batches.append(len(batch)),
    )
    assert len(asked) == len(set(asked)) == len(found) == sum(batches) == 83


def test_a_small_space_is_used_up() -> None:
    space = space_of(2, 2, 64, 32)
    loss = loss_of(2, 2, 64, seed=0)
    problem = FrontProblem.of(space, loss, PREDICTOR, 50.0)
    for name in ("guided", "random", "nsga2", "local"):
        found = search_front(
            problem, SEARCHERS[name](problem, 100, 0), lambda all_: [1.0] * len(all_), 100
        )
        assert len({c.subnetwork for c in found}) == len(found)
        # all but what has no block left; the others breed from what is alike here, and end
        whole = space.size() - 1
        assert len(found) == whole if name in ("guided", "random") else 1 < len(found) <= whole
