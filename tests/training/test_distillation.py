"""Relations of tokens: nothing where they are the teacher's, whatever the number of heads."""

import copy

import pytest
import torch
from tiny_models import CONFIGS, DECODERS, inputs_of, make_model
from transformers import BertForSequenceClassification

from hwnas.elastic.supernet import SuperNetwork
from hwnas.space import SearchSpace
from hwnas.training.distillation import last_projections, relations_loss


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config).eval()


def _projections(model, ids, mask):
    with torch.no_grad(), last_projections(model) as found:
        model(input_ids=ids, attention_mask=mask)
    return found


@pytest.fixture
def batch():
    ids = torch.randint(5, 100, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return ids, mask


def test_the_last_active_block_is_looked_at(model, batch):
    network = SuperNetwork(model)
    full = _projections(model, *batch)
    assert [tuple(p.shape) for p in full] == [(4, 9, 32)] * 3
    space = SearchSpace.whole(network.shape)
    network.set_subnetwork(space.snap([[4, 64], [2, 64], [0, 0]]))
    second = _projections(model, *batch)
    assert [tuple(p.shape) for p in second] == [(4, 9, 16)] * 3
    assert not any(module._forward_hooks for module in model.modules()), "hooks are gone"


def test_relations_of_the_teacher_itself_cost_nothing(model, batch):
    ids, mask = batch
    mine = _projections(model, ids, mask)
    assert relations_loss(mine, mine, mask).abs() < 1e-6
    other = [torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) for p in mine]
    assert relations_loss(other, mine, mask) > 1e-2


def test_padding_does_not_count(model, batch):
    ids, mask = batch
    mine = _projections(model, ids, mask)
    changed = [p.clone() for p in mine]
    for projection in changed:
        projection[1, 5:] = 7.0
    assert torch.isclose(
        relations_loss(changed, mine, mask), relations_loss(mine, mine, mask), atol=1e-6
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_student_may_have_fewer_heads(model, batch, heads):
    ids, mask = batch
    network = SuperNetwork(copy.deepcopy(model))
    network.set_subnetwork(SearchSpace.whole(network.shape).snap([[heads, 64]] * 3))
    with last_projections(network.model) as mine:
        network.model(input_ids=ids, attention_mask=mask)
    loss = relations_loss(mine, _projections(model, ids, mask), mask)
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    query = network.model.bert.encoder.layer[-1].attention.self.query.weight
    assert query.grad[: heads * 8].abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in (*DECODERS, "vit")])
def test_the_last_blocks_projections_are_three_in_every_family(name):
    """DeBERTa's v3 asks the same layers of relative positions, too."""
    model = make_model(name)
    inputs = inputs_of(model)
    with last_projections(model) as found:
        model(**inputs)
    rows = inputs["input_ids"].shape
    assert [tuple(x.shape[:2]) for x in found] == [tuple(rows)] * 3
    assert relations_loss(found, found, inputs["attention_mask"]).abs() < 1e-5
