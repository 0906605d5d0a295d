"""Timing in pairs: right under a drifting clock, and refused where nothing can be timed."""

from __future__ import annotations

import time

import pytest

from hwnas.latency.measure import (
    Paired,
    Patience,
    Turns,
    as_stated,
    clock_of,
    patience_for,
    quantile,
    settled,
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
    # runs that warm the caches are not as many for both, so a sample is not quite in the middle
    assert paired.ratio == pytest.approx(0.3, rel=0.006 if drift else 1e-9)
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
    assert clock_of(Target(statistic="p95")) is time.perf_counter


def test_compilations_take_turns() -> None:
    ran: list[int] = []
    infer = Turns([lambda i=i: ran.append(i) for i in range(3)])  # type: ignore[misc]
    assert ran == [0, 1, 2]  # each is warm before it counts
    for _ in range(4):
        infer.prepare()  # before each sample, which may be of several runs
        infer()
        infer()
    assert ran[3:] == [1, 1, 2, 2, 0, 0, 1, 1]


class Cached(Machine):
    """A machine whose networks are slow until they have run a few times after another one."""

    def __init__(self, cold: float, runs: int) -> None:
        super().__init__()
        self.cold, self.runs = cold, runs
        self.last, self.since = 0.0, 0

    def inference(self, ms: float) -> object:
        self.since = self.since + 1 if ms == self.last else 0
        self.last = ms
        left = max(0, self.runs - self.since) / self.runs
        return super().inference(ms * (1 + self.cold * left))


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_caches_are_warm_when_it_counts(runs: int) -> None:
    machine = Cached(0.5, runs)
    paired = time_pairs(
        lambda: machine.inference(3.0), lambda: machine.inference(4.0), pairs=4, clock=machine.clock
    )
    assert paired.ms == pytest.approx(3.0, rel=0.03)
    assert paired.ratio == pytest.approx(0.75, rel=0.03)


def test_slow_pairs_stop_in_time() -> None:
    machine = Machine()
    slow, fast = lambda: machine.inference(9.0), lambda: machine.inference(5.0)
    assert time_pairs(slow, fast, pairs=20, clock=machine.clock, seconds=0.0).samples == 3
    assert time_pairs(slow, fast, pairs=2, clock=machine.clock, seconds=0.0).samples == 2


def test_what_an_inference_needs_is_not_timed() -> None:
    machine = Machine()

    class Decoding:
        def prepare(self) -> None:
            machine.inference(100.0)

        def __call__(self) -> object:
            return machine.inference(5.0)

    paired = time_pairs(Turns([Decoding()]), Decoding(), pairs=4, clock=machine.clock)
    assert (paired.ms, paired.reference_ms) == (pytest.approx(5.0), pytest.approx(5.0))


def spin(ms: float) -> float:
    end = time.process_time() + ms / 1e3
    while time.process_time() < end:
        pass
    return ms


class SharedProcessor:
    """Stands for `time`, where another program may have the processor until `gone`, in seconds."""

    def __init__(self) -> None:
        self.wall = self.processor = self.gone = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.processor

    def sleep(self, seconds: float) -> None:
        self.wall += seconds

    def spin(self, ms: float) -> None:
        """Compute; as long as there is another program, it has the processor most of the time."""
        if self.wall < self.gone:
            self.wall += 4 * ms / 1e3
        self.wall += ms / 1e3
        self.processor += ms / 1e3


def test_pairs_are_put_off_until_other_programs_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SharedProcessor()
    monkeypatch.setattr("hwnas.latency.measure.time", here)
    calls = 0

    def reference() -> None:
        nonlocal calls
        calls += 1
        if calls == 60:
            here.gone = here.wall + 0.3
        here.spin(1.0)

    patience = Patience(computed=1.0)
    clock = here.perf_counter
    time_pairs(lambda: here.spin(2.0), reference, pairs=12, clock=clock, patience=patience)
    assert calls > 60
    assert 0.1 <= patience.waited <= 0.7


def test_patience_ends_where_other_programs_stay() -> None:
    def asleep() -> float:
        time.sleep(0.05)
        return 1.0

    patience = Patience()
    assert patience.interrupted(lambda: spin(20.0)) == (20.0, False)
    assert patience.interrupted(asleep) == (1.0, True)
    assert patience.wait()
    assert not patience.wait()


def test_patience_is_for_times_that_others_spoil() -> None:
    cpu = "openvino:cpu:batch=1,seq=16,threads="
    assert isinstance(patience_for(Target.parse(cpu + "2"))[0], Patience)
    assert patience_for(Target.parse(cpu + "1")) == [None]  # processor time is of this program
    assert patience_for(Target.parse(cpu + "2,statistic=p95")) == [None]


def test_quantile_of_a_mix_weighs_groups_not_samples() -> None:
    assert quantile([[1.0] * 10, [9.0] * 1000], [0.9, 0.1], 0.5) == 1.0
    assert quantile([[1.0] * 10, [9.0] * 1000], [0.9, 0.1], 0.95) == 9.0
    assert quantile([[3.0, 1.0, 2.0]], [1.0], 0.5) == 2.0


def paired(ms: float, reference_ms: float, *times: float) -> Paired:
    return Paired(
        ms / reference_ms, 0.0, ms, ms, ms, reference_ms, 5, times, (reference_ms,) * len(times)
    )


def test_statistic_of_a_mix() -> None:
    points = [paired(1, 2, 1, 1, 1), paired(3, 8, 3, 3, 5)]
    mean = as_stated(points, Target.parse("openvino:cpu:seq=8*.75/16*.25"))
    assert (mean.ms, mean.reference_ms) == (pytest.approx(1.5), pytest.approx(3.5))
    assert mean.ratio == pytest.approx(1.5 / 3.5)
    slow = as_stated(points, Target.parse("openvino:cpu:seq=8*.75/16*.25,statistic=p95"))
    assert 3 < slow.ms < 5 and slow.reference_ms == 8
    one = as_stated(points[:1], Target())
    assert one is points[0]


@pytest.mark.parametrize(
    ("ratios", "counts"),
    [
        ([0.5, 0.502], 0.501),  # they agree
        ([0.54, 0.49, 0.5, 0.51, 0.5, 0.52], 0.51),  # sure enough is never reached
        ([0.5, 0.53, 0.51, 0.51, 0.51], 0.512),
    ],
)
def test_what_counts_is_measured_until_it_is_sure(ratios: list[float], counts: float) -> None:
    left = iter(ratios)

    def measure() -> Paired:
        return Paired(next(left), 0.01, 10, 9, 11, 20, 5)

    assert settled(measure).ratio == pytest.approx(counts)
    assert next(left, None) is None


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_often_than_is_wanted(most: int) -> None:
    ratios = [0.54, 0.45, 0.5, 0.6]
    left = iter(ratios)
    found = settled(lambda: Paired(next(left), 0.01, 10, 9, 11, 20, 5), at_most=most)
    assert found.ratio == pytest.approx(sum(ratios[:most]) / most)
    assert next(left) == ratios[most]
