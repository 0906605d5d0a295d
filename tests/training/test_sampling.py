"""Samples of the sandwich: evenly over the cost, of every kind, by seed and step alone."""

import numpy as np
import pytest

from hwnas.anatomy import Shape
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.training.sampling import Sandwich

SHAPE = Shape("bert", 384, 32, (12,) * 6, (1536,) * 6, 30522)
SPACE = SearchSpace.whole(SHAPE)
# the FFN's cost climbs late, so that widths and times are far from proportional
PREDICTOR = LatencyPredictor(
    fixed_ms=1.0,
    attention=Curve(np.array([1.0, 12.0]), np.array([1.0, 2.0])),
    ffn=Curve(np.array([32.0, 768.0, 1536.0]), np.array([0.2, 0.6, 4.0])),
    baseline_ms=37.0,
)


def cost(subnetwork: Subnetwork) -> float:
    return PREDICTOR.predict(subnetwork)


def drawn(count: int = 600, **settings) -> list[Subnetwork]:
    sandwich = Sandwich(SPACE, seed=0, smallest=0.2, largest=1.0, cost=cost, **settings)
    return [sandwich.at(step)[2] for step in range(count)]


@pytest.mark.parametrize("sampling", ["even", "structured"])
def test_samples_are_even_in_cost(sampling):
    costs = np.array([cost(s) for s in drawn(sampling=sampling)])
    low, high = (cost(SPACE.scaled(share)) for share in (0.2, 1.0))
    fifths, _ = np.histogram(costs, bins=5, range=(low, high))
    assert costs.min() >= 0.97 * low and costs.max() <= high
    assert fifths.min() > 0.13 * len(costs), fifths


def test_independent_widths_are_not():
    costs = np.array([cost(s) for s in drawn(sampling="independent")])
    low, high = (cost(SPACE.scaled(share)) for share in (0.2, 1.0))
    fifths, _ = np.histogram(costs, bins=5, range=(low, high))
    assert fifths.min() < 0.05 * len(costs)


def test_structured_samples_are_of_every_kind():
    samples = drawn(sampling="structured", depth_share=0.3)
    assert all(s in SPACE for s in samples)
    fewer = sum(s.depth < 6 for s in samples) / len(samples)
    uniform = sum(s.depth == 6 and len(set(s.blocks)) == 1 for s in samples) / len(samples)
    assert 0.1 < fewer < 0.35 and 0.1 < uniform < 0.35
    assert all(s.depth == 6 for s in drawn(100, sampling="even"))


def test_a_sample_depends_on_seed_and_step_only():
    again = drawn(40)
    assert again == drawn(40)
    other = Sandwich(SPACE, seed=1, smallest=0.2, cost=cost)
    assert [other.at(step)[2] for step in range(40)] != again
