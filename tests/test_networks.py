"""How many copies of a model a run holds while it trains, and what the baseline's copies are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from hwnas.networks import Networks
from hwnas.pipeline import run
from hwnas.recipe import load_recipe
from hwnas.trained import TrainedRun


@pytest.mark.slow  # a whole run
def test_a_run_holds_what_it_trains_with_and_no_more(
    tiny_recipe: Path, tmp_path: Path, copies: dict[str, list[int]]
) -> None:
    recipe = load_recipe(tiny_recipe)
    run(recipe, tmp_path / "run")
    (supernet,) = copies.pop("super-network")
    assert supernet == 2  # itself and its teacher
    larger, smaller = copies.values()
    # teacher, start, baseline, super-network, and who is trained; then the larger winner
    assert max(larger) <= 5 and max(smaller) <= 6


def test_a_teacher_is_in_the_students_order_only_where_it_is_their_start(
    tiny_trained: Path,
) -> None:
    trained = TrainedRun.open(tiny_trained)
    networks = Networks(trained.inputs, trained.scores)
    assert networks.teacher is networks.teacher
    assert networks.teacher is not networks.start.model
    assert networks.baseline is not networks.start, "it was trained on from where students start"
    _same_answers(networks.teacher, networks.baseline.model)


def _same_answers(one: PreTrainedModel, other: PreTrainedModel) -> None:
    ids = torch.arange(5, 37).view(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(one(input_ids=ids).logits, other(input_ids=ids).logits)


def test_a_start_that_is_the_baseline_is_held_once(
    tiny_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = TrainedRun.open(tiny_trained)
    monkeypatch.setattr(Networks, "_start_is_baseline", property(lambda _: True))
    networks = Networks(trained.inputs, trained.scores)
    assert networks.baseline is networks.start
    assert networks.teacher is not networks.start.model, "all weights are trained here"
    monkeypatch.setattr(type(trained.inputs.recipe), "adapters", property(lambda _: object()))
    adapted = Networks(trained.inputs, trained.scores)
    assert adapted.teacher is adapted.start.model
