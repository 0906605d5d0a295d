"""Losses measured block by block: what they are, and between the widths that were measured."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_model

from hwnas.anatomy import find_shape
from hwnas.elastic.supernet import SuperNetwork
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.importance.sensitivity import _curve, with_losses
from hwnas.subnetwork import DROPPED, Block, Subnetwork
from hwnas.tasks.language import Language
from hwnas.tasks.predict import outputs_of
from hwnas.tasks.written import padded


def _scores(model: Any) -> Importance:
    shape = find_shape(model.config)
    generator = torch.Generator().manual_seed(2)
    empty = torch.empty(0)
    return Importance(
        tuple(torch.rand(n, generator=generator) for n in shape.heads),
        tuple(torch.rand(n, generator=generator) for n in shape.ffn),
        layers=torch.zeros(shape.depth),
        residual=empty,
        vocabulary=empty,
    )


def _batches() -> list[dict[str, torch.Tensor]]:
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids}
        for ids in ([5, 9, 3, 17, 8], [4, 4, 21], [60, 2, 33, 7])
    ]
    return [padded(rows, 0), padded(rows[:2], 0)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_measured_losses_are_distances_from_the_whole_model(name: str, tmp_path: Any) -> None:
    model = make_model(name)
    scores = _scores(model)
    reorder(model, scores)
    original = copy.deepcopy(model)
    network, kind, batches = SuperNetwork(model), Language(), _batches()
    found = with_losses(scores, network, batches, kind)
    found.save(tmp_path / "importance.safetensors")
    loss = Importance.load(tmp_path / "importance.safetensors").loss()
    full, group = network.full, network.shape.group

    def distance(i: int, block: Block) -> float:
        blocks = [block if j == i else b for j, b in enumerate(full.blocks)]
        with network.as_subnetwork(Subnetwork(tuple(blocks))) as active, torch.no_grad():
            each = [
                kind.soft_loss(outputs_of(active, b), outputs_of(original, b), b, 1.0).item()
                for b in batches
            ]
        return float(np.mean(each))

    for i, block in enumerate(full.blocks):
        assert loss.of(i, block) == 0
        assert loss.of(i, DROPPED) == pytest.approx(distance(i, DROPPED), rel=1e-4)
        narrow = Block(group, block.ffn)
        # never less than what a wider block was measured to lose
        assert loss.of(i, narrow) >= distance(i, narrow) - 1e-6
        curve = loss.ffn[i][1:]
        assert (np.diff(curve) <= 1e-9).all() and curve[-1] == 0
    assert network.active == full


def test_between_measured_widths_the_scores_say_how_it_grows() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])  # left out: 10, 6, 3, 1, 0
    found = _curve({2: 0.3}, scores, gone=5.0).tolist()
    assert found[0] == 5.0
    assert found[1:] == pytest.approx([0.6, 0.3, 0.1, 0.0])
    # a narrower width that was measured to lose less, by noise, counts as the wider one
    found = _curve({1: 0.2, 2: 0.3}, scores, gone=5.0).tolist()
    assert found[1:3] == pytest.approx([0.3, 0.3])
    # scores that say nothing: straight lines
    found = _curve({2: 0.4}, torch.zeros(4), gone=1.0).tolist()
    assert found[1:] == pytest.approx([0.6, 0.4, 0.2, 0.0])
