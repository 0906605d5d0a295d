"""Reordering keeps the function; the scores tell good parts from bad ones."""

import copy

import pytest
import torch
from datasets import Dataset
from tiny_models import DECODERS, inputs_of, make_model
from transformers import BertForSequenceClassification, TrainerCallback

from hwnas.anatomy import find_shape
from hwnas.elastic.supernet import SuperNetwork
from hwnas.files import read_tensors
from hwnas.importance.kinds import Movement, measure
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.importance.spec import ImportanceSpec
from hwnas.models import load_model
from hwnas.subnetwork import Block, Subnetwork
from hwnas.training.optimization import Optimization
from hwnas.training.trainer import train


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
    reorder(tiny, measure(tiny, batches))
    assert (_logits(tiny, batches) - before).abs().max() <= 1e-5


def test_reordering_keeps_the_function_of_minilm():
    model, _ = load_model("demo:minilm", labels=["a", "b"])
    batches = _batches(model.config.vocab_size, 2)
    before = _logits(model, batches)
    weights = model.bert.encoder.layer[0].intermediate.dense.weight.clone()
    reorder(model, measure(model, batches))
    assert not torch.equal(weights, model.bert.encoder.layer[0].intermediate.dense.weight)
    assert (_logits(model, batches) - before).abs().max() <= 1e-5


def test_a_part_without_effect_scores_zero_and_goes_last(tiny):
    with torch.no_grad():
        layer = tiny.bert.encoder.layer[0]
        head = tiny.config.hidden_size // tiny.config.num_attention_heads
        layer.attention.output.dense.weight[:, :head] = 0  # head 0
        layer.output.dense.weight[:, 3] = 0  # neuron 3
    batches = _batches(tiny.config.vocab_size, tiny.config.num_labels)
    scores = measure(tiny, batches)
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
    scores = torch.cat(measure(tiny, batches).heads)

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
    scores = measure(tiny, _batches(tiny.config.vocab_size, tiny.config.num_labels))
    scores.save(tmp_path / "importance.safetensors")
    again = Importance.load(tmp_path / "importance.safetensors")
    for name in ("heads", "ffn", "head_weights", "ffn_weights"):
        for mine, theirs in zip(getattr(scores, name), getattr(again, name), strict=True):
            assert torch.equal(mine, theirs)
    for name in ("layers", "residual", "vocabulary"):
        assert torch.equal(getattr(scores, name), getattr(again, name))
    assert scores.layers.shape == (3,) and scores.residual.shape == (32,)
    assert scores.vocabulary.shape == (120,)


def test_loss_of_a_prefix_is_what_it_leaves_out():
    scores = Importance((torch.tensor([1.0, 4.0, 2.0]),), (torch.tensor([0.5, 0.25]),))
    loss = scores.loss()
    assert loss.of(0, Block(3, 2)) == 0
    assert loss.of(0, Block(2, 2)) == 1
    assert loss.of(0, Block(1, 1)) == 3.25
    assert loss.of(0, Block(0, 0)) == 7.75


STEPS, SEEDS = 300, (0, 1, 2, 3)


def _learner(config, seed: int = 0):
    """A tiny model that is to learn which class of word stands first, and what it learns from.

    In double precision: in single, each kind of processor ends with another model.
    """
    from transformers import TrainerControl, TrainerState, TrainingArguments

    torch.manual_seed(seed)
    model = BertForSequenceClassification(config).double()
    generator = torch.Generator().manual_seed(3 + seed)

    def batch(count: int = 16) -> dict[str, torch.Tensor]:
        ids = torch.randint(5, 60, (count, 8), generator=generator)
        return {"input_ids": ids, "labels": ids[:, 1] % config.num_labels}

    return model, batch, TrainingArguments("unused"), TrainerState(), TrainerControl()


def _learned(config, folder, seed: int):
    """The same after its training, with rows to look at and its movement."""
    from safetensors.torch import load_file

    model, batch, args, state, control = _learner(config, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    movement = Movement(folder / "movement.safetensors", STEPS)
    movement.on_train_begin(args, state, control, model=model)
    for _ in range(STEPS):
        model(**batch()).loss.backward()
        movement.on_pre_optimizer_step(args, state, control)
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        movement.on_step_end(args, state, control)
    batches = [batch(8) for _ in range(24)]
    return model.eval(), batches, load_file(folder / "movement.safetensors")


@pytest.fixture(scope="module")
def all_learned(new_tiny_config, tmp_path_factory):
    """One for each of some seeds: by which parts a tiny model learns is a matter of luck."""
    folder = tmp_path_factory.mktemp("learned")
    return [_learned(new_tiny_config(), folder, seed) for seed in SEEDS]


@pytest.fixture
def learned(all_learned):
    return all_learned[0]


def _mean_loss(model, batches) -> float:
    with torch.inference_mode():
        return sum(model(**b).loss.item() for b in batches) / len(batches)


def _ablated(model, batches) -> dict[str, list[float]]:
    """By how much the loss grows when a head, or an eighth of an FFN by index, is silenced."""
    whole = _mean_loss(model, batches)
    head = model.config.hidden_size // model.config.num_attention_heads
    found: dict[str, list[float]] = {"heads": [], "ffn": []}
    for block in range(model.config.num_hidden_layers):
        for name, dense_of, size in (
            ("heads", lambda layer: layer.attention.output.dense, head),
            ("ffn", lambda layer: layer.output.dense, 8),
        ):
            columns = dense_of(model.bert.encoder.layer[block]).weight.shape[1]
            for first in range(0, columns, size):
                silenced = copy.deepcopy(model)
                with torch.no_grad():
                    layer = silenced.bert.encoder.layer[block]
                    dense_of(layer).weight[:, first : first + size] = 0
                found[name].append(abs(_mean_loss(silenced, batches) - whole))
    return found


# measured, means over the seeds: first order .89 and .82 (heads, FFN), Fisher .89 and .79, movement
# .32 and .60, magnitude .55 and .59
LEAST = {
    "first_order": {"heads": 0.6, "ffn": 0.6},
    "fisher": {"heads": 0.6, "ffn": 0.6},
    "movement": {"heads": 0.1, "ffn": 0.3},
    "magnitude": {"heads": 0.2, "ffn": 0.2},
}


@pytest.fixture(scope="module")
def silenced(all_learned) -> list[dict[str, list[float]]]:
    return [_ablated(model, batches) for model, batches, _ in all_learned]


@pytest.mark.parametrize("kind", LEAST)
def test_every_kind_ranks_parts_as_silencing_them_does(all_learned, silenced, kind):
    from scipy.stats import spearmanr

    ranks: dict[str, list[float]] = {"heads": [], "ffn": []}
    for (model, batches, movement), truth in zip(all_learned, silenced, strict=True):
        scores = measure(model, batches, ImportanceSpec(kind=kind), movement=movement)
        heads = torch.cat(scores.heads)
        ffn = torch.cat([part.view(-1, 8).sum(1) for part in scores.ffn])
        for name, mine in (("heads", heads), ("ffn", ffn)):
            ranks[name].append(spearmanr(mine.numpy(), truth[name]).statistic)
    for name, each in ranks.items():
        rank = sum(each) / len(each)
        print(f"{kind}, {name}: rank correlation {rank:.2f} with silencing each part")
        assert rank > LEAST[kind][name], (kind, name, each)


def test_movement_is_resumed_with_its_training(tiny_config, tmp_path):
    model, batch, args, state, control = _learner(tiny_config)
    first = Movement(tmp_path / "again" / "m.safetensors", 4)
    (tmp_path / "again").mkdir()
    first.on_train_begin(args, state, control, model=model)
    rows = [batch() for _ in range(4)]

    def step(movement, at: int) -> None:
        model.zero_grad()
        model(**rows[at]).loss.backward()
        movement.on_pre_optimizer_step(args, state, control)
        state.global_step = at + 1
        movement.on_step_end(args, state, control)

    step(first, 0)
    control.should_save = True
    step(first, 1)
    control.should_save = False
    second = Movement(tmp_path / "again" / "m.safetensors", 4)
    second.on_train_begin(args, state, control, model=model)
    for at in (2, 3):
        step(first, at)
        step(second, at)
    for name, total in first.sums.items():
        assert torch.equal(total, second.sums[name])


class _Kill(TrainerCallback):
    """Ends a training as a kill would, at step 8: before its checkpoint is written, or after."""

    def __init__(self, when: str) -> None:
        self.when = when

    def _at(self, when: str, state) -> None:
        if when == self.when and state.global_step == 8:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **_):
        self._at("before", state)

    def on_save(self, args, state, control, **_):
        self._at("after", state)


@pytest.mark.parametrize("when", ["before", "after"])
def test_movement_is_whole_wherever_its_training_is_killed(
    when, new_tiny_config, tiny_tokenizer, tmp_path
):
    ids = torch.randint(5, 60, (96, 8), generator=torch.Generator().manual_seed(0))
    rows = {"input_ids": ids.tolist(), "attention_mask": [[1] * 8] * 96, "length": [8] * 96}
    examples = Dataset.from_dict(rows | {"labels": (ids[:, 1] % 3).tolist()})
    settings = Optimization(steps=12, learning_rate=1e-3, batch=8, checkpoint_every=4)

    def sums(name: str, kill: str = "") -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = BertForSequenceClassification(new_tiny_config())
        kept, work = tmp_path / f"{name}.safetensors", tmp_path / name
        around = [_Kill(kill)] if kill else []
        movement = Movement(kept, 12)
        # the last to be told of a step, the first to be told of a checkpoint
        order = (movement, *around) if kill == "before" else (*around, movement)
        train(model, tiny_tokenizer, examples, settings, work, callbacks=order)
        return read_tensors(kept)

    whole = sums("whole")
    with pytest.raises(KeyboardInterrupt):
        sums("killed", when)
    checkpoints = [path.name for path in (tmp_path / "killed").glob("checkpoint-*")]
    assert checkpoints == ["checkpoint-4" if when == "before" else "checkpoint-8"]
    again = sums("killed")
    for name, total in whole.items():
        assert torch.equal(again[name], total), name


@pytest.mark.parametrize("by", ["sum", "l2"])
def test_scores_are_normalised_by_block(learned, by):
    model, batches, _ = learned
    plain = measure(model, batches)
    found = measure(model, batches, ImportanceSpec(normalise=by))
    for mine, theirs in zip(found.heads, plain.heads, strict=True):
        size = mine.sum() if by == "sum" else mine.norm()
        assert size == pytest.approx(1.0, abs=1e-4)
        assert torch.equal(mine.argsort(), theirs.argsort())


def test_hard_movement_takes_the_same_share_of_each_block(learned):
    model, batches, movement = learned
    spec = ImportanceSpec(kind="movement", threshold="hard")
    scores = measure(model, batches, spec, movement=movement)
    for part in (*scores.heads, *scores.ffn):
        assert sorted(part.tolist()) == pytest.approx(
            [(i + 1) / len(part) for i in range(len(part))]
        )


def test_layers_are_ranked_as_leaving_them_out_does(tiny):
    """Layers that put out less and less, in no order."""
    with torch.no_grad():
        for layer, size in zip(tiny.bert.encoder.layer, (0.3, 1.0, 0.05), strict=True):
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.mul_(size)
                dense.bias.mul_(size)
    batches = _batches(tiny.config.vocab_size, tiny.config.num_labels, count=16)
    scores = measure(tiny, batches).layers
    network = SuperNetwork(copy.deepcopy(tiny))
    changes = []
    for block in range(3):
        blocks = list(network.full.blocks)
        blocks[block] = Block(0, 0)
        rest = network.extract(Subnetwork(tuple(blocks)))
        changes.append(float((_logits(rest, batches) - _logits(tiny, batches)).abs().mean()))
    assert torch.tensor(changes).argsort().tolist() == [2, 0, 1] == scores.argsort().tolist()


def test_rows_of_the_vocabulary_that_never_occur_score_zero(learned):
    model, batches, _ = learned
    scores = measure(model, batches).vocabulary
    seen = torch.cat([b["input_ids"].flatten() for b in batches]).unique()
    never = [i for i in range(len(scores)) if i not in set(seen.tolist())]
    assert (scores[never] == 0).all() and (scores[seen] > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_is_measured_and_reordered_as_it_was_loaded(name):
    """GPT-2's and BLOOM's queries, keys and values come out of one layer, GPT-2's transposed."""
    model = make_model(name)
    ids = inputs_of(model)["input_ids"]
    before = model(input_ids=ids).logits.detach()
    scores = measure(model, [{"input_ids": ids, "labels": ids}])
    shape = find_shape(model.config)
    assert [len(s) for s in scores.heads] == list(shape.heads)
    assert [len(s) for s in scores.ffn] == list(shape.ffn)
    assert all((s > 0).all() for s in (*scores.heads, *scores.ffn))
    reorder(model, scores)
    torch.testing.assert_close(model.eval()(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
