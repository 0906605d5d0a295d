"""Training by adapters: frozen weights stay, a network is its own teacher, stops change nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_models import make_model
from transformers import TrainerCallback

from hwnas.elastic.adapters import AdaptedLinear
from hwnas.elastic.spec import AdapterSpec
from hwnas.elastic.supernet import SuperNetwork
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork
from hwnas.tasks.classification import Classification
from hwnas.tasks.language import Language
from hwnas.tasks.predict import predict
from hwnas.training.optimization import Optimization
from hwnas.training.sampling import Sandwich
from hwnas.training.trainer import train

SPEC = AdapterSpec(rank=3, alpha=6.0, dropout=0.0, ranks=(1, 2))
SETTINGS = Optimization(
    steps=48, learning_rate=1e-2, batch=8, adapters=SPEC, checkpoint_every=4, states_weight=0.0
)


class _NoTokenizer:
    """Rows are token ids already; only padding is asked for."""

    pad_token_id = 0


@pytest.fixture
def examples() -> Dataset:
    """Every token is the one before plus three."""
    ids = [[(5 + start + 3 * i) % 90 for i in range(6 + start % 3)] for start in range(64)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": ids,
            "length": [len(row) for row in ids],
        }
    )


def _train(model: Any, examples: Dataset, work: Path, settings: Any = SETTINGS, **more: Any) -> int:
    tokenizer: Any = _NoTokenizer()
    return train(model, tokenizer, examples, settings, work, kind=Language(), **more)


def _loss(model: Any, examples: Dataset) -> float:
    return Language().loss(predict(model, examples), examples)


def _sandwich(network: SuperNetwork) -> Sandwich:
    return Sandwich(SearchSpace.whole(network.shape, ffn_step=16), seed=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "qwen3"])
def test_only_what_adapters_may_change_changes(
    name: str, examples: Dataset, tmp_path: Path
) -> None:
    model = make_model(name)
    before = {
        n: t.clone() for n, t in SuperNetwork(copy.deepcopy(model)).model.state_dict().items()
    }
    worse = _loss(model, examples)
    _train(model, examples, tmp_path / "work")
    assert _loss(model, examples) < worse - 0.3
    assert not any(isinstance(m, AdaptedLinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    changed = 0
    for key, tensor in model.state_dict().items():
        apart = tensor.float() - before[key].float()
        if apart.abs().max() == 0:
            continue
        changed += 1
        assert tensor.dim() == 2, f"{key}: only matrices have adapters"
        assert torch.linalg.matrix_rank(apart, rtol=1e-4) <= SPEC.rank
    assert changed == 3 * (7 if name in ("llama", "qwen3") else 6)


def test_a_network_is_its_own_teacher(examples: Dataset, tmp_path: Path) -> None:
    """Without looking at labels, a narrow subnetwork comes nearer to the frozen full width."""
    network = SuperNetwork(make_model("llama"))
    original = copy.deepcopy(network.model)
    narrow = _sandwich(network).space.scaled(0.5)
    wanted = predict(original, examples)

    def distance(subnetwork: Subnetwork) -> float:
        with network.as_subnetwork(subnetwork) as model:
            return Language().divergence(wanted, predict(model, examples), examples)

    before = distance(narrow)
    settings = replace(SETTINGS, steps=120, distill_weight=1.0)
    sandwich = _sandwich(network)
    _train(network, examples, tmp_path / "work", settings, own_teacher=True, sandwich=sandwich)
    assert distance(narrow) < 0.8 * before
    # the full width, which is its own teacher, stays near to what it was
    assert distance(network.full) < 0.5 * before


class _Kill(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("elastic", [False, True])
def test_a_killed_training_resumes_to_the_same_weights(
    elastic: bool, examples: Dataset, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=12)

    def made() -> tuple[Any, dict[str, Any]]:
        model = make_model("llama")
        network = SuperNetwork(model) if elastic else None
        more = {"own_teacher": True, "sandwich": _sandwich(network)} if network else {}
        return network or model, more

    whole, more = made()
    _train(whole, examples, tmp_path / "whole", settings, **more)
    killed, more = made()
    with pytest.raises(KeyboardInterrupt):
        _train(killed, examples, tmp_path / "killed", settings, callbacks=(_Kill(),), **more)
    (kept,) = (tmp_path / "killed").glob("checkpoint-*/model.safetensors")
    assert {name.rsplit(".", 1)[1] for name in load_file(kept)} == {"down", "up"}
    again, more = made()
    _train(again, examples, tmp_path / "killed", settings, **more)
    a, b = (
        getattr(m, "model", m).state_dict() if elastic else m.state_dict() for m in (whole, again)
    )
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=0)


def test_checkpointing_changes_nothing_but_memory(examples: Dataset, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        network = SuperNetwork(make_model("llama"))
        settings = replace(SETTINGS, steps=6, checkpointing=checkpointing)
        work = tmp_path / str(checkpointing)
        more = {"own_teacher": True, "sandwich": _sandwich(network)}
        _train(network, examples, work, settings, **more)
        found.append(network.model.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_an_encoders_new_head_is_trained_beside_its_adapters(
    tokenizer: Any, tmp_path: Path
) -> None:
    model = make_model("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = [[5 + i % 80, 7, 11] for i in range(64)]
    rows = Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * 3] * 64,
            "labels": [i % 2 for i in range(64)],
            "length": [3] * 64,
        }
    )
    settings = replace(SETTINGS, steps=4)
    train(model, tokenizer, rows, settings, tmp_path / "work", kind=Classification())
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= moved
    assert "bert.embeddings.word_embeddings.weight" not in moved
