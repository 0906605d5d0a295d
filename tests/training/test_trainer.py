"""Training: its order, its sandwich, and that a killed training reaches the same weights."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, TrainerCallback

from hwnas.anatomy import find_shape
from hwnas.elastic.supernet import SuperNetwork
from hwnas.space import SearchSpace
from hwnas.training.distillation import state_variances, states_loss
from hwnas.training.memory import Memory
from hwnas.training.optimization import Optimization
from hwnas.training.order import training_order
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import last_checkpoint, train


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config)


@pytest.fixture
def examples(tiny_config):
    rng = random.Random(0)
    vocab = min(64, tiny_config.vocab_size)
    ids = [[rng.randrange(2, vocab) for _ in range(rng.randint(3, 12))] for _ in range(96)]
    labels = [row[0] % tiny_config.num_labels for row in ids]  # learnable
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": labels,
            "length": [len(row) for row in ids],
        }
    )


@pytest.fixture
def teacher(tiny_config):
    torch.manual_seed(1)
    return BertForSequenceClassification(tiny_config).eval()


def _weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class _Kill(TrainerCallback):
    """Ends the training as a kill would: by an exception out of the loop."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.at:
            raise KeyboardInterrupt


SETTINGS = Optimization(steps=12, learning_rate=1e-3, batch=8, checkpoint_every=4, seed=3)


def _train_dense(model, tokenizer, examples, work, teacher=None, callbacks=(), settings=SETTINGS):
    return train(model, tokenizer, examples, settings, work, teacher=teacher, callbacks=callbacks)


def test_training_lowers_the_loss_and_leaves_no_checkpoints(model, tokenizer, examples, tmp_path):
    def loss() -> float:
        model.eval()
        rows = [examples[i] for i in range(32)]
        total = 0.0
        for row in rows:
            with torch.inference_mode():
                ids = torch.tensor([row["input_ids"]])
                total += model(input_ids=ids, labels=torch.tensor([row["labels"]])).loss.item()
        return total

    before = loss()
    steps = train(
        model,
        tokenizer,
        examples,
        Optimization(steps=40, learning_rate=3e-3, batch=16),
        tmp_path / "work",
    )
    assert steps == 40
    assert loss() < before
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("at", "frozen"), [(2, False), (4, True), (7, False), (11, True)])
def test_a_killed_training_resumes_to_the_same_weights(
    model, teacher, tiny_config, tokenizer, examples, tmp_path, at, frozen
):
    settings = replace(SETTINGS, freeze_embeddings=frozen)
    start = _weights(model)
    _train_dense(model, tokenizer, examples, tmp_path / "whole", teacher, settings=settings)
    whole = _weights(model)
    again = BertForSequenceClassification(tiny_config)
    again.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        _train_dense(
            again, tokenizer, examples, tmp_path / "killed", teacher, (_Kill(at),), settings
        )
    words = {"bert.embeddings.word_embeddings.weight"} if frozen else set()
    for kept in (tmp_path / "killed").glob("checkpoint-*/model.safetensors"):
        assert set(load_file(kept)) == {n for n, _ in model.named_parameters()} - words
    fresh = BertForSequenceClassification(tiny_config)
    fresh.load_state_dict(start)
    _train_dense(fresh, tokenizer, examples, tmp_path / "killed", teacher, settings=settings)
    for name, tensor in _weights(fresh).items():
        assert torch.equal(tensor, whole[name]), name


def test_a_training_that_remembers_its_teacher(
    model, teacher, tiny_config, tokenizer, examples, tmp_path
):
    start = _weights(model)

    def run(work, remembers, callbacks=()):
        fresh = BertForSequenceClassification(tiny_config)
        fresh.load_state_dict(start)
        memory = None
        if remembers:  # as a process that was started again would have it: empty
            memory = Memory(teacher, tokenizer, examples, states=True, relations=False)
        train(
            fresh,
            tokenizer,
            memory.examples if memory else examples,
            SETTINGS,
            work,
            teacher=teacher,
            memory=memory,
            callbacks=callbacks,
        )
        return _weights(fresh)

    plain, whole = run(tmp_path / "plain", False), run(tmp_path / "whole", True)
    moved = sum((plain[name] - start[name]).norm() for name in start)
    assert sum((whole[name] - plain[name]).norm() for name in start) < 0.02 * moved
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", True, (_Kill(7),))
    resumed = run(tmp_path / "killed", True)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


@pytest.mark.parametrize(("seen", "kept"), [(192, True), (190, False)])
def test_a_memory_is_for_rows_seen_again(teacher, tokenizer, examples, seen, kept):
    memory = Memory.if_worth_it(
        teacher, tokenizer, examples, seen=seen, states=True, relations=False
    )
    assert (memory is not None) == kept


def test_a_memory_has_bounds(teacher, tokenizer, examples):
    long = examples.remove_columns("length").add_column("length", [10**6] * len(examples))
    assert (
        Memory.if_worth_it(teacher, tokenizer, long, seen=960, states=True, relations=False) is None
    )


def test_a_killed_supernet_training_resumes_to_the_same_weights(
    model, teacher, tiny_config, tokenizer, examples, tmp_path
):
    space = SearchSpace.whole(find_shape(tiny_config))
    sandwich = Sandwich(space, seed=1)
    start = _weights(model)

    def run(work, callbacks=()):
        fresh = BertForSequenceClassification(tiny_config)
        fresh.load_state_dict(start)
        network = SuperNetwork(fresh)
        train(
            network,
            tokenizer,
            examples,
            SETTINGS,
            work,
            teacher=teacher,
            sandwich=sandwich,
            callbacks=callbacks,
        )
        return _weights(fresh)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", (_Kill(6),))
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in resumed.items())


def _dropout(model) -> list[float]:
    return [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] + [
        m.dropout_prob for m in model.modules() if hasattr(m, "dropout_prob")
    ]


class _Look(TrainerCallback):
    """Two forward passes in the middle of the training, as training would do them."""

    def __init__(self, ids) -> None:
        self.ids = ids

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **_):
        assert model.training
        self.dropout = _dropout(model)
        self.alike = torch.equal(model(self.ids).logits, model(self.ids).logits)


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_the_models_own_or_none_and_restored(
    tokenizer, examples, tmp_path, tiny_config, dropout
):
    tiny_config.hidden_dropout_prob = 0.1
    tiny_config.attention_probs_dropout_prob = 0.2
    model = BertForSequenceClassification(tiny_config)
    before = _dropout(model)
    assert {0.1, 0.2} <= set(before)
    look = _Look(torch.tensor([examples[0]["input_ids"]]))
    settings = replace(SETTINGS, dropout=dropout)
    train(model, tokenizer, examples, settings, tmp_path / "work", callbacks=(look,))
    assert look.alike is not dropout
    assert look.dropout == (before if dropout else [0.0] * len(before))
    assert _dropout(model) == before


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_word_embeddings_stay_and_can_be_trained_afterwards(
    model, tokenizer, examples, tmp_path, tiny_config, freeze, elastic
):
    before = _weights(model)
    sandwich = Sandwich(SearchSpace.whole(find_shape(tiny_config)), seed=0) if elastic else None
    network = SuperNetwork(model) if elastic else model
    settings = replace(SETTINGS, freeze_embeddings=freeze)
    train(network, tokenizer, examples, settings, tmp_path / "work", sandwich=sandwich)
    changed = {
        name.replace(".weight", "")
        for name, tensor in model.state_dict().items()
        if name in before and not torch.equal(tensor, before[name])
    }
    assert any("position_embeddings" in name for name in changed)
    assert any("word_embeddings" in name for name in changed) is not freeze
    assert all(p.requires_grad for p in model.parameters())


def test_order_is_fixed_complete_and_of_like_length():
    lengths = [random.Random(i).randint(3, 60) for i in range(1000)]
    order = training_order(lengths, batch=10, steps=100, seed=1)
    assert order == training_order(lengths, batch=10, steps=100, seed=1)
    assert order != training_order(lengths, batch=10, steps=100, seed=2)
    assert sorted(order) == list(range(1000))
    spread = (
        [
            max(lengths[r] for r in batch) - min(lengths[r] for r in batch)
            for batch in itertools.batched(order, 10)
        ]
        if hasattr(itertools, "batched")
        else [
            max(lengths[r] for r in order[i : i + 10]) - min(lengths[r] for r in order[i : i + 10])
            for i in range(0, 1000, 10)
        ]
    )
    assert sum(spread) / len(spread) < 10


def test_order_goes_round_when_the_data_is_small():
    order = training_order([5] * 7, batch=4, steps=9, seed=0)
    assert len(order) == 36
    assert (
        max(order.count(row) for row in range(7)) - min(order.count(row) for row in range(7)) <= 1
    )


def test_sandwich_depends_on_seed_and_step_only(tiny_config):
    space = SearchSpace.whole(find_shape(tiny_config))
    one, two = Sandwich(space, seed=1, samples=3), Sandwich(space, seed=1, samples=3)
    assert [one.at(s) for s in range(20)] == [two.at(s) for s in range(20)]
    assert one.at(5) != Sandwich(space, seed=2, samples=3).at(5)
    for subnetworks in (one.at(s) for s in range(50)):
        assert subnetworks[0] == space.largest
        assert all(s in space for s in subnetworks)


def test_sandwich_stays_within_its_largest(tiny_config):
    space = SearchSpace.whole(find_shape(tiny_config))
    sandwich = Sandwich(space, seed=0, smallest=0.25, largest=0.5, depth_share=0.0)
    for subnetworks in (sandwich.at(s) for s in range(50)):
        assert subnetworks[0] == space.scaled(0.5)
        most = max(b.ffn for s in subnetworks[1:] for b in s.blocks)
        assert most <= 0.75 * space.largest.blocks[0].ffn  # samples vary around their share


def test_sandwich_depth_share(tiny_config):
    space = SearchSpace.whole(find_shape(tiny_config))
    depth = len(space.blocks)

    def shallow(share: float) -> int:
        sandwich = Sandwich(space, seed=0, samples=1, depth_share=share, smallest=0.1)
        return sum(sandwich.at(s)[2].depth < depth for s in range(200))

    assert shallow(0.0) == 0
    assert shallow(0.9) > shallow(0.3) > 0


def test_states_loss_is_the_share_of_the_variance_that_is_missed():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    teacher = [torch.randn(2, 4, 8) for _ in range(2)]
    padded = [state + 9 * (1 - mask[..., None]) for state in teacher]
    spread = state_variances(padded, mask)
    assert states_loss(padded, teacher, mask, spread) == 0  # padding does not count
    means = [state[mask.bool()].mean(dim=0).expand_as(state) for state in teacher]
    assert torch.isclose(states_loss(means, teacher, mask, spread), torch.tensor(1.0))


def test_states_of_fewer_blocks_are_compared_with_evenly_spread_ones():
    teacher = [torch.randn(1, 3, 4) for _ in range(6)]
    mask = torch.ones(1, 3)
    spread = state_variances(teacher, mask)
    assert states_loss([teacher[1], teacher[3], teacher[5]], teacher, mask, spread) == 0
    assert states_loss([teacher[5]], teacher, mask, spread) == 0
    assert states_loss(teacher[:5], teacher, mask, spread) > 0


@pytest.mark.parametrize("elastic", [False, True])
def test_a_student_comes_nearer_to_its_teacher(
    model, teacher, tokenizer, examples, tmp_path, tiny_config, elastic
):
    batch = {"input_ids": torch.tensor([examples[0]["input_ids"]])}

    @torch.no_grad()
    def apart() -> torch.Tensor:
        mine, wanted = (m.eval()(**batch, output_hidden_states=True) for m in (model, teacher))
        mask = torch.ones_like(batch["input_ids"])
        spread = state_variances(wanted.hidden_states[1:], mask)
        return states_loss(mine.hidden_states[1:], wanted.hidden_states[1:], mask, spread)

    before = apart()
    settings = Optimization(steps=40, learning_rate=3e-3, batch=16, states_weight=1.0)
    network = SuperNetwork(model) if elastic else model
    sandwich = Sandwich(SearchSpace.whole(find_shape(tiny_config)), seed=0) if elastic else None
    train(
        network,
        tokenizer,
        examples,
        settings,
        tmp_path / "work",
        teacher=teacher,
        sandwich=sandwich,
    )
    assert apart() < 0.8 * before


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path / "nothing") is None
    for number, whole in ((9, True), (250, True), (1000, False)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "model.safetensors").touch()
        if whole:
            (folder / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-250")
