"""Training, importance and subnetworks on a GPU: what they find is what a processor finds."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, TrainerCallback

from hwnas.anatomy import find_shape
from hwnas.elastic.residual import reorder_residual
from hwnas.elastic.supernet import SuperNetwork
from hwnas.importance.kinds import Movement, measure
from hwnas.importance.spec import ImportanceSpec
from hwnas.models import on_gpu
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.predict import predict
from hwnas.training.optimization import Optimization
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import train

pytestmark = pytest.mark.gpu


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config).eval()


@pytest.fixture
def examples(tiny_config):
    rng = random.Random(0)
    ids = [[rng.randrange(2, 64) for _ in range(rng.randint(3, 12))] for _ in range(96)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": [row[0] % tiny_config.num_labels for row in ids],
            "length": [len(row) for row in ids],
        }
    )


def _batches(examples, tokenizer):
    rows = examples.remove_columns("length")
    return [dict(tokenizer.pad([rows[i]], return_tensors="pt")) for i in range(16)]


@pytest.mark.parametrize("hidden", [0, 24])
def test_subnetworks_answer_as_on_a_processor(model, examples, hidden):
    if hidden:
        reorder_residual(model, torch.arange(32.0))
    here = SuperNetwork(copy.deepcopy(model))
    there = SuperNetwork(on_gpu(model))
    small = Subnetwork.of([[2, 32], [0, 0], [1, 48]]).narrowed(hidden)
    with here.as_subnetwork(small) as mine, there.as_subnetwork(small) as other:
        assert other.base_model.embeddings.word_embeddings.weight.is_cuda
        assert predict(other, examples) == pytest.approx(predict(mine, examples), abs=1e-5)
    extracted = there.extract(small)
    assert predict(extracted, examples) == pytest.approx(
        predict(here.extract(small), examples), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["first_order", "fisher", "magnitude"])
def test_importance_is_that_of_a_processor(model, tokenizer, examples, kind):
    batches = _batches(examples, tokenizer)
    spec = ImportanceSpec(kind=kind)
    here = measure(copy.deepcopy(model), batches, spec)
    there = measure(on_gpu(model), batches, spec)
    for name in ("heads", "ffn", "head_weights", "ffn_weights"):
        for mine, other in zip(getattr(here, name), getattr(there, name), strict=True):
            assert not other.is_cuda
            torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(there.residual, here.residual, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("sandwich", [False, True])
def test_a_student_comes_nearer_to_its_teacher(
    model, tiny_config, tokenizer, examples, tmp_path, precision, sandwich
):
    torch.manual_seed(1)
    teacher = on_gpu(BertForSequenceClassification(tiny_config).eval())
    with torch.no_grad():
        teacher.classifier.weight *= 50  # a new model has hardly anything to say
    wanted = predict(teacher, examples)

    def distance() -> float:
        return float(((predict(model.eval(), examples) - wanted) ** 2).mean())

    space = SearchSpace.whole(find_shape(tiny_config))
    before = distance()
    train(
        SuperNetwork(model) if sandwich else model,
        tokenizer,
        examples,
        Optimization(
            steps=30,
            learning_rate=3e-3,
            batch=16,
            accumulate=2,
            precision=precision,
            distill_weight=1.0,
            relations_weight=0.5,
        ),
        tmp_path / "work",
        teacher=teacher,
        sandwich=Sandwich(space, seed=0, cost=lambda s: len(s.kept) / 3) if sandwich else None,
    )
    assert next(model.parameters()).is_cuda
    assert next(model.parameters()).dtype == torch.float32
    assert distance() < before


class _Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 7:
            raise KeyboardInterrupt


def test_a_killed_movement_goes_on_where_it_was(model, tiny_config, tokenizer, examples, tmp_path):
    from safetensors.torch import load_file

    settings = Optimization(steps=12, learning_rate=1e-3, batch=8, checkpoint_every=4)

    def run(name: str, *callbacks: TrainerCallback) -> None:
        fresh = BertForSequenceClassification(tiny_config)
        fresh.load_state_dict(model.state_dict())
        kept = tmp_path / f"{name}.safetensors"
        train(
            fresh,
            tokenizer,
            examples,
            settings,
            tmp_path / name,
            callbacks=(Movement(kept, 12), *callbacks),
        )

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", _Kill())
    run("killed")
    whole, again = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "killed"))
    for name, sums in whole.items():
        torch.testing.assert_close(again[name], sums, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_of_a_language_model_are_trained_and_merged_there(precision, tmp_path):
    from types import SimpleNamespace

    from datasets import Dataset
    from tiny_models import make_model

    from hwnas.elastic.spec import AdapterSpec
    from hwnas.tasks.language import Language

    ids = [[(5 + start + 3 * i) % 90 for i in range(8)] for start in range(64)]
    rows = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * 8] * 64, "labels": ids, "length": [8] * 64}
    )
    network = SuperNetwork(on_gpu(make_model("llama")))
    before = Language().loss(predict(network.model, rows), rows)
    train(
        network,
        SimpleNamespace(pad_token_id=0),
        rows,
        Optimization(
            steps=30,
            learning_rate=1e-2,
            batch=8,
            precision=precision,
            distill_weight=0.5,
            adapters=AdapterSpec(rank=4, dropout=0.0),
        ),
        tmp_path / "work",
        kind=Language(),
        own_teacher=True,
        sandwich=Sandwich(SearchSpace.whole(network.shape, ffn_step=16), seed=0),
    )
    assert next(network.model.parameters()).is_cuda
    assert Language().loss(predict(network.model, rows), rows) < before
