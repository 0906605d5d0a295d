"""The account of privacy against formulas of its own, and the noise against what it promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import optimize, stats

from hwnas.federated.aggregation import Update, norm
from hwnas.federated.parts import Part, Piece
from hwnas.federated.privacy import NoisySum, epsilon, hidden, largest_norm
from hwnas.federated.recipe import FederatedRecipe, PrivacySpec
from hwnas.files import validate
from hwnas.subnetwork import Subnetwork


def _recipe(kind: str, noise: float, rounds: int, share: float = 1.0) -> FederatedRecipe:
    value: dict[str, Any] = {
        "labels": ["negative", "neutral", "positive"],
        "importance": "magnitude",
        "aggregation": {"weigh": "clients"},
        "evaluation": {"clients": False},
        "rounds": rounds,
        "clients": {"count": 100, "share": share},
        "privacy": {"kind": kind, "clip": 1.0, "noise": noise, "delta": 1e-5},
    }
    return validate(FederatedRecipe, value, where="test")


def _gaussian_epsilon(noise: float, rounds: int, delta: float) -> float:
    """Of composed Gaussian mechanisms, exactly (Balle & Wang 2018, theorem 8)."""
    mu = math.sqrt(rounds) / noise

    def excess(eps: float) -> float:
        first = stats.norm.cdf(-eps / mu + mu / 2)
        second = math.exp(eps + stats.norm.logcdf(-eps / mu - mu / 2))
        return float(first - second - delta)

    return float(optimize.brentq(excess, 0, mu**2 + 100 * mu))


def _sampled_epsilon(noise: float, rounds: int, share: float, delta: float) -> float:
    """An upper bound by Rényi orders (Mironov et al. 2019, section 3.3), integer orders only."""
    best = math.inf
    for order in range(2, 200):
        terms = [
            math.lgamma(order + 1)
            - math.lgamma(k + 1)
            - math.lgamma(order - k + 1)
            + (k * math.log(share) if k else 0.0)
            + (order - k) * math.log1p(-share)
            + k * (k - 1) / (2 * noise**2)
            for k in range(order + 1)
        ]
        most = max(terms)
        rdp = (most + math.log(sum(math.exp(t - most) for t in terms))) / (order - 1)
        # Canonne et al. 2020, proposition 12
        eps = rounds * rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, eps)
    return best


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 40), (0.8, 10)])
def test_epsilon_of_everybody_taking_part_is_the_exact_one(noise: float, rounds: int) -> None:
    found = epsilon(_recipe("central", noise, rounds))
    assert found == pytest.approx(_gaussian_epsilon(noise, rounds, 1e-5), rel=2e-3)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_hardly_any_noise_is_accounted_for_as_well(share: float) -> None:
    found = epsilon(_recipe("central", 0.01, 40, share))
    assert found is not None
    assert _gaussian_epsilon(0.02, 40, 1e-5) < found < math.inf
    little, least = (epsilon(_recipe("central", noise, 40, share)) for noise in (0.31, 0.29))
    assert little is not None and least is not None
    assert little < least < 2 * little  # a bound is above, and not far


def test_local_epsilon_is_that_of_half_the_noise() -> None:
    found = epsilon(_recipe("local", 6.0, 20))
    assert found == pytest.approx(_gaussian_epsilon(3.0, 20, 1e-5), rel=2e-3)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_epsilon_of_sampled_clients_is_a_little_below_the_renyi_bound(share: float) -> None:
    found = epsilon(_recipe("central", 1.1, 60, share))
    bound = _sampled_epsilon(1.1, 60, share, 1e-5)
    assert found is not None and 0.8 * bound < found <= bound


def _part(rows: int) -> Part:
    return Part(Subnetwork.of([[1, rows]]), (Piece("w", "w", (rows, 50), True),))


WHOLE, HALF = _part(400), _part(100)
SPEC = PrivacySpec(kind="central", clip=2.0, noise=0.5)


def test_narrow_parts_are_clipped_in_proportion() -> None:
    assert largest_norm(SPEC, WHOLE, WHOLE) == 2.0
    assert largest_norm(SPEC, HALF, WHOLE) == pytest.approx(1.0)


def test_central_noise_is_that_of_one_update_however_many_there_are() -> None:
    """Noise over the expected count without updates; a client moves the sum by `clip` at most."""
    shapes = {"w": torch.Size([400, 50])}
    expected = {WHOLE: 3.0, HALF: 5.0}
    empty = NoisySum(shapes, SPEC, expected, torch.Generator().manual_seed(0)).finish()
    inner, outer = empty.change["w"][:100], empty.change["w"][100:]
    assert float(inner.std()) == pytest.approx(0.5 * 2.0 / 8, rel=0.03)
    assert float(outer.std()) == pytest.approx(0.5 * 2.0 / 3, rel=0.03)
    with_one = NoisySum(shapes, SPEC, expected, torch.Generator().manual_seed(0))
    big = {"w": torch.full((400, 50), 1.0)}
    with_one.add(Update(WHOLE, {"w": big["w"] * 2.0 / norm(big)}, 1.0))
    moved = with_one.finish().change["w"] - empty.change["w"]
    counts = torch.full((400, 1), 3.0)
    counts[:100] = 8.0
    assert float((moved * counts).norm()) == pytest.approx(2.0, rel=1e-3)


def test_local_noise_leaves_the_client_and_is_never_the_same() -> None:
    spec = PrivacySpec(kind="local", clip=2.0, noise=0.5)
    change = {"w": torch.full((400, 50), 1.0)}
    first, second = (hidden(change, spec, 2.0)["w"] for _ in range(2))
    assert not torch.equal(first, second)
    assert float(first.std()) == pytest.approx(1.0, rel=0.03)
    assert float(first.mean()) == pytest.approx(2.0 / math.sqrt(400 * 50), abs=0.03)
