"""Every family: elastic, reordered, extracted, saved, loaded and exported without a difference."""

import copy
import random

import pytest
import torch
import transformers

from hwnas import anatomy
from hwnas.anatomy import Family, find_shape
from hwnas.anatomy.heads import class_for, task_of
from hwnas.elastic.layers import ElasticLinear
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.importance.reordering import reorder
from hwnas.importance.scores import Importance
from hwnas.models import load
from hwnas.space import SearchSpace

EXACT = 1e-5
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}
DISTIL = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
LLAMA = {
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
CONFIGS = {
    "bert": ("BertConfig", SIZES),
    "roberta": ("RobertaConfig", SIZES),
    "xlm-roberta": ("XLMRobertaConfig", SIZES),
    "camembert": ("CamembertConfig", SIZES),
    "electra": ("ElectraConfig", SIZES | {"embedding_size": 16}),
    "distilbert": ("DistilBertConfig", DISTIL),
    "mpnet": ("MPNetConfig", SIZES),
    "deberta-v2": ("DebertaV2Config", SIZES | {"relative_attention": True}),
    "deberta-v3": ("DebertaV2Config", SIZES | DEBERTA_V3),
    "vit": ("ViTConfig", SIZES | {"image_size": 16, "patch_size": 4}),
    "llama": ("LlamaConfig", LLAMA),
}
KINDS = ("text-classification", "question-answering", "token-classification", "feature-extraction")


def _model(name: str, task: str | None = None):
    kind, sizes = CONFIGS[name]
    config = getattr(transformers, kind)(**sizes)
    task = task or anatomy.find_family(config).task
    if task == "question-answering":
        config.num_labels = 2
    torch.manual_seed(0)
    model = class_for(config, task)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at zeros and ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _inputs(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[1, 9:] = 0
    return {
        "input_ids": torch.randint(5, 99, (3, 17), generator=generator),
        "attention_mask": mask,
    }


@torch.inference_mode()
def _answer(model) -> torch.Tensor:
    inputs = _inputs(model)
    outputs = model.eval()(**inputs)
    logits = outputs[0]
    real = inputs.get("attention_mask")
    if real is not None and logits.shape[:2] == real.shape:
        logits = logits[real.bool()]  # what stands at padding is nobody's
    return logits


def _random_scores(model) -> Importance:
    shape = find_shape(model.config)
    generator = torch.Generator().manual_seed(2)
    return Importance(
        tuple(torch.rand(n, generator=generator) for n in shape.heads),
        tuple(torch.rand(n, generator=generator) for n in shape.ffn),
    )


def _gap(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_reordered_elastic_and_extracted_models_agree(name):
    model = _model(name)
    untouched = _answer(copy.deepcopy(model))
    reorder(model, _random_scores(model))
    assert _gap(_answer(model), untouched) <= EXACT
    network = SuperNetwork(model)
    assert _gap(_answer(network.model), untouched) <= EXACT
    space = SearchSpace.whole(network.shape, ffn_step=16)
    rng = random.Random(0)
    for _ in range(6):
        subnetwork = space.sample(rng, drop=0.2)
        network.set_subnetwork(subnetwork)
        twin = network.extract(subnetwork)
        assert not any(isinstance(m, ElasticLinear) for m in twin.modules())
        answer = _answer(network.model)
        assert _gap(answer, _answer(twin)) <= EXACT, str(subnetwork)
        assert _gap(answer, untouched) > EXACT or subnetwork == network.full


@pytest.mark.parametrize("name", CONFIGS)
def test_dense_models_load_with_and_without_hwnas(name, tmp_path):
    model = _model(name)
    reorder(model, _random_scores(model))
    network = SuperNetwork(model)
    space = SearchSpace.whole(network.shape, ffn_step=16)
    dense = network.extract(space.sample(random.Random(3), drop=0.2))
    auto = getattr(
        transformers, f"AutoModel{type(dense).__name__[type(dense).__name__.index('For') :]}"
    )
    dense._auto_class = auto.__name__
    dense.save_pretrained(tmp_path / "dense")
    wanted = _answer(dense)
    assert _gap(_answer(load(tmp_path / "dense")), wanted) == 0
    again = auto.from_pretrained(tmp_path / "dense", trust_remote_code=True)
    assert type(again).__module__.startswith("transformers_modules.")
    assert _gap(_answer(again), wanted) == 0


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("vit", "llama")])
@pytest.mark.parametrize("task", KINDS)
def test_every_task_of_an_encoder_is_elastic(name, task):
    model = _model(name, task)
    assert task_of(type(model)) == task
    network = SuperNetwork(model)
    subnetwork = SearchSpace.whole(network.shape, ffn_step=16).sample(random.Random(5))
    network.set_subnetwork(subnetwork)
    assert _gap(_answer(network.model), _answer(network.extract(subnetwork))) <= EXACT


@pytest.mark.parametrize("name", ["mpnet", "bert"])
def test_a_reordered_super_network_reloads(name, tmp_path):
    model = _model(name)
    reorder(model, _random_scores(model))
    network = SuperNetwork(model)
    network.model.save_pretrained(tmp_path / "supernet")
    again = SuperNetwork(load(tmp_path / "supernet"))
    half = SearchSpace.whole(network.shape).scaled(0.5)
    for one in (network, again):
        one.set_subnetwork(half)
    assert _gap(_answer(network.model), _answer(again.model)) == 0


def test_heads_of_a_kv_group_stay_together():
    network = SuperNetwork(_model("llama"))
    cut = SearchSpace.whole(network.shape).scaled(1.0).genome
    cut[1][0] = 3
    with pytest.raises(UserError, match="whole KV groups of 2"):
        network.set_subnetwork(type(network.full).of(cut))


def test_an_unknown_family_is_told_which_are_known():
    with pytest.raises(
        UserError, match=r"'gpt2' is not supported; supported: bert, .*vit.*CONTRIB"
    ):
        find_shape(transformers.GPT2Config())


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
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("llama",)])
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_files_agree_with_torch(name, runtime, tmp_path):
    from hwnas.export.convert import _convert_to_onnx, _convert_to_openvino, _plain_copy
    from hwnas.export.folders import load_exported

    model = _model(name)
    reorder(model, _random_scores(model))
    network = SuperNetwork(model)
    space = SearchSpace.whole(network.shape, ffn_step=16)
    dense = network.extract(space.sample(random.Random(4), drop=0.2))
    convert = {"onnx": _convert_to_onnx, "openvino": _convert_to_openvino}[runtime]
    convert(_plain_copy(dense), tmp_path)
    served = load_exported(tmp_path)
    inputs = _inputs(dense)
    if name == "bert":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with torch.inference_mode():
        assert _gap(torch.as_tensor(served(**inputs).logits), dense(**inputs).logits) <= 1e-4
