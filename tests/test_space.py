"""Search spaces and subnetworks: options, snapping, sizes, and what is refused."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hwnas.anatomy import Shape
from hwnas.errors import UserError
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork, genomes, macs

SHAPE = Shape("bert", 384, 32, (12,) * 6, (1536,) * 6, 30522)
SPACE = SearchSpace.whole(SHAPE)


def test_whole_space_holds_full_model_and_every_width():
    assert Subnetwork.full(SHAPE) == SPACE.largest in SPACE
    assert SPACE.blocks[0].heads == tuple(range(1, 13))
    assert SPACE.blocks[0].ffn[0] == 32 and SPACE.blocks[0].ffn[-1] == 1536
    assert SPACE.size() == (12 * 48 + 1) ** 6


@given(st.integers(0, 10**6), st.floats(0, 0.9))
def test_samples_are_in_the_space_and_keep_a_block(seed, drop):
    subnetwork = SPACE.sample(random.Random(seed), drop)
    assert subnetwork in SPACE
    assert subnetwork.depth >= 1
    assert Subnetwork.of(subnetwork.genome) == subnetwork


@given(st.floats(0.01, 1.0))
def test_scaled_is_uniform_and_in_the_space(share):
    subnetwork = SPACE.scaled(share)
    assert subnetwork in SPACE
    assert len(set(subnetwork.blocks)) == 1


def test_scaled_leaves_blocks_out():
    subnetwork = SPACE.scaled(0.5, [True, False, True, True, False, True])
    assert subnetwork.blocks[1] == subnetwork.blocks[4] == DROPPED
    assert subnetwork.depth == 4


def test_membership_needs_an_option():
    assert Subnetwork.of([[12, 1536]] * 5 + [[12, 1535]]) not in SPACE
    assert Subnetwork.of([[12, 1536]] * 5) not in SPACE
    fixed = SearchSpace(blocks=(BlockOptions(heads=(2,), ffn=(8,), droppable=False),))
    assert Subnetwork.of([[0, 0]]) not in fixed


@pytest.mark.parametrize(
    "widths",
    [{"heads": (), "ffn": (8,)}, {"heads": (2, 1), "ffn": (8,)}, {"heads": (0,), "ffn": (8,)}],
)
def test_options_must_ascend(widths):
    with pytest.raises(ValidationError):
        BlockOptions(**widths)


def test_a_space_of_another_model_is_named():
    space = SearchSpace.whole(SHAPE)
    narrow = Shape("bert", 384, 32, (12, 12, 12, 10, 12, 12), (1536,) * 6, 30522)
    with pytest.raises(UserError, match=r"space.json: block 3 has 12 heads, the model has 10"):
        space.check(narrow)
    with pytest.raises(UserError, match="6 blocks, the model has 2"):
        space.check(Shape("bert", 384, 32, (12,) * 2, (1536,) * 2, 30522))


def test_genomes_are_arrays():
    array = genomes([Subnetwork.full(SHAPE), SPACE.scaled(0.5)])
    assert array.shape == (2, 6, 2)


def test_macs_add_up_over_blocks():
    full = macs(Subnetwork.full(SHAPE), SHAPE, 64)
    one = macs(Subnetwork.of([[12, 1536]] + [[0, 0]] * 5), SHAPE, 64)
    assert full == 6 * one
    block = Block(12, 1536)
    by_hand = 64 * (4 * 384 * 384 + 2 * 384 * block.ffn) + 2 * 384 * 64 * 64
    assert one == by_hand
