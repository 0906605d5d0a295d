"""Limits beside latency: the cache, the first token, several at once; and a run that keeps them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hwnas.anatomy import Shape
from hwnas.errors import BudgetError
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.target import Target
from hwnas.limits import Limit, Limits, cache_limit, straight
from hwnas.recipe import Recipe
from hwnas.search.exact import BlockLoss, solve
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import Subnetwork

SHAPE = Shape("llama", 48, 8, (6,) * 3, (64,) * 3, 99, group=2, gated=True, decoder=True)


def _random_costs(rng: np.random.Generator, options: BlockOptions) -> LatencyPredictor:
    return LatencyPredictor(
        fixed_ms=float(rng.uniform(0.1, 1.0)),
        attention=Curve.of({h: float(h * rng.uniform(0.5, 1.5)) for h in options.heads}),
        ffn=Curve.of({f: float(f / 8 * rng.uniform(0.5, 1.5)) for f in options.ffn}),
        baseline_ms=1.0,
    )


def test_several_limits_are_kept_together_and_nothing_that_fits_is_lost() -> None:
    """Against every subnetwork of small random spaces."""
    rng = np.random.default_rng(3)
    options = BlockOptions(heads=(1, 2, 4), ffn=(8, 16, 32))
    space = SearchSpace(blocks=(options,) * 3)
    every = [Subnetwork(c) for c in itertools.product(*(b.options() for b in space.blocks))]
    binding, good, refused = 0, 0, 0
    for _ in range(30):
        predictor, *costs = (_random_costs(rng, options) for _ in range(3))
        loss = BlockLoss(
            *(
                [np.append(np.sort(rng.pareto(2.0, n))[::-1].cumsum()[::-1], 0.0) for _ in range(3)]
                for n in (4, 32)
            )
        )
        budget = 0.7 * predictor.predict(space.largest)
        limits = Limits(
            tuple(
                Limit(name, "MB", float(rng.uniform(0.45, 0.8)) * c.predict(space.largest), c)
                for name, c in zip(("size", "cache"), costs, strict=True)
            )
        )
        fitting = [
            s for s in every if s.depth and predictor.predict(s) <= budget and limits.allows(s)
        ]
        if not fitting:
            continue
        alone = solve(space, loss, predictor, budget).subnetwork
        try:
            mixed = limits.mixed(predictor, space, loss, budget)
        except BudgetError:  # no mixture has an answer that fits, in spaces as small as these
            refused += 1
            continue
        found = solve(space, loss, mixed, budget).subnetwork
        assert limits.allows(found)
        if predictor.predict(found) > budget * (1 + 1e-9):
            refused += 1
            continue
        assert all(mixed.predict(s) <= budget * (1 + 1e-9) for s in fitting)
        if limits.allows(alone):
            assert found == alone
            continue
        binding += 1

        def lost(s: Subnetwork, loss: BlockLoss = loss) -> float:
            return sum(loss.of(i, b) for i, b in enumerate(s.blocks))

        good += lost(found) <= 1.2 * min(map(lost, fitting))
    assert binding > 10 and refused <= 5
    assert good > 0.5 * binding


@pytest.mark.parametrize(("runtime", "each"), [("openvino", 1), ("onnxruntime", 4)])
def test_the_cache_is_counted(runtime: str, each: int) -> None:
    target = Target.parse(f"{runtime}:cpu:batch=2,phase=decode,cache=99")
    inputs: Any = SimpleNamespace(shape=SHAPE)
    limit = cache_limit(inputs, target, 1.0)
    # keys and values of two sequences of 100 tokens, in 3 + 2 + 0 KV heads of 8 numbers
    found = limit.of(Subnetwork.of([[6, 64], [4, 32], [0, 0]]))
    assert found == pytest.approx(2 * 2 * 100 * (3 + 2) * 8 * each / 1e6)


def test_what_nothing_keeps_names_the_least() -> None:
    space = SearchSpace.whole(SHAPE, ffn_step=16)
    limit = Limit("cache", "MB", 1.0, straight(0.0, 0.7, 0.0), "serve shorter texts")
    assert limit.smallest(space).depth == 1
    with pytest.raises(BudgetError, match=r"cache 1 MB: .* predicted at 1\.4 MB; serve shorter"):
        limit.check(space)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limits": {"cache_mb": 0}}, "limits.cache_mb"),
        ({"limits": {"first_token": {"prompt": 8, "budget": "2ms/token"}}}, "the first token is"),
        ({"limits": {"first_token": {"prompt": 0, "budget": "2ms"}}}, "limits.first_token.prompt"),
        ({"limits": {"first_token": {"prompt": 8, "budget": "fast"}}}, "expected milliseconds"),
        ({"limits": {"cache_mb": 1}, "target": "openvino:cpu:phase=prefill,seq=8"}, "phase=decode"),
    ],
)
def test_bad_limits_are_named(changes: dict[str, Any], words: str) -> None:
    plain = {
        "task": {"data": "rows.jsonl", "kind": "language"},
        "target": "openvino:cpu:phase=decode,cache=8",
    }
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate(plain | changes)
    said = str(error.value).replace("\n", " ")
    assert words in said or words.replace(".", " ") in said or words in _paths(error.value)


def _paths(error: ValidationError) -> list[str]:
    return [".".join(map(str, one["loc"])) for one in error.errors()]
