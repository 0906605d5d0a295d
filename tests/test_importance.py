"""Reordering keeps the function; the scores tell good parts from bad ones."""

import copy

import pytest
import torch
from transformers import BertForSequenceClassification

from hwnas.elastic.supernet import SuperNetwork
from hwnas.importance import Importance, first_order, reorder
from hwnas.models import load_model
from hwnas.subnetwork import Block, Subnetwork


def _batches(vocab: int, classes: int, count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(5, vocab, (4, 12), generator=generator),
            "labels": torch.randint(0, classes, (4,), generator=generator),
        }
        for _ in range(count)
    ]


@torch.inference_mode()
def _logits(model, batches) -> torch.Tensor:
    return torch.cat([model.eval()(input_ids=b["input_ids"]).logits for b in batches])


@pytest.fixture
def tiny(tiny_config):
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config)
    with torch.no_grad():  # random weights of size 0.02 hardly matter to any output
        for parameter in model.bert.encoder.parameters():
            parameter.mul_(8)
    return model.eval()


def test_reordering_keeps_the_function_of_a_tiny_model(tiny):
    batches = _batches(tiny.config.vocab_size, tiny.config.num_labels)
    before = _logits(tiny, batches)
    reorder(tiny, first_order(tiny, batches))
    assert (_logits(tiny, batches) - before).abs().max() <= 1e-5


def test_reordering_keeps_the_function_of_minilm():
    model, _ = load_model("demo:minilm", labels=["a", "b"])
    batches = _batches(model.config.vocab_size, 2)
    before = _logits(model, batches)
    weights = model.bert.encoder.layer[0].intermediate.dense.weight.clone()
    reorder(model, first_order(model, batches))
    assert not torch.equal(weights, model.bert.encoder.layer[0].intermediate.dense.weight)
    assert (_logits(model, batches) - before).abs().max() <= 1e-5


def test_a_part_without_effect_scores_zero_and_goes_last(tiny):
    with torch.no_grad():
        layer = tiny.bert.encoder.layer[0]
        head = tiny.config.hidden_size // tiny.config.num_attention_heads
        layer.attention.output.dense.weight[:, :head] = 0  # head 0
        layer.output.dense.weight[:, 3] = 0  # neuron 3
    batches = _batches(tiny.config.vocab_size, tiny.config.num_labels)
    scores = first_order(tiny, batches)
    assert scores.heads[0][0] == 0 and (scores.heads[0][1:] > 0).all()
    assert scores.ffn[0][3] == 0
    before = _logits(tiny, batches)
    reorder(tiny, scores)
    network = SuperNetwork(tiny)
    full = network.full.blocks
    without = Subnetwork((Block(full[0].heads - 1, full[0].ffn - 1), *full[1:]))
    bias_kept = _logits(network.extract(without), batches)
    assert (bias_kept - before).abs().max() <= 1e-5


def test_scores_rank_heads_as_leaving_them_out_does(tiny):
    """Against brute force: the change of loss when one head is silenced, over all blocks."""
    from scipy.stats import spearmanr

    batches = _batches(tiny.config.vocab_size, tiny.config.num_labels, count=16)
    scores = torch.cat(first_order(tiny, batches).heads)

    def loss(model) -> float:
        with torch.inference_mode():
            return sum(model(**b).loss.item() for b in batches) / len(batches)

    per_batch_changes = []
    head = tiny.config.hidden_size // tiny.config.num_attention_heads
    for block in range(tiny.config.num_hidden_layers):
        for h in range(tiny.config.num_attention_heads):
            silenced = copy.deepcopy(tiny)
            dense = silenced.bert.encoder.layer[block].attention.output.dense
            with torch.no_grad():
                dense.weight[:, h * head : (h + 1) * head] = 0
            with torch.inference_mode():
                change = sum(
                    abs(silenced(**b).loss.item() - tiny(**b).loss.item()) for b in batches
                )
            per_batch_changes.append(change)
    rank = spearmanr(scores.numpy(), per_batch_changes).statistic
    assert rank > 0.6, rank


def test_scores_are_saved_and_loaded(tiny, tmp_path):
    scores = first_order(tiny, _batches(tiny.config.vocab_size, tiny.config.num_labels))
    scores.save(tmp_path / "importance.safetensors")
    again = Importance.load(tmp_path / "importance.safetensors")
    for mine, theirs in zip((*scores.heads, *scores.ffn), (*again.heads, *again.ffn), strict=True):
        assert torch.equal(mine, theirs)


def test_loss_of_a_prefix_is_what_it_leaves_out():
    scores = Importance((torch.tensor([1.0, 4.0, 2.0]),), (torch.tensor([0.5, 0.25]),))
    loss = scores.loss()
    assert loss.of(0, Block(3, 2)) == 0
    assert loss.of(0, Block(2, 2)) == 1
    assert loss.of(0, Block(1, 1)) == 3.25
    assert loss.of(0, Block(0, 0)) == 7.75
