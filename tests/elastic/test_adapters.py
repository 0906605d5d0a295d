"""Adapters: nothing at first, elastic as their layers, merged exactly; peft reads their files."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import DECODERS, EXACT, answer_of, gap, make_model

from hwnas.anatomy import find_shape
from hwnas.elastic.adapters import AdaptedLinear, Adapters, merge_adapter, read_spec
from hwnas.elastic.layers import ElasticLinear
from hwnas.elastic.spec import AdapterSpec
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.importance.reordering import Order, reorder
from hwnas.importance.scores import Importance
from hwnas.inputs import Inputs
from hwnas.recipe import Recipe
from hwnas.space import SearchSpace

SPEC = AdapterSpec(rank=4, alpha=8.0, dropout=0.0)


def _scores(model: Any) -> Importance:
    shape = find_shape(model.config)
    generator = torch.Generator().manual_seed(2)
    return Importance(
        tuple(torch.rand(n, generator=generator) for n in shape.heads),
        tuple(torch.rand(n, generator=generator) for n in shape.ffn),
    )


def _trained(adapters: Adapters) -> Adapters:
    """As if they had been trained: B is no longer zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in adapters.layers:
            one.up.copy_(0.1 * torch.randn(one.up.shape, generator=generator))
    return adapters


def _adapted(name: str) -> tuple[Any, SuperNetwork, Adapters, Order]:
    """The untouched model, and a reordered super-network of it with trained adapters."""
    model = make_model(name)
    untouched = copy.deepcopy(model)
    order = reorder(model, _scores(model))
    network = SuperNetwork(model)
    return untouched, network, _trained(Adapters(network, SPEC)), order


@pytest.mark.parametrize("name", DECODERS)
def test_subnetworks_and_their_merged_twins_agree(name: str) -> None:
    untouched, network, adapters, _ = _adapted(name)
    with adapters.off():
        assert gap(answer_of(network.model), answer_of(untouched)) <= EXACT
    assert gap(answer_of(network.model), answer_of(untouched)) > 0.01
    space = SearchSpace.whole(network.shape, ffn_step=16)
    rng = random.Random(0)
    for rank in (4, 3, 1):
        adapters.set_rank(rank)
        subnetwork = space.sample(rng, drop=0.2)
        network.set_subnetwork(subnetwork)
        dense = network.extract(subnetwork)
        assert not any(isinstance(m, ElasticLinear) for m in dense.modules())
        assert not any("lora" in name for name in dense.state_dict())
        # LoNAS asks for 1e-4; two orders of adding up differ by less
        assert gap(answer_of(network.model), answer_of(dense)) <= 10 * EXACT, str(subnetwork)


def test_nothing_changes_before_training_and_only_adapters_are_trained() -> None:
    model = make_model("llama")
    before = answer_of(model)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = Adapters(SuperNetwork(model), SPEC)
    assert gap(answer_of(model), before) == 0
    wanted = {id(p) for p in adapters.parameters}
    assert {id(p) for p in model.parameters() if p.requires_grad} == wanted
    model.train()
    optimizer = torch.optim.SGD(adapters.parameters, lr=0.1)
    ids = torch.arange(5, 17)[None]
    for _ in range(2):  # the first step moves B only, for A's gradient goes through it
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert gap(answer_of(model), before) > 0
    for name, tensor in frozen.items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_students_may_learn_at_another_rate_than_the_baseline() -> None:
    task = {"data": "demo:tweets", "kind": "choice", "choices": ["a", "b"]}
    target = "openvino:cpu:threads=1,phase=decode,cache=8"
    for given, expected in (({}, [2e-4, 2e-4]), ({"students_rate": 1e-3}, [2e-4, 1e-3])):
        training = {"adapters": {"rate": 2e-4} | given, "dropout": False}
        recipe = Recipe.model_validate({"task": task, "target": target, "training": training})
        nothing: Any = None
        inputs = Inputs(recipe, nothing, recipe.compute, nothing, nothing, nothing)
        rates = [
            inputs.optimization(5, 1e-2, 0, student=student).learning_rate
            for student in (False, True)
        ]
        assert rates == expected


def test_peft_reads_what_is_written_for_the_model_as_it_was(tmp_path: Path) -> None:
    from peft import PeftModel

    untouched, network, adapters, order = _adapted("llama")
    wanted = answer_of(network.model)
    adapters.save(tmp_path / "adapter", order)
    theirs = PeftModel.from_pretrained(untouched, tmp_path / "adapter")
    assert gap(answer_of(theirs), wanted) <= EXACT
    assert read_spec(tmp_path / "adapter") == SPEC


@pytest.mark.parametrize(("alpha", "root"), [(8, False), (24, False), (8, True)])
def test_an_adapter_that_peft_made_is_the_start(alpha: int, root: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model("qwen2")
    config = LoraConfig(
        r=4,
        lora_alpha=alpha,
        target_modules=["q_proj", "v_proj", "down_proj"],
        lora_dropout=0.0,
        use_rslora=root,
    )
    theirs = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    wanted = answer_of(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    model = copy.deepcopy(base)
    order = reorder(model, _scores(model))
    adapters = Adapters(SuperNetwork(model), SPEC)
    adapters.load(tmp_path / "adapter", order)
    assert gap(answer_of(model), wanted) <= 10 * EXACT
    merged = copy.deepcopy(base)
    merge_adapter(merged, tmp_path / "adapter")
    assert gap(answer_of(merged), wanted) <= 10 * EXACT


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"use_dora": True}, "use_dora: True is more than plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern: .* is more than plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: .* is more than plain LoRA"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.* is of no layer"),
    ],
)
def test_what_is_more_than_plain_lora_is_not_merged_in_part(
    more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model("qwen2")
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | more)
    get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=said):
        merge_adapter(base, tmp_path / "adapter")


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, _, adapters, order = _adapted("llama")
    adapters.save(tmp_path / "adapter", order)
    with pytest.raises(UserError, match="ranks from 1 to 4"):
        adapters.set_rank(5)
    other = Adapters(SuperNetwork(make_model("llama")), AdapterSpec(rank=8))
    with pytest.raises(UserError, match=r"adapter_config\.json: rank 4, this run's is 8"):
        other.load(tmp_path / "adapter")
    narrow = make_model("llama")
    half = SearchSpace.whole(find_shape(narrow.config)).scaled(0.5)
    smaller = SuperNetwork(SuperNetwork(narrow).extract(half))
    with pytest.raises(UserError, match=r"the model needs .* it is of another model"):
        Adapters(smaller, SPEC).load(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match="kind IA3, expected LORA"):
        read_spec(tmp_path / "adapter")
    (tmp_path / "adapter/adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        adapters.load(tmp_path / "adapter")
    with pytest.raises(UserError, match="one layer in transformers"):
        Adapters(SuperNetwork(make_model("gpt2")), SPEC).save(tmp_path / "other")


def test_every_layer_of_a_block_has_an_adapter() -> None:
    _, network, adapters, _ = _adapted("llama")
    assert len(adapters.layers) == 7 * network.shape.depth  # q, k, v, o, gate, up, down
    assert all(isinstance(one, AdaptedLinear) for one in adapters.layers)


@pytest.mark.slow  # a real model of 135 million weights, forwards only
def test_smollm2_is_adapted_and_merged() -> None:
    from hwnas.export.verify import open_model

    model, tokenizer = open_model("demo:smollm2")
    inputs = tokenizer("The capital of France is Paris, and that of Italy", return_tensors="pt")
    with torch.inference_mode():
        before = model(**inputs).logits
    reorder(model, _scores(model))
    network = SuperNetwork(model)
    adapters = Adapters(network, AdapterSpec())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in adapters.layers:
            one.up.copy_(2e-3 * torch.randn(one.up.shape, generator=generator))
    half = SearchSpace.whole(network.shape).scaled(0.7)
    with torch.inference_mode():
        with adapters.off():
            assert gap(model(**inputs).logits, before) < 1e-3
        network.set_subnetwork(half)
        mine = model(**inputs).logits
        dense = network.extract(half)(**inputs).logits
    assert gap(mine, dense) < 1e-3
    assert sum(p.numel() for p in adapters.parameters) < 0.15 * sum(
        p.numel() for p in model.parameters()
    )
