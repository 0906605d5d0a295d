"""A subnetwork computes what its dense twin computes, and full width what the model did."""

import copy
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hwnas.elastic.layers import ElasticLinear
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.models import load, load_model
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork

EXACT = 1e-5


def _inputs(vocab: int, batch: int = 3, seq: int = 17) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(batch, seq, dtype=torch.long)
    mask[1, 9:] = 0
    ids = torch.randint(5, vocab, (batch, seq), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def _logits(model, inputs) -> torch.Tensor:
    return model.eval()(**inputs).logits


@pytest.fixture
def tiny(tiny_config):
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config).eval()


@pytest.fixture(scope="module")
def minilm():
    return load_model("demo:minilm", labels=["a", "b", "c"])[0].eval()


def _compare_with_twins(model, count: int) -> None:
    inputs = _inputs(model.config.vocab_size)
    untouched = _logits(copy.deepcopy(model), inputs)
    network = SuperNetwork(model)
    assert torch.equal(_logits(network.model, inputs), untouched)
    space = SearchSpace.whole(network.shape)
    rng = random.Random(1)
    for _ in range(count):
        subnetwork = space.sample(rng, drop=0.2)
        network.set_subnetwork(subnetwork)
        twin = network.extract(subnetwork)
        assert not any(isinstance(m, ElasticLinear) for m in twin.modules())
        difference = (_logits(network.model, inputs) - _logits(twin, inputs)).abs().max().item()
        assert difference <= EXACT, f"{subnetwork}: {difference}"
    network.set_subnetwork(network.full)
    assert torch.equal(_logits(network.model, inputs), untouched)


def test_tiny_subnetworks_equal_their_twins(tiny):
    _compare_with_twins(tiny, count=30)


def test_minilm_subnetworks_equal_their_twins(minilm):
    _compare_with_twins(copy.deepcopy(minilm), count=8)


def test_switching_shares_weights(tiny):
    network = SuperNetwork(tiny)
    before = {name: p.data_ptr() for name, p in tiny.named_parameters()}
    network.set_subnetwork(SearchSpace.whole(network.shape).scaled(0.5))
    network.set_subnetwork(network.full)
    assert {name: p.data_ptr() for name, p in tiny.named_parameters()} == before


def test_gradient_reaches_the_active_prefix_only(tiny):
    network = SuperNetwork(tiny)
    half = SearchSpace.whole(network.shape).scaled(0.5)
    with network.as_subnetwork(half) as model:
        model(**_inputs(tiny.config.vocab_size), labels=torch.tensor([0, 1, 0])).loss.backward()
    gradient = tiny.bert.encoder.layer[0].intermediate.dense.weight.grad
    width = half.blocks[0].ffn
    assert gradient[:width].abs().sum() > 0
    assert gradient[width:].abs().sum() == 0


def test_extracted_model_owns_its_weights(tiny):
    network = SuperNetwork(tiny)
    twin = network.extract(network.full)
    theirs = {p.data_ptr() for p in twin.parameters()}
    assert theirs.isdisjoint({p.data_ptr() for p in tiny.parameters()})


def test_extracted_model_reloads_with_its_widths(tiny, tmp_path):
    network = SuperNetwork(tiny)
    subnetwork = Subnetwork.of([[2, 24], *[[0, 0]] * (network.shape.depth - 2), [1, 40]])
    twin = network.extract(subnetwork)
    twin.save_pretrained(tmp_path)
    again = load(tmp_path)
    inputs = _inputs(tiny.config.vocab_size)
    assert torch.equal(_logits(again, inputs), _logits(twin, inputs))
    assert SuperNetwork(again).shape.heads == (2, 1)
    assert SuperNetwork(again).shape.ffn == (24, 40)


def test_a_shrunk_model_can_be_shrunk_again(tiny):
    first = SuperNetwork(tiny)
    shrunk = first.extract(Subnetwork.of([[3, 40]] * first.shape.depth))
    _compare_with_twins(shrunk, count=5)


@pytest.mark.parametrize(
    ("genome", "word"),
    [
        ([[1, 8]], "blocks"),
        ([[99, 8]], "heads|blocks|model has"),
        ([[0, 8]], "0 and 0"),
        ([[0, 0]], "every block"),
        ([[1, 9999]], "model has"),
        ([[-1, 8]], "model has"),
    ],
)
def test_a_subnetwork_that_does_not_fit_is_refused(tiny, genome, word):
    network = SuperNetwork(tiny)
    depth = network.shape.depth
    whole = genome if word == "blocks" else genome * depth
    if word == "blocks":
        whole = genome * (depth + 1)
    with pytest.raises(UserError, match=word):
        network.set_subnetwork(Subnetwork.of(whole))
    assert network.active == network.full


def test_unknown_family_is_refused():
    from transformers import GPTJConfig

    config = GPTJConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=50, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UserError, match=r"gptj.*supported: bert"):
        SuperNetwork(model)
