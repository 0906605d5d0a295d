"""Successive halving: who goes on, for how long, and that finished rungs are not trained again."""

import random
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification

from hwnas.elastic.supernet import SuperNetwork
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.classification import Classification
from hwnas.training.halving import START, Entrant, Rung, halve
from hwnas.training.optimization import Optimization


@pytest.fixture
def examples(tiny_config):
    rng = random.Random(0)
    ids = [[rng.randrange(2, 60) for _ in range(8)] for _ in range(64)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * 8] * 64,
            "labels": [row[0] % tiny_config.num_labels for row in ids],
            "length": [8] * 64,
        }
    )


OPTIMIZATION = Optimization(steps=0, learning_rate=1e-3, batch=8)


@pytest.fixture
def judging(minilm_dir, examples):
    """What finalists are trained and judged by: `halve`'s arguments after the first two."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    return tokenizer, examples, examples, Classification(), "accuracy"


def test_the_winner_takes_its_own_steps_and_rungs_are_kept(tiny_config, judging, tmp_path):
    torch.manual_seed(0)
    network = SuperNetwork(BertForSequenceClassification(tiny_config))
    entrants = [
        Entrant("uniform", Subnetwork.of([[2, 32]] * 3), "teacher", steps=6),
        Entrant("evolved", Subnetwork.of([[1, 16]] * 3), "teacher", steps=9),
    ]
    built = []

    def build(entrant):
        built.append(entrant.kind)
        return network.extract(entrant.subnetwork)

    def run():
        return halve(
            entrants,
            build,
            *judging,
            [Rung(2, 1), Rung(None, 1)],
            OPTIMIZATION,
            tmp_path / "finalists",
        )

    halving = run()
    first = [r for r in halving.results if r.rung == 0]
    assert [r.steps for r in first] == [2, 2]
    assert halving.winner == min(first, key=lambda r: r.loss).entrant
    assert halving.results[-1].entrant == halving.winner
    assert halving.results[-1].steps == entrants[halving.winner].steps
    assert (halving.weights / "model.safetensors").exists()
    assert built == ["uniform", "evolved"]
    assert run() == halving
    assert built == ["uniform", "evolved"]


@pytest.mark.parametrize("rate", [1e-3, 50.0])
def test_what_was_trained_already_is_kept_where_training_makes_it_worse(
    rate, tiny_config, judging, tmp_path
):
    """A learning rate of fifty spoils any weights; with a sensible one, six steps help."""
    torch.manual_seed(0)
    network = SuperNetwork(BertForSequenceClassification(tiny_config))
    whole = network.full
    entrants = [Entrant("exact", whole, "baseline", steps=6, trained=True, rate=rate)]
    halving = halve(
        entrants,
        lambda entrant: network.extract(entrant.subnetwork),
        *judging,
        [Rung(None, 1)],
        OPTIMIZATION,
        tmp_path / "finalists",
    )
    assert [r.rung for r in halving.results] == [START, 0]
    start, after = halving.results
    spoilt = rate > 1
    assert (after.loss > start.loss) == spoilt
    assert halving.steps == (0 if spoilt else 6)
    kept = load_file(halving.weights / "model.safetensors")
    same = all(
        torch.equal(kept[name], t) for name, t in network.extract(whole).state_dict().items()
    )
    assert same == spoilt


def test_the_whole_baseline_is_judged_without_being_trained_on(tiny_config, judging, tmp_path):
    torch.manual_seed(0)
    network = SuperNetwork(BertForSequenceClassification(tiny_config))
    narrow = Entrant("uniform", Subnetwork.of([[1, 16]] * 3), "teacher", steps=6)
    whole = Entrant("exact", network.full, "teacher", steps=6, trained=True, whole=True)

    def compared(handicap):
        """Where the narrow one is served so much worse that it loses, or wins."""
        return halve(
            [replace(narrow, handicap=handicap), whole],
            lambda entrant: network.extract(entrant.subnetwork),
            *judging,
            [Rung(2, 1), Rung(None, 1)],
            OPTIMIZATION,
            tmp_path / f"finalists{handicap}",
        )

    won, lost = compared(10.0), compared(-10.0)
    assert [(r.entrant, r.rung) for r in won.results] == [(1, START), (0, 0)]
    assert (won.winner, won.steps, won.weights.name) == (1, 0, "start")
    kept = load_file(won.weights / "model.safetensors")
    cut = network.extract(network.full).state_dict()
    assert all(torch.equal(kept[name], weights) for name, weights in cut.items())
    assert [(r.entrant, r.rung) for r in lost.results] == [(1, START), (0, 0), (0, 1)]
    assert (lost.winner, lost.steps) == (0, 6)
