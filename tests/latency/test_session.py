"""A session: what is measured where, on devices whose every cost is known."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from samples import PLAN

from hwnas.latency.caches import crowding
from hwnas.latency.fit import Fit, fit, interval_90
from hwnas.latency.measure import Paired
from hwnas.latency.session import Measurement, check, measure, most_networks
from hwnas.subnetwork import Subnetwork

Cost = Callable[[Subnetwork], float]


def stepped(subnetwork: Subnetwork) -> float:
    """Seconds on a device whose vectors hold four heads: a step, not a line."""
    blocks = (
        0.01 + 0.02 * math.ceil(b.heads / 4) + 0.08 * b.ffn / 1536 for _, b in subnetwork.kept
    )
    return 0.1 + sum(blocks)


def straight(subnetwork: Subnetwork) -> float:
    blocks = (0.01 + 0.01 * b.heads + 0.08 * b.ffn / 1536 for _, b in subnetwork.kept)
    return 0.1 + sum(blocks)


def crowded(subnetwork: Subnetwork) -> float:
    """Weights that push each other out of a cache: more than the parts' sum."""
    return straight(subnetwork) * (1 + 0.4 * PLAN.weights.share(subnetwork))


class Device:
    """Stands where a stopwatch does: costs are known, measurements vary by `noise`."""

    def __init__(
        self, cost: Cost, noise: float = 0.0, outliers: float = 0.0, seed: int = 0
    ) -> None:
        self.cost, self.noise, self.outliers = cost, noise, outliers
        self.rng = np.random.default_rng(seed)
        self.timed: list[Subnetwork] = []

    def time(
        self, subnetwork: Subnetwork, pairs: int, compilations: int = 1, seconds: float = math.inf
    ) -> Measurement:
        self.timed.append(subnetwork)
        ratio = self.cost(subnetwork) / self.cost(PLAN.reference)
        ratio *= self.rng.normal(1, self.noise / math.sqrt(compilations))
        if self.rng.random() < self.outliers:
            ratio *= 1.5
        point = Paired(ratio, 0.0, ratio, ratio, ratio, 1.0, pairs)
        return Measurement(subnetwork, compilations, (point,))


def interval(fitted: Fit) -> float:
    """At the only length."""
    left_out = np.array(list(fitted.left_out.values()))
    return interval_90(left_out[:, 0], fitted.off[:, 0], fitted.parts)


def widths(device: Device, of: int) -> set[int]:
    """Heads (0) or FFN widths (1) of the stacks that were timed."""
    return {s.blocks[0][of] for s in device.timed if len({b for _, b in s.kept}) == 1}


def test_bends_are_found_and_straight_lines_left_alone() -> None:
    plain, bent = Device(straight), Device(stepped)
    measure(PLAN, plain)  # type: ignore[arg-type]
    measure(PLAN, bent)  # type: ignore[arg-type]
    ends = {PLAN.ffn[0], PLAN.ffn[-1], 768}
    mixed = {b.ffn for s in PLAN.mixed for _, b in s.kept}
    assert widths(plain, 1) - mixed <= ends | {384, 416, 1152}  # one look into each half
    assert len(widths(bent, 0)) > len(widths(plain, 0))
    assert {4, 5} & widths(bent, 0) and {8, 9} & widths(bent, 0)


def test_fit_finds_the_costs() -> None:
    found = measure(PLAN, Device(straight))  # type: ignore[arg-type]
    fitted = fit(PLAN, found)
    (costs,) = fitted.costs
    scale = straight(PLAN.reference)
    assert costs.fixed * scale == pytest.approx(0.1, abs=1e-6)
    for heads, cost in costs.attention.items():
        assert cost * scale == pytest.approx(0.01 + 0.01 * heads, abs=1e-6)
    for width, cost in costs.ffn.items():
        assert cost * scale == pytest.approx(0.08 * width / 1536, abs=1e-6)
    assert all(off == (pytest.approx(1, abs=1e-6),) for off in fitted.left_out.values())


@pytest.mark.parametrize("outliers", [0.0, 0.08])
def test_fit_averages_noise_and_bears_outliers(outliers: float) -> None:
    device = Device(stepped, noise=0.03, outliers=outliers)
    found = measure(PLAN, device)  # type: ignore[arg-type]
    fitted = fit(PLAN, found)
    (costs,) = fitted.costs
    for curve in (costs.attention, costs.ffn):
        assert list(curve.values()) == sorted(curve.values())
    scale = stepped(PLAN.reference)
    errors = [costs.of(s) * scale / stepped(s) - 1 for s in PLAN.unseen]
    assert np.mean(np.abs(errors)) < 0.025
    assert 0.01 < interval(fitted) < 0.08 + outliers


def test_costs_are_steady_from_one_session_to_the_next() -> None:
    apart = []
    for first, second in pairwise(range(5)):
        one, two = (
            fit(PLAN, measure(PLAN, Device(crowded, noise=0.03, seed=seed))).costs[0]  # type: ignore[arg-type]
            for seed in (first, second)
        )
        for mine, theirs in ((one.attention, two.attention), (one.ffn, two.ffn)):
            apart += [abs(theirs[w] / mine[w] - 1) for w in mine.keys() & theirs.keys()]
    assert np.median(apart) < 0.05


def test_pressure_on_the_caches_is_found() -> None:
    device = Device(crowded, noise=0.01)
    found = measure(PLAN, device)  # type: ignore[arg-type]
    (costs,) = fit(PLAN, found).costs
    scale = crowded(PLAN.reference)
    errors = [costs.of(s) * scale / crowded(s) - 1 for s in PLAN.unseen]
    assert np.mean(np.abs(errors)) < 0.015
    assert costs.pressure * scale > 0.1 * crowded(PLAN.full)
    (plain,) = fit(PLAN, measure(PLAN, Device(straight, noise=0.01))).costs  # type: ignore[arg-type]
    assert plain.pressure * scale < 0.03 * straight(PLAN.full)


def cached(subnetwork: Subnetwork) -> float:
    """Nothing for weights up to 46 % of the full model's, then ever more of them from memory."""
    share = PLAN.weights.share(subnetwork)
    return straight(subnetwork) + 0.5 * float(crowding(share, 0.46))


def test_the_caches_capacity_is_found() -> None:
    found = measure(PLAN, Device(cached, noise=0.01))  # type: ignore[arg-type]
    (costs,) = fit(PLAN, found).costs
    scale = cached(PLAN.reference)
    errors = [costs.of(s) * scale / cached(s) - 1 for s in PLAN.unseen]
    assert np.mean(np.abs(errors)) < 0.015
    assert 0.36 <= costs.capacity <= 0.56
    ms = costs.crowded()
    assert ms[20] == ms[30] == 0 < ms[70] < ms[100]
    assert ms[100] * scale == pytest.approx(0.5, rel=0.3)


def test_intervals_hold_what_they_say() -> None:
    """Over many devices; one device's are as uncertain as its few networks make them."""
    held = []
    for seed in range(12):
        device = Device(stepped, noise=0.03)
        device.rng = np.random.default_rng(seed)
        found = measure(PLAN, device)  # type: ignore[arg-type]
        fitted = fit(PLAN, found)
        (costs,), width = fitted.costs, interval(fitted)
        for first, _ in check(PLAN, device):  # type: ignore[arg-type]
            held.append(abs(first.points[0].ratio / costs.of(first.subnetwork) - 1) <= width)
    assert 0.85 < np.mean(held) < 0.97


def test_a_session_ends_in_time_but_never_too_early() -> None:
    def slow(subnetwork: Subnetwork) -> float:
        time.sleep(0.002)
        return stepped(subnetwork)

    hurried, patient = Device(slow), Device(slow)
    measure(PLAN, hurried, seconds=0.0)  # type: ignore[arg-type]
    measure(PLAN, patient)  # type: ignore[arg-type]
    assert set(PLAN.stacks()) < set(hurried.timed)
    assert PLAN.full in hurried.timed
    assert len(hurried.timed) < len(patient.timed)


def test_a_session_keeps_to_its_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that are timed again, for they look doubtful, are within the time too."""
    device = Device(straight, outliers=0.2)
    monkeypatch.setattr(time, "perf_counter", lambda: float(len(device.timed)))
    measure(PLAN, device, seconds=28.0)  # type: ignore[arg-type]
    again = len(device.timed) - len(set(device.timed))
    assert 24 < len(device.timed) <= 28 and again > 0


@pytest.mark.parametrize("cost", [straight, stepped])
def test_progress_is_told_of_all_that_may_be_measured(cost: Cost) -> None:
    told: list[float] = []
    measure(PLAN, Device(cost), advance=told.append)  # type: ignore[arg-type]
    assert sum(told) == most_networks(PLAN)
    assert min(told) >= 0


def test_unseen_networks_are_measured_twice() -> None:
    found = check(PLAN, Device(stepped, noise=0.01))  # type: ignore[arg-type]
    assert [first.subnetwork for first, _ in found] == list(PLAN.unseen)
    assert all(a.subnetwork == b.subnetwork and a.points != b.points for a, b in found)


def test_measurement_travels() -> None:
    (measurement,) = (Device(stepped, noise=0.01).time(PLAN.full, 3, 2),)
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement
