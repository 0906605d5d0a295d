"""Timing in pairs: right under a drifting clock, and refused where nothing can be timed."""

from __future__ import annotations

import time

import pytest

from hwnas.latency.measure import (
    Paired,
    clock_of,
    confirmed,
    in_turns,
    time_pairs,
)
from hwnas.latency.target import Target


class Machine:
    """A clock, and inferences that move it; every inference slows the next by `drift`."""

    def __init__(self, drift: float = 0.0) -> None:
        self.seconds = 0.0
        self.pace = 1.0
        self.drift = drift
        self.calls: dict[float, int] = {}

    def clock(self) -> float:
        return self.seconds

    def inference(self, ms: float) -> object:
        self.calls[ms] = self.calls.get(ms, 0) + 1
        self.seconds += ms / 1e3 * self.pace
        self.pace *= 1 + self.drift
        return None


@pytest.mark.parametrize("drift", [0.0, 0.002, -0.002])
def test_ratio_survives_drift(drift: float) -> None:
    machine = Machine(drift)
    paired = time_pairs(
        lambda: machine.inference(6.0),
        lambda: machine.inference(20.0),
        pairs=9,
        clock=machine.clock,
    )
    assert paired.ratio == pytest.approx(0.3, rel=1e-3)
    assert paired.samples == 9
    assert paired.p10_ms <= paired.ms <= paired.p90_ms
    if not drift:
        assert (paired.ms, paired.reference_ms) == (pytest.approx(6), pytest.approx(20))
        assert paired.ratio_spread == pytest.approx(0)


def test_short_inferences_are_timed_in_bursts() -> None:
    machine = Machine()
    paired = time_pairs(
        lambda: machine.inference(0.1),
        lambda: machine.inference(5.0),
        pairs=4,
        clock=machine.clock,
    )
    assert paired.ms == pytest.approx(0.1)
    assert paired.ratio == pytest.approx(0.02)
    assert machine.calls[0.1] >= 4 * 20
    assert machine.calls[5.0] < 4 * 20


def test_no_pairs() -> None:
    with pytest.raises(ValueError, match="pairs=0"):
        time_pairs(lambda: None, lambda: None, pairs=0)


def test_processor_time_where_one_thread_computes() -> None:
    assert clock_of(Target(threads=1)) is time.process_time
    assert clock_of(Target(threads=2)) is time.perf_counter
    assert clock_of(Target("torch", "cuda")) is time.perf_counter


def test_compilations_take_turns() -> None:
    ran: list[int] = []
    infer = in_turns([lambda i=i: ran.append(i) for i in range(3)])  # type: ignore[misc]
    assert ran == [0, 1, 2]  # each is warm before it counts
    for _ in range(4):
        infer()
    assert ran[3:] == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("ratios", "counts"),
    [([0.49], 0.49), ([0.53, 0.51, 0.49], 0.51), ([0.53, 0.49, 0.48], 0.49), ([0.6] * 3, 0.6)],
)
def test_a_miss_is_confirmed_before_it_counts(ratios: list[float], counts: float) -> None:
    left = iter(ratios)

    def measure() -> Paired:
        return Paired(next(left), 0.01, 10, 9, 11, 20, 5)

    assert confirmed(measure, limit=0.5).ratio == counts
    assert next(left, None) is None
