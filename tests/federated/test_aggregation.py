"""Averages over nested widths, the rules that stand poison, and the server's optimizers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hwnas.federated.aggregation import (
    Change,
    Krum,
    Mean,
    PerCoordinate,
    Update,
    aggregator,
    clipped,
    norm,
)
from hwnas.federated.parts import Part, Piece
from hwnas.federated.recipe import AggregationSpec
from hwnas.federated.server_optimizers import ServerOptimizer
from hwnas.subnetwork import Subnetwork

SHAPES = {"w": torch.Size([4, 6]), "b": torch.Size([4])}


def _part(rows: int, columns: int) -> Part:
    return Part(
        Subnetwork.of([[1, rows * columns]]),
        (Piece("w", "w", (rows, columns), True), Piece("b", "b", (rows,), True)),
    )


def _update(rows: int, columns: int, seed: int, weight: float = 1.0) -> Update:
    generator = torch.Generator().manual_seed(seed)
    change = {
        "w": torch.randn(rows, columns, generator=generator),
        "b": torch.randn(rows, generator=generator),
    }
    return Update(_part(rows, columns), change, weight)


def _by_hand(updates: Sequence[Update], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The weighted mean of each coordinate's owners, and their weight, one coordinate at a time."""
    found = np.zeros(SHAPES[name])
    owned = np.zeros(SHAPES[name])
    for at in np.ndindex(*SHAPES[name]):
        has = [
            (float(u.change[name][at]), u.weight)
            for u in updates
            if all(i < size for i, size in zip(at, u.change[name].shape, strict=True))
        ]
        owned[at] = sum(weight for _, weight in has)
        if has:
            found[at] = sum(value * weight for value, weight in has) / owned[at]
    return found, owned


def _mixed() -> list[Update]:
    return [_update(4, 6, 1, 10), _update(2, 3, 2, 30), _update(2, 3, 3, 5), _update(3, 5, 4, 20)]


@pytest.mark.parametrize("few", [0.0, 0.5, 1.0])
def test_each_coordinate_is_averaged_over_those_who_trained_it(few: float) -> None:
    updates = _mixed()
    mean = Mean(SHAPES, few)
    for update in updates:
        mean.add(update)
    change = mean.finish()
    for name in SHAPES:
        found, owned = _by_hand(updates, name)
        shortened = found * (owned / sum(u.weight for u in updates)) ** few
        torch.testing.assert_close(
            change.change[name].double().numpy(), shortened, atol=1e-6, rtol=0
        )
        assert (change.trained[name].numpy() == (owned > 0)).all()


def test_what_nobody_trained_stays() -> None:
    mean = Mean(SHAPES)
    mean.add(_update(2, 3, 1))
    change = mean.finish()
    state = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    ServerOptimizer(AggregationSpec(optimizer="adam")).step(state, change)
    assert not change.trained["w"][2:].any() and not change.trained["w"][:, 3:].any()
    assert (state["w"][2:] == 1).all() and (state["w"][:, 3:] == 1).all()
    assert (state["w"][:2, :3] != 1).all()


def test_the_order_of_arrival_does_not_matter() -> None:
    results = []
    for updates in (_mixed(), _mixed()[::-1]):
        mean = Mean(SHAPES, 0.3)
        for update in updates:
            mean.add(update)
        results.append(mean.finish().change)
    for name in SHAPES:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("rule", "reduce"), [("median", np.median), ("trimmed_mean", None)])
def test_robust_rules_per_coordinate(rule: str, reduce: object) -> None:
    updates = [*_mixed(), _update(4, 6, 7), _update(4, 6, 8)]
    combined = aggregator(
        AggregationSpec(rule=rule, trim=0.2),  # type: ignore[arg-type]
        {name: torch.zeros(shape) for name, shape in SHAPES.items()},
    )
    for update in updates:
        combined.add(update)
    change = combined.finish()
    for name in SHAPES:
        for at in np.ndindex(*SHAPES[name]):
            values = sorted(
                float(u.change[name][at])
                for u in updates
                if all(i < size for i, size in zip(at, u.change[name].shape, strict=True))
            )
            cut = min(int(np.ceil(len(values) * 0.2 - 1e-9)), (len(values) - 1) // 2)
            wanted = np.median(values) if reduce else np.mean(values[cut : len(values) - cut])
            assert float(change.change[name][at]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_a_poisoned_answer_moves_a_mean_and_no_robust_rule(rule: str) -> None:
    """Honest clients agree up to noise; one sends a thousandfold of the opposite."""
    truth = _update(4, 6, 0).change
    generator = torch.Generator().manual_seed(1)

    def honest(rows: int, columns: int) -> Update:
        change = {
            "w": truth["w"][:rows, :columns]
            + 0.1 * torch.randn(rows, columns, generator=generator),
            "b": truth["b"][:rows] + 0.1 * torch.randn(rows, generator=generator),
        }
        return Update(_part(rows, columns), change, 1.0)

    updates = [honest(4, 6) for _ in range(4)] + [honest(2, 3) for _ in range(3)]
    poisoned = {name: -1000 * tensor for name, tensor in truth.items()}
    updates.insert(2, Update(_part(4, 6), poisoned, 1.0))

    def off(combined: Mean | PerCoordinate | Krum) -> float:
        for update in updates:
            combined.add(update)
        found = combined.finish().change
        return max(float((found[name] - truth[name]).abs().max()) for name in SHAPES)

    state = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    spec = AggregationSpec(rule=rule, trim=0.25, malicious=1, few=0)  # type: ignore[arg-type]
    assert off(Mean(SHAPES)) > 100
    assert off(aggregator(spec, state)) < 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adaptive_server_optimizers_by_their_formulas(kind: str) -> None:
    spec = AggregationSpec(optimizer=kind, rate=0.01, momentum=0.9)  # type: ignore[arg-type]
    optimizer = ServerOptimizer(spec)
    state = {"b": torch.zeros(3)}
    first, second, wanted = np.zeros(3), np.full(3, 1e-6), np.zeros(3)
    everywhere = {"b": torch.ones(3, dtype=torch.bool)}
    for at in range(4):
        change = np.array([0.02, -0.5, 0.0]) * (at + 1)
        optimizer.step(state, Change({"b": torch.tensor(change).float()}, everywhere))
        first = 0.9 * first + 0.1 * change
        if kind == "adam":
            second = 0.99 * second + 0.01 * change**2
        else:
            second = second - 0.01 * change**2 * np.sign(second - change**2)
        wanted = wanted + 0.01 * first / (np.sqrt(second) + 1e-3)
    assert state["b"].numpy() == pytest.approx(wanted, rel=1e-4)


def test_clipping_bounds_the_norm_of_a_whole_update() -> None:
    change = _update(4, 6, 5).change
    assert norm(clipped(change, 0.5)) == pytest.approx(0.5)
    assert clipped(change, 1e3) is change
