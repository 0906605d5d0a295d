"""Sizes of served folders, predicted; searches under a limit on them; what is handed over obeys."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwnas.cli import app
from hwnas.errors import BudgetError
from hwnas.export import export_model, folder_size_mb, quantize_folder, served_folder
from hwnas.files import read_model
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.latency.target import Target
from hwnas.limits import Limits
from hwnas.pipeline import Given, prepare
from hwnas.recipe import Recipe, load_recipe
from hwnas.search.exact import BlockLoss, solve
from hwnas.sizes import Sizes, sizes_at
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Summary
from hwnas.trained import TrainedRun

NARROW = Subnetwork.of([[4, 384], [12, 1536], [0, 0], [1, 32], [7, 224], [6, 768]])


@pytest.mark.slow  # twenty seconds: MiniLM is written and quantized
@pytest.mark.parametrize(
    ("target", "within"),
    [
        ("openvino:cpu:seq=64", 0.005),
        pytest.param("openvino:cpu:seq=64,precision=int8-static", 0.02, marks=pytest.mark.variant),
        ("onnxruntime:cpu:seq=64,precision=int8-dynamic", 0.02),
    ],
)
def test_sizes_are_those_of_real_folders(target: str, within: float, tmp_path: Path) -> None:
    from hwnas.elastic.supernet import SuperNetwork
    from hwnas.export import calibration
    from hwnas.models import load_model

    recipe = Recipe(target=target)
    inputs = prepare(recipe, tmp_path / "run", resume=False, given=Given())
    model, tokenizer = load_model("demo:minilm", labels=inputs.task.labels)
    (tmp_path / "run" / "baseline").mkdir()
    model.save_pretrained(tmp_path / "run" / "baseline" / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "baseline" / "model")
    served = Target.parse(target)
    predicted = sizes_at(inputs, served).of(NARROW)
    out = tmp_path / "narrow"
    small = SuperNetwork(model).extract(NARROW)
    export_model(small, tokenizer, out, ["onnx", "openvino"])
    if served.precision != "fp32":
        rows = calibration(inputs.train.select(range(8)), tokenizer)
        exact = out / served_folder(replace(served, precision="fp32"))
        quantize_folder(exact, out / served_folder(served), served.precision, rows)
    inputs.directory.close()
    assert predicted == pytest.approx(folder_size_mb(out / served_folder(served)), rel=within)


def _random_problem(
    rng: np.random.Generator,
) -> tuple[SearchSpace, BlockLoss, LatencyPredictor, Sizes]:
    options = BlockOptions(heads=(1, 2, 4), ffn=(8, 16, 32))
    space = SearchSpace(blocks=(options,) * 3)

    def prefix(count: int) -> np.ndarray:
        scores = np.sort(rng.pareto(2.0, count))[::-1]
        return np.append(scores[::-1].cumsum()[::-1], 0.0)

    loss = BlockLoss([prefix(4) for _ in range(3)], [prefix(32) for _ in range(3)])
    predictor = LatencyPredictor(
        fixed_ms=0.2,
        attention=Curve.of({h: float(h * rng.uniform(0.7, 1.3)) for h in options.heads}),
        ffn=Curve.of({f: float(f / 8 * rng.uniform(0.7, 1.3)) for f in options.ffn}),
        baseline_ms=1.0,
    )
    return space, loss, predictor, Sizes(1.0, rng.uniform(0.2, 1.0), rng.uniform(0.02, 0.2))


def test_the_mixture_ends_within_both_limits_and_near_the_best_there() -> None:
    """Against every subnetwork of small random spaces."""
    rng = np.random.default_rng(0)
    binding, best = 0, 0
    for _ in range(40):
        space, loss, predictor, sizes = _random_problem(rng)
        budget = 0.6 * predictor.predict(space.largest)
        one = sizes.limit(float(rng.uniform(0.35, 0.8)) * sizes.of(space.largest))
        limit = Limits((one,))
        alone = solve(space, loss, predictor, budget).subnetwork
        mixed = limit.mixed(predictor, space, loss, budget)
        found = solve(space, loss, mixed, budget).subnetwork
        assert limit.allows(found)
        every = [
            Subnetwork(choice) for choice in itertools.product(*(b.options() for b in space.blocks))
        ]
        fitting = [
            s for s in every if s.depth and predictor.predict(s) <= budget and limit.allows(s)
        ]
        assert all(mixed.predict(s) <= budget * (1 + 1e-9) for s in fitting), "none is lost"
        if limit.allows(alone):
            assert found == alone
            continue
        binding += 1
        least = min(sum(loss.of(i, b) for i, b in enumerate(s.blocks)) for s in fitting)
        lost = sum(loss.of(i, b) for i, b in enumerate(found.blocks))
        best += lost <= 1.1 * least
    assert binding > 10
    assert best > 0.6 * binding


def test_a_limit_that_nothing_meets_says_what_could_be_met() -> None:
    space, loss, predictor, sizes = _random_problem(np.random.default_rng(0))
    smallest = sizes.limit(1.0).smallest(space)
    assert smallest.depth == 1
    sizes.limit(1.001 * sizes.of(smallest)).check(space)
    with pytest.raises(
        BudgetError, match=r"smallest subnetwork is predicted at .* vocabulary\.trim"
    ):
        sizes.limit(0.9 * sizes.of(smallest)).check(space)
    with pytest.raises(BudgetError):
        Limits((sizes.limit(0.9 * sizes.of(smallest)),)).mixed(predictor, space, loss, 100.0)


def test_a_narrower_residual_stream_is_smaller_throughout() -> None:
    sizes = Sizes(10.0, 0.2, 0.01, narrower={64: Sizes(5.0, 0.1, 0.005)})
    wide = Subnetwork.of([[2, 32], [4, 64]])
    assert sizes.of(wide.narrowed(64)) == pytest.approx(0.5 * sizes.of(wide))
    limit = sizes.limit(1.0)
    for one in (wide, wide.narrowed(64)):
        assert limit.of(one) == pytest.approx(sizes.of(one))


@pytest.mark.slow  # half a minute: a tiny model through the whole line, and once through a search
@pytest.mark.parametrize(
    "algorithm", [pytest.param("evolution", marks=pytest.mark.variant), "guided"]
)
def test_what_is_handed_over_is_small_enough(
    algorithm: str, tiny_recipe: Path, tiny_trained: Path, tmp_path: Path
) -> None:
    """The limit is below what the budget alone leads to, above what is not in the blocks."""
    trained = TrainedRun.open(tiny_trained)
    only_read: Any = SimpleNamespace(path=tiny_trained, measured=lambda key, measure: measure())
    sizes = sizes_at(replace(trained.inputs, directory=only_read), trained.inputs.target)
    full = Subnetwork.full(trained.inputs.shape)
    predictor = trained.table.predictor().near(0.85 * trained.table.reference_ms)
    loss = trained.scores.loss()
    free = solve(trained.space, loss, predictor, 0.85 * trained.table.reference_ms).subnetwork
    most = round(0.6 * sizes.of(free) + 0.4 * sizes.fixed_mb, 3)
    assert sizes.fixed_mb < most < sizes.of(free) < sizes.of(full)
    out = tmp_path / "small"
    options = ["--out", str(out), "--budget", "85%", "--max-size", str(most)]
    if algorithm == "evolution":
        command = ["run", str(tiny_recipe), "--reuse", str(tiny_trained)]
    else:
        command = ["search", str(tiny_trained), "--evaluations", "20", "--workers", "1"]
    app([*command, *options], standalone_mode=False)
    (chosen,) = read_model(out / "summary.json", Summary).chosen
    assert chosen.size_mb <= most
    assert chosen.size_mb == pytest.approx(sizes.of(Subnetwork.of(chosen.genome)), rel=0.02)
    assert chosen.max_size_mb == most
    assert load_recipe(out / "recipe.yaml").max_size_mb == most


@pytest.mark.slow  # a tiny baseline is looked at
def test_an_impossible_size_is_said_before_the_super_network_is_trained(
    tiny_recipe: Path, tiny_trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["run", str(tiny_recipe), "--reuse", str(tiny_trained), "--out", str(out)]
    with pytest.raises(BudgetError, match="size 1 MB: cannot be met"):
        app([*command, "--max-size", "1"], standalone_mode=False)
    assert not (out / "supernet").exists()
