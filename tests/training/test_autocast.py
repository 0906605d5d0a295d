"""Training in bf16 on a processor that has units for it, and in fp32 on one that has none."""

import copy
import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)

from hwnas.anatomy import find_shape
from hwnas.elastic.spec import AdapterSpec
from hwnas.elastic.supernet import SuperNetwork
from hwnas.models import load_model
from hwnas.space import SearchSpace
from hwnas.tasks.classification import Classification
from hwnas.tasks.language import Language
from hwnas.tasks.loading import load_task
from hwnas.tasks.predict import predict
from hwnas.tasks.spec import TaskSpec
from hwnas.training import autocast
from hwnas.training.optimization import Optimization
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import train

needs_units = pytest.mark.skipif(
    not autocast.has_units() or torch.cuda.is_available(),
    reason="this processor has no units for bf16, or training is on a GPU",
)


@pytest.fixture(autouse=True)
def _half_wherever_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it may be slower."""
    monkeypatch.setattr(autocast, "pays", autocast.has_units)


def test_half_is_taken_where_it_is_quicker(monkeypatch):
    monkeypatch.undo()
    for units, half, expected in ((False, 0.1, False), (True, 0.5, True), (True, 1.5, False)):
        times = itertools.cycle([0.0, 1.0, 2.0, 2.0 + half])
        autocast.pays.cache_clear()
        monkeypatch.setattr(autocast, "has_units", lambda units=units: units)
        monkeypatch.setattr("hwnas.training.autocast.time.perf_counter", lambda t=times: next(t))
        assert autocast.pays() is expected
        assert autocast.on_processor("bf16") is (expected and not torch.cuda.is_available())
        assert not autocast.on_processor("fp32")
    autocast.pays.cache_clear()


class _Watching(Classification):
    """Notes what a loss is given."""

    def __init__(self) -> None:
        self.given: set[torch.dtype] = set()

    def hard_loss(self, outputs, inputs):
        self.given.add(outputs.logits.dtype)
        return super().hard_loss(outputs, inputs)


class _Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 6:
            raise KeyboardInterrupt


def _examples(classes: int) -> Dataset:
    rng = random.Random(0)
    ids = [[rng.randrange(2, 64) for _ in range(rng.randint(3, 12))] for _ in range(96)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": [row[0] % classes for row in ids],
            "length": [len(row) for row in ids],
        }
    )


def _trained(start, tokenizer, work, precision, *, elastic=False, kind=None, callbacks=()):
    """The weights of a copy of `start` after a few steps."""
    model, teacher = copy.deepcopy(start), copy.deepcopy(start).eval()
    with torch.no_grad():
        teacher.classifier.weight *= 50  # a new model has hardly anything to say
    sandwich = Sandwich(SearchSpace.whole(find_shape(start.config)), seed=1) if elastic else None
    train(
        SuperNetwork(model) if elastic else model,
        tokenizer,
        _examples(start.config.num_labels),
        Optimization(
            steps=12,
            learning_rate=1e-3,
            batch=8,
            checkpoint_every=4,
            relations_weight=0.5,
            precision=precision,
        ),
        work,
        kind=kind,
        teacher=teacher,
        sandwich=sandwich,
        callbacks=callbacks,
    )
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def start(tiny_config):
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config)


@needs_units
@pytest.mark.parametrize("elastic", [False, True])
def test_products_are_in_bf16_and_weights_and_losses_in_fp32(start, tokenizer, tmp_path, elastic):
    seen: set[torch.dtype] = set()
    watch = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: seen.add(out.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    kind = _Watching()
    try:
        half = _trained(start, tokenizer, tmp_path / "half", "bf16", elastic=elastic, kind=kind)
    finally:
        watch.remove()
    assert torch.bfloat16 in seen
    assert kind.given == {torch.float32}
    assert {p.dtype for p in half.values()} == {torch.float32}
    exact = _trained(start, tokenizer, tmp_path / "exact", "fp32", elastic=elastic)
    before = {name: p.detach() for name, p in start.named_parameters()}
    moved = sum(float((exact[name] - p).square().sum()) for name, p in before.items())
    apart = sum(float((exact[name] - half[name]).square().sum()) for name in before)
    assert 0 < apart < 0.1 * moved


@needs_units
@pytest.mark.parametrize("elastic", [False, True])
def test_a_killed_training_goes_on_to_the_same_weights(start, tokenizer, tmp_path, elastic):
    whole = _trained(start, tokenizer, tmp_path / "whole", "bf16", elastic=elastic)
    again = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        _trained(start, tokenizer, again, "bf16", elastic=elastic, callbacks=(_Kill(),))
    for name, p in _trained(start, tokenizer, again, "bf16", elastic=elastic).items():
        assert torch.equal(p, whole[name]), name


def test_where_half_does_not_pay_all_is_in_fp32(start, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(autocast, "pays", lambda: False)
    half = _trained(start, tokenizer, tmp_path / "half", "bf16")
    exact = _trained(start, tokenizer, tmp_path / "exact", "fp32")
    assert all(torch.equal(half[name], p) for name, p in exact.items())


@needs_units
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("elastic", [False, True])
def test_adapters_of_a_language_model_learn_in_bf16(tmp_path, elastic, checkpointing):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=8,
            intermediate_size=64,
            max_position_embeddings=40,
        )
    )
    rng = random.Random(0)
    ids = [[at := rng.randrange(2, 64), *([at] * 8)] for _ in range(160)]  # the same again
    examples = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * 9] * 160, "labels": ids, "length": [9] * 160}
    )
    network = SuperNetwork(model) if elastic else None

    def loss() -> float:
        with torch.inference_mode():
            tokens = torch.tensor(ids[:32])
            return float(model.eval()(input_ids=tokens, labels=tokens).loss)

    before = loss()
    train(
        network or model,
        SimpleNamespace(pad_token_id=0),
        examples,
        Optimization(
            steps=20,
            learning_rate=1e-2,
            batch=16,
            precision="bf16",
            checkpointing=checkpointing,
            checkpoint_every=10,
            adapters=AdapterSpec(rank=8, dropout=0.0),
        ),
        tmp_path / "work",
        kind=Language(),
        own_teacher=elastic,
        sandwich=Sandwich(SearchSpace.whole(network.shape), seed=0) if network else None,
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert loss() < before


@needs_units
@pytest.mark.slow  # MiniLM is trained twice
def test_minilm_learns_as_much_in_bf16(tmp_path):
    task = load_task(TaskSpec())
    kind = task.kind
    losses = {}
    for precision in ("fp32", "bf16"):
        model, tokenizer = load_model("demo:minilm", labels=task.labels, seed=0)
        rows = kind.encode(task.train.select(range(400)), tokenizer, 32)
        held = kind.encode(task.validation.select(range(300)), tokenizer, 32)
        before = kind.loss(predict(model, held), held)
        settings = Optimization(
            steps=50, learning_rate=1e-4, batch=8, freeze_embeddings=True, precision=precision
        )
        train(model, tokenizer, rows, settings, tmp_path / precision, kind=kind)
        losses[precision] = before - kind.loss(predict(model, held), held)
    assert losses["fp32"] > 0.05
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
