"""A narrower residual stream, for every family of encoders: sorted, viewed, extracted, reloaded."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import CONFIGS, DECODERS, EXACT, answer_of, gap, make_model

from hwnas.elastic.residual import reorder_residual, residual_axes
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.models import load
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork

ENCODERS = [name for name in CONFIGS if name not in DECODERS]


def _sorted_network(name: str) -> SuperNetwork:
    model = make_model(name)
    importance = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    before = answer_of(copy.deepcopy(model))
    weight = model.get_input_embeddings()
    first = copy.deepcopy(next(weight.parameters()).data)
    reorder_residual(model, importance)
    assert gap(answer_of(model), before) <= EXACT
    assert name == "electra" or not torch.equal(next(weight.parameters()).data, first)
    return SuperNetwork(model)


@pytest.mark.parametrize("name", ENCODERS)
def test_sorted_viewed_and_extracted_models_agree(name: str) -> None:
    network = _sorted_network(name)
    config = network.model.config
    space = SearchSpace.whole(network.shape, ffn_step=16)
    full = answer_of(network.model)
    for seed in range(3):
        subnetwork = space.sample(random.Random(seed), drop=0.3)
        subnetwork = subnetwork.narrowed(config.hidden_size // 2)
        twin = network.extract(subnetwork)
        with network.as_subnetwork(subnetwork) as view:
            assert gap(answer_of(view), answer_of(twin)) <= EXACT, str(subnetwork)
        assert twin.config.hidden_size == config.hidden_size // 2
        assert gap(answer_of(twin), full) > EXACT
    assert gap(answer_of(network.model), full) == 0


@pytest.mark.parametrize("name", ENCODERS)
def test_narrow_models_load_with_and_without_hwnas(name: str, tmp_path: Path) -> None:
    network = _sorted_network(name)
    narrow = network.full.narrowed(network.shape.hidden // 2)
    dense = network.extract(narrow)
    ending = type(dense).__name__[type(dense).__name__.index("For") :]
    auto = getattr(transformers, f"AutoModel{ending}")
    dense._auto_class = auto.__name__
    dense.save_pretrained(tmp_path / "dense")
    wanted = answer_of(dense)
    assert gap(answer_of(load(tmp_path / "dense")), wanted) == 0
    again = auto.from_pretrained(tmp_path / "dense", trust_remote_code=True)
    assert gap(answer_of(again), wanted) == 0


def test_gradients_reach_the_shared_weights() -> None:
    network = _sorted_network("bert")
    narrow = network.full.narrowed(16)
    with network.as_subnetwork(narrow) as view:
        assert not list(view.parameters())  # nothing of its own
        ids = torch.randint(5, 99, (2, 7))
        view(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    weight = network.model.bert.encoder.layer[0].intermediate.dense.weight
    assert weight.grad is not None
    assert weight.grad[:, :16].abs().sum() > 0 and weight.grad[:, 16:].abs().sum() == 0


def test_dropout_is_the_whole_models() -> None:
    network = _sorted_network("bert")
    network.model.train()
    for module in network.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    with network.as_subnetwork(network.full.narrowed(16)) as view:
        assert view.training
        ids = torch.randint(5, 99, (2, 7))
        assert torch.equal(view(input_ids=ids).logits, view(input_ids=ids).logits)


def test_widths_that_a_model_cannot_have() -> None:
    network = _sorted_network("bert")
    for hidden, words in ((64, "give less"), (18, "the nearest is 16")):
        with (
            pytest.raises(UserError, match=words),
            network.as_subnetwork(network.full.narrowed(hidden)),
        ):
            pass
    assert network.active == network.full
    llama = SuperNetwork(make_model("llama"))
    with pytest.raises(UserError, match="decoders"):
        llama.extract(llama.full.narrowed(16))


def test_axes_of_a_bert() -> None:
    axes = residual_axes(make_model("bert"))
    assert axes["bert.embeddings.word_embeddings.weight"] == (1,)
    assert axes["bert.pooler.dense.weight"] == (0, 1)
    assert axes["bert.encoder.layer.0.attention.self.query.weight"] == (1,)
    assert axes["bert.encoder.layer.0.output.LayerNorm.bias"] == (0,)
    assert axes["classifier.weight"] == (1,) and "classifier.bias" not in axes


def test_a_genome_holds_the_residual_width() -> None:
    narrow = Subnetwork.of([[4, 64], [0, 0], [16]])
    assert narrow.hidden == 16 and narrow.depth == 1
    assert Subnetwork.of(narrow.genome) == narrow
    assert str(narrow) == "4x64 - @16"
