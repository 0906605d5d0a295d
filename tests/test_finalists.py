"""Where finalists start: cutting a larger budget's winner down is cutting the original twice."""

import torch
from transformers import BertForSequenceClassification

from hwnas.elastic.supernet import SuperNetwork
from hwnas.finalists import Origin
from hwnas.subnetwork import Subnetwork


def test_a_cut_of_a_cut_is_a_cut_of_the_whole(tiny_config):
    torch.manual_seed(0)
    whole = SuperNetwork(BertForSequenceClassification(tiny_config))
    within = Subnetwork.of([[2, 32], [0, 0], [4, 64]])
    smaller = Subnetwork.of([[1, 32], [0, 0], [2, 16]])
    origin = Origin(SuperNetwork(whole.extract(within)), within, steps=0)
    assert origin.holds(smaller)
    tokens = {"input_ids": torch.randint(5, 50, (2, 12)), "attention_mask": torch.ones(2, 12)}
    with torch.no_grad():
        once, twice = whole.extract(smaller)(**tokens), origin.extract(smaller)(**tokens)
    torch.testing.assert_close(twice.logits, once.logits)


def test_an_origin_holds_no_wider_block(tiny_config):
    whole = SuperNetwork(BertForSequenceClassification(tiny_config))
    depth = len(whole.full.blocks)
    within = Subnetwork.of([[2, 16]] * depth)
    origin = Origin(SuperNetwork(whole.extract(within)), within, steps=0)
    assert origin.holds(Subnetwork.of([[1, 16]] * depth))
    assert not origin.holds(Subnetwork.of([[2, 16]] * (depth - 1) + [[3, 16]]))
    assert not origin.holds(Subnetwork.of([[2, 16]] * (depth - 1) + [[1, 17]]))
