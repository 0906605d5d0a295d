"""Every family: elastic, reordered, extracted, saved, loaded and exported without a difference."""

import copy
import random

import pytest
import torch
import transformers
from tiny_models import CONFIGS, DECODERS, EXACT, SIZES, answer_of, gap, inputs_of, make_model

from hwnas import anatomy
from hwnas.anatomy import Family, find_shape
from hwnas.anatomy.heads import auto_name, task_of
from hwnas.elastic.layers import ElasticLinear
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.models import load
from hwnas.space import SearchSpace
from hwnas.subnetwork import Subnetwork

KINDS = ("text-classification", "question-answering", "token-classification", "feature-extraction")


def _random_scores(model) -> Importance:
    shape = find_shape(model.config)
    generator = torch.Generator().manual_seed(2)
    return Importance(
        tuple(torch.rand(n, generator=generator) for n in shape.heads),
        tuple(torch.rand(n, generator=generator) for n in shape.ffn),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_reordered_elastic_and_extracted_models_agree(name):
    model = make_model(name)
    untouched = answer_of(copy.deepcopy(model))
    reorder(model, _random_scores(model))
    assert gap(answer_of(model), untouched) <= EXACT
    network = SuperNetwork(model)
    assert gap(answer_of(network.model), untouched) <= EXACT
    space = SearchSpace.whole(network.shape, ffn_step=16)
    rng = random.Random(0)
    for _ in range(6):
        subnetwork = space.sample(rng, drop=0.2)
        network.set_subnetwork(subnetwork)
        twin = network.extract(subnetwork)
        assert not any(isinstance(m, ElasticLinear) for m in twin.modules())
        answer = answer_of(network.model)
        assert gap(answer, answer_of(twin)) <= EXACT, str(subnetwork)
        assert gap(answer, untouched) > EXACT or subnetwork == network.full


@pytest.mark.parametrize("name", CONFIGS)
def test_dense_models_load_with_and_without_hwnas(name, tmp_path):
    model = make_model(name)
    reorder(model, _random_scores(model))
    network = SuperNetwork(model)
    space = SearchSpace.whole(network.shape, ffn_step=16)
    dense = network.extract(space.sample(random.Random(3), drop=0.2))
    auto = getattr(transformers, auto_name(task_of(type(dense))))
    dense._auto_class = auto.__name__
    dense.save_pretrained(tmp_path / "dense")
    wanted = answer_of(dense)
    assert gap(answer_of(load(tmp_path / "dense")), wanted) == 0
    again = auto.from_pretrained(tmp_path / "dense", trust_remote_code=True)
    assert type(again).__module__.startswith("transformers_modules.")
    assert gap(answer_of(again), wanted) == 0


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("vit", *DECODERS)])
@pytest.mark.parametrize("task", KINDS)
def test_every_task_of_an_encoder_is_elastic(name, task):
    model = make_model(name, task)
    assert task_of(type(model)) == task
    network = SuperNetwork(model)
    subnetwork = SearchSpace.whole(network.shape, ffn_step=16).sample(random.Random(5))
    network.set_subnetwork(subnetwork)
    assert gap(answer_of(network.model), answer_of(network.extract(subnetwork))) <= EXACT


@pytest.mark.parametrize("name", ["mpnet", "bert"])
def test_a_reordered_super_network_reloads(name, tmp_path):
    model = make_model(name)
    reorder(model, _random_scores(model))
    network = SuperNetwork(model)
    network.model.save_pretrained(tmp_path / "supernet")
    again = SuperNetwork(load(tmp_path / "supernet"))
    half = SearchSpace.whole(network.shape).scaled(0.5)
    for one in (network, again):
        one.set_subnetwork(half)
    assert gap(answer_of(network.model), answer_of(again.model)) == 0


def test_heads_of_a_kv_group_stay_together():
    network = SuperNetwork(make_model("llama"))
    cut = SearchSpace.whole(network.shape).scaled(1.0).genome
    cut[1][0] = 3
    with pytest.raises(UserError, match="whole KV groups of 2"):
        network.set_subnetwork(type(network.full).of(cut))


def test_an_unknown_family_is_told_which_are_known():
    with pytest.raises(
        UserError, match=r"'gptj' is not supported; supported: bert, .*vit.*CONTRIB"
    ):
        find_shape(transformers.GPTJConfig())


def test_a_new_family_is_one_file(tmp_path, monkeypatch):
    """What CONTRIBUTING says: a file that names the modules, and its line in the list."""
    (tmp_path / "megatron.py").write_text(
        "from hwnas.anatomy import Family\n"
        "family = Family(\n"
        "    task='text-classification',\n"
        "    blocks='encoder.layer',\n"
        "    attention_in=tuple(f'attention.self.{x}' for x in ('query', 'key', 'value')),\n"
        "    attention_out='attention.output.dense',\n"
        "    ffn_in=('intermediate.dense',),\n"
        "    ffn_out='output.dense',\n"
        "    sizes={\n"
        "        'attention.self.num_attention_heads': 'heads',\n"
        "        'attention.self.all_head_size': 'width',\n"
        "    },\n"
        ")\n"
    )
    monkeypatch.setattr(anatomy, "__path__", [*anatomy.__path__, str(tmp_path)])
    monkeypatch.setitem(anatomy._FAMILIES, "megatron-bert", "megatron")
    monkeypatch.setitem(CONFIGS, "megatron-bert", ("MegatronBertConfig", SIZES))
    assert isinstance(anatomy.find_family(transformers.MegatronBertConfig()), Family)
    test_reordered_elastic_and_extracted_models_agree("megatron-bert")
    test_dense_models_load_with_and_without_hwnas("megatron-bert", tmp_path)


@pytest.mark.slow  # two exports and runtimes for each family
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in DECODERS])
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_files_agree_with_torch(name, runtime, tmp_path):
    from hwnas.export.convert import _convert_to_onnx, _convert_to_openvino, _plain_copy
    from hwnas.export.folders import load_exported

    model = make_model(name)
    reorder(model, _random_scores(model))
    network = SuperNetwork(model)
    space = SearchSpace.whole(network.shape, ffn_step=16)
    dense = network.extract(space.sample(random.Random(4), drop=0.2))
    convert = {"onnx": _convert_to_onnx, "openvino": _convert_to_openvino}[runtime]
    convert(_plain_copy(dense), tmp_path)
    served = load_exported(tmp_path)
    inputs = inputs_of(dense)
    if name == "bert":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with torch.inference_mode():
        assert gap(torch.as_tensor(served(**inputs).logits), dense(**inputs).logits) <= 1e-4


@pytest.mark.slow  # a few seconds for each family and runtime
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        *(pytest.param(name, (1, 2), id=f"{name}-uneven") for name in DECODERS),
        # one that states its KV heads, and one that does not
        *(pytest.param(name, (1, 1), id=f"{name}-fewer") for name in ("llama", "gpt2")),
        *(
            pytest.param(name, (1, 1), id=f"{name}-fewer", marks=pytest.mark.variant)
            for name in DECODERS
            if name not in ("llama", "gpt2")
        ),
    ],
)
def test_exported_decoders_write_as_torch_does(name, runtime, groups, tmp_path):
    """Blocks of different numbers of KV heads, or of fewer than there were; one is left out."""
    from datasets import Dataset

    from hwnas.export.compare import parity
    from hwnas.export.convert import _convert_to_onnx, _convert_to_openvino, _plain_copy
    from hwnas.export.decoders import kv_heads
    from hwnas.export.folders import load_exported

    model = make_model(name)
    reorder(model, _random_scores(model))
    group = find_shape(model.config).group
    widths = [[groups[0] * group, 32], [0, 0], [groups[1] * group, 48]]
    dense = SuperNetwork(model).extract(Subnetwork.of(widths))
    stated = groups[0] == groups[1] and hasattr(model.config, "num_key_value_heads")
    assert kv_heads(_plain_copy(dense).config) == ([] if stated else list(groups))
    convert = {"onnx": _convert_to_onnx, "openvino": _convert_to_openvino}[runtime]
    convert(_plain_copy(dense), tmp_path)
    prompts = Dataset.from_dict({"input_ids": [list(range(5, 5 + n)) for n in (1, 6, 11)]})
    assert parity(dense, tmp_path, prompts) <= 1e-4
    if stated:
        assert "optimum" in type(load_exported(tmp_path)).__module__
