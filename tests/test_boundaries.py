"""Boundaries: one threshold for the whole model, the union over targets, and steps of the clock."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.anatomy import Shape
from hwnas.boundaries import at_complexity, automatic, snapped, surviving
from hwnas.errors import UserError
from hwnas.importance.scores import Importance
from hwnas.latency.predictor import Curve, LatencyPredictor
from hwnas.space import BlockOptions, SearchSpace
from hwnas.subnetwork import DROPPED, Block, Subnetwork, macs

SHAPE = Shape("bert", 64, 16, (4,) * 3, (128,) * 3, 100)


def scores(seed: int = 0) -> Importance:
    """Of blocks that matter less and less."""
    generator = torch.Generator().manual_seed(seed)

    def random(n: int, block: int) -> torch.Tensor:
        return torch.rand(n, generator=generator) * 0.5**block

    heads = tuple(random(4, i) for i in range(3))
    ffn = tuple(random(128, i) for i in range(3))
    return Importance(heads, ffn, head_weights=heads, ffn_weights=ffn)


def share(subnetwork: Subnetwork) -> float:
    return macs(subnetwork, SHAPE, 32) / macs(Subnetwork.full(SHAPE), SHAPE, 32)


def test_what_survives_is_what_is_at_least_the_threshold():
    importance = Importance(
        (),
        (),
        head_weights=(torch.tensor([3.0, 1.0, 2.0, 0.5]),) * 2,
        ffn_weights=(torch.tensor([1.0] * 100 + [0.1] * 28), torch.tensor([2.0] * 2 + [0.1] * 126)),
    )
    shape = Shape("bert", 64, 16, (4, 4), (128, 128), 100)
    assert surviving(importance, 1.0, shape) == Subnetwork((Block(3, 100), DROPPED))
    assert surviving(importance, 0.0, shape) == Subnetwork((Block(4, 128), Block(4, 128)))


def test_heads_of_a_kv_group_survive_together():
    importance = Importance(
        (),
        (),
        head_weights=(torch.tensor([3.0, 0.0, 1.0, 0.5]),),
        ffn_weights=(torch.ones(8),),
    )
    shape = Shape("llama", 64, 16, (4,), (8,), 100, group=2)
    assert surviving(importance, 1.0, shape) == Subnetwork((Block(2, 8),))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.15, 0.99), st.integers(0, 50))
def test_the_threshold_uses_the_complexity_up(target, seed):
    importance = scores(seed)
    found = at_complexity(importance, share, target, SHAPE)
    assert share(found) <= target
    # the next lower threshold would be too much, or a block came back whole
    values = sorted(
        float(v) for t in (*importance.head_weights, *importance.ffn_weights) for v in t
    )
    fewer = [v for v in values if surviving(importance, v, SHAPE) != found]
    larger = [s for v in fewer if share(s := surviving(importance, v, SHAPE)) > share(found)]
    assert all(share(s) > target for s in larger)


def test_options_are_the_union_over_the_targets():
    importance = scores()
    shares = (0.3, 0.5, 0.7)
    space = automatic(importance, SHAPE, share, shares)
    found = [at_complexity(importance, share, s, SHAPE) for s in shares]
    for i, options in enumerate(space.blocks):
        kept = [s.blocks[i] for s in found if s.blocks[i].present]
        assert set(options.heads) == {b.heads for b in kept}
        assert set(options.ffn) == {b.ffn for b in kept}
        assert options.droppable == (len(kept) < len(found))
    assert all(s in space for s in found)
    assert space.size() < SearchSpace.whole(SHAPE).size()
    # what matters more keeps more
    assert space.blocks[0].ffn[-1] > space.blocks[2].ffn[-1]


def test_ffn_widths_in_steps():
    space = automatic(scores(), SHAPE, share, (0.3, 0.6), step=32)
    assert all(width % 32 == 0 for options in space.blocks for width in options.ffn)


def test_a_target_at_which_nothing_survives():
    with pytest.raises(UserError, match="at a complexity of 0 nothing of the model survives"):
        at_complexity(scores(), share, 0.0, SHAPE)
    with pytest.raises(UserError, match="no scores of single weights"):
        at_complexity(Importance((), ()), share, 0.5, SHAPE)


def stepped() -> LatencyPredictor:
    """Heads cost by pairs, neurons by 32s."""
    widths = np.arange(1, 129, dtype=float)
    return LatencyPredictor(
        fixed_ms=0.1,
        attention=Curve(np.arange(1.0, 5.0), np.array([2.0, 2.0, 4.0, 4.0])),
        ffn=Curve(widths, np.ceil(widths / 32)),
        baseline_ms=24.1,
    )


def test_options_go_to_the_steps_of_the_clock():
    options = BlockOptions(heads=(1, 2, 3), ffn=(20, 33, 60, 96, 100))
    space = snapped(SearchSpace(blocks=(options,) * 3), stepped(), SHAPE)
    assert space.blocks[0].heads == (2, 4)
    assert space.blocks[0].ffn == (32, 64, 96, 128)
    assert space.blocks[0].droppable


def test_a_snapped_space_loses_no_time_and_no_width():
    before = automatic(scores(), SHAPE, share, (0.3, 0.5, 0.7))
    after = snapped(before, stepped(), SHAPE)
    predictor = stepped()
    for old, new in zip(before.blocks, after.blocks, strict=True):
        for heads in old.heads:
            wider = min(w for w in new.heads if w >= heads)
            same = predictor.attention.at(wider) - predictor.attention.at(heads)
            assert same <= 0.002 * predictor.block_ms(Block(4, 128))
    assert after.size() <= before.size()
