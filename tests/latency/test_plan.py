"""The plan: networks in every corner, and unseen ones that are none of them."""

from __future__ import annotations

import json

import pytest
from samples import MINILM, SMOLLM2

from hwnas.anatomy import Shape
from hwnas.latency.plan import MIXED, MIXED_DECODE, Plan, between, whole_networks
from hwnas.space import SearchSpace
from hwnas.subnetwork import Block, Subnetwork, macs

TINY = Shape("bert", 8, 8, (1,), (32,), 100)


@pytest.mark.parametrize("shape", [MINILM, SMOLLM2, TINY])
def test_stacks_reach_both_ends_of_every_width(shape: Shape) -> None:
    plan = Plan.of(shape)
    blocks = {stack.blocks[0] for stack in plan.stacks()}
    heads, ffn = ({getattr(b, name) for b in blocks} for name in ("heads", "ffn"))
    assert {plan.heads[0], plan.heads[-1]} <= heads and max(heads) == shape.heads[0]
    assert {plan.ffn[0], plan.ffn[-1]} <= ffn and max(ffn) == shape.ffn[0]
    assert {Block(h, f) for h in (plan.heads[0], plan.heads[-1]) for f in (min(ffn), max(ffn))} <= (
        blocks
    )
    assert all(len(stack.blocks) == shape.depth for stack in plan.stacks())
    assert {stack.depth for stack in plan.stacks()} == {1, plan.depth}
    assert plan.reference in plan.stacks()


def test_heads_are_whole_groups() -> None:
    plan = Plan.of(SMOLLM2, unseen=20)
    assert plan.heads == (3, 6, 9)
    for subnetwork in (*plan.stacks(), *plan.mixed, *plan.unseen):
        assert all(block.heads % 3 == 0 for block in subnetwork.blocks)


def test_unseen_networks_are_none_of_those_measured() -> None:
    plan = Plan.of(MINILM, unseen=40, seed=3)
    assert plan == Plan.of(MINILM, unseen=40, seed=3) != Plan.of(MINILM, unseen=40, seed=4)
    assert len(set(plan.unseen)) == 40 and len(set(plan.mixed)) == MIXED
    assert not set(plan.unseen) & {plan.full, *plan.mixed, *plan.stacks()}
    assert not {plan.full} & set(plan.mixed)
    assert Plan.of(TINY, unseen=5).unseen == ()


def test_decoding_is_fitted_to_more_networks_of_which_the_first_are_the_others() -> None:
    prefill, decode = (Plan.of(SMOLLM2, phase=phase) for phase in ("prefill", "decode"))
    assert len(decode.mixed) == MIXED_DECODE > MIXED
    assert decode.mixed[:MIXED] == prefill.mixed


def test_whole_networks() -> None:
    found = whole_networks(MINILM, 40, seed=3)
    assert all(s in SearchSpace.whole(MINILM) for s in found)
    whole = macs(Subnetwork.full(MINILM), MINILM, 64)
    shares = [macs(s, MINILM, 64) / whole for s in found]
    assert min(shares) > 0.19 and min(shares) < 0.4 and max(shares) > 0.7
    assert {len(s.kept) for s in found} >= {4, 5, 6}
    kinds = {len({b for _, b in s.kept}) > 1 for s in found}
    assert kinds == {True, False}


def test_plan_travels() -> None:
    plan = Plan.of(SMOLLM2, unseen=3)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_between() -> None:
    assert between((1, 2, 3, 4, 5), 1, 5) == 3
    assert between((1, 2, 9, 10), 1, 10) in (2, 9)
    assert between((1, 2), 1, 2) is None
