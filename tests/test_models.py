"""Loading: the demo's real weights, folders of even and uneven widths, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hwnas
from hwnas.anatomy import find_shape
from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.models import load, load_model, load_tokenizer, model_folder
from hwnas.subnetwork import Subnetwork

LABELS = ["negative", "neutral", "positive"]
HEAD = ("classifier.weight", "classifier.bias")


@pytest.fixture
def folder(tiny_config: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A tiny classifier, saved."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    path = tmp_path / "tiny"
    BertForSequenceClassification(tiny_config).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")


def remove_weights(folder: Path, *names: str) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name not in names}
    assert len(kept) == len(weights) - len(names)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([[2, 5, 7, 3], [2, 6, 8, 3]])).logits
    return found


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_demo_is_the_real_minilm(minilm_dir: Path) -> None:
    model, tokenizer = hwnas.load_model("demo:minilm", labels=LABELS)
    assert not model.training
    assert find_shape(model.config).heads == (12,) * 6
    assert model.config.id2label == dict(enumerate(LABELS))
    source, mine = load_file(minilm_dir / "model.safetensors"), model.state_dict()
    shared = [name for name in source if f"bert.{name}" in mine]
    assert len(shared) > 100
    assert all(torch.equal(source[name], mine[f"bert.{name}"]) for name in shared)
    assert tokenizer("A good day!")["input_ids"] == [101, 1037, 2204, 2154, 999, 102]
    assert tokenizer.model_max_length == 512


def test_a_new_head_is_decided_by_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = load_model("demo:minilm", labels=LABELS, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, _ = load_model("demo:minilm", labels=LABELS, seed=1)
    other, _ = load_model("demo:minilm", labels=LABELS, seed=2)
    weight = first.classifier.weight
    assert torch.equal(weight, again.classifier.weight)
    assert not torch.equal(weight, other.classifier.weight)
    assert weight.shape == (3, 384) and 0.01 < weight.std().item() < 0.03


def test_a_folder_comes_back_as_it_was(folder: Path) -> None:
    from transformers import BertForSequenceClassification

    wanted = logits(BertForSequenceClassification.from_pretrained(folder).eval())
    for model in (
        load(folder),
        load_model(str(folder))[0],
        load_model(str(folder), labels=LABELS)[0],
    ):
        assert not model.training
        torch.testing.assert_close(logits(model), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("labels", [["no", "yes"], LABELS[::-1], ["a", "b", "c", "d"]])
def test_other_labels_take_a_new_head_and_keep_the_body(labels: list[str], folder: Path) -> None:
    model, _ = load_model(str(folder), labels=labels)
    source, mine = load_file(folder / "model.safetensors"), model.state_dict()
    assert model.config.num_labels == len(labels)
    assert model.config.label2id == {label: i for i, label in enumerate(labels)}
    assert logits(model).shape == (2, len(labels))
    changed = {n for n in mine if n not in source or not torch.equal(mine[n], source[n])}
    assert changed == set(HEAD) or changed == {HEAD[0]}, "a new bias is zero, as a fresh one"


def test_extracted_models_come_back_with_each_layer_s_width(
    folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    widths = Subnetwork.of([[1, 32], [0, 0], [3, 7]])
    dense = SuperNetwork(load(folder)).extract(widths)
    dense.save_pretrained(tmp_path / "small")
    tiny_tokenizer.save_pretrained(tmp_path / "small")

    for model in (load(tmp_path / "small"), load_model(str(tmp_path / "small"), labels=LABELS)[0]):
        torch.testing.assert_close(logits(model), logits(dense), rtol=0, atol=0)
        shape = find_shape(model.config)
        assert (shape.heads, shape.ffn, shape.head_size) == ((1, 3), (32, 7), 8)
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for p in dense.parameters()
        )


def test_an_encoder_alone_loads_without_a_head(minilm_dir: Path) -> None:
    assert type(load(minilm_dir)).__name__ == "BertModel"


@pytest.mark.parametrize("use", [load, lambda path: load_model(str(path))])
def test_other_families_are_refused_before_anything_is_read(use: Any, tmp_path: Path) -> None:
    from transformers import GPTJConfig

    GPTJConfig().save_pretrained(tmp_path)
    message = refused(lambda: use(tmp_path))
    assert "model family 'gptj' is not supported; supported: bert" in message


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    assert "unknown demo model; known: demo:minilm" in refused(lambda: load_model("demo:gpt5"))
    missing = tmp_path / "nowhere"
    assert f"model {missing}: no such folder" in refused(lambda: load_model(str(missing)))
    assert f"model {missing}: no such folder" in refused(lambda: load(missing))
    assert "no such folder" in refused(lambda: load_model("./nowhere"))
    assert "no such folder" in refused(lambda: load_model("no name: at all"))
    (tmp_path / "file").touch()
    assert "is a file; give the folder" in refused(lambda: load_model(str(tmp_path / "file")))
    assert "has no config.json" in refused(lambda: load_model(str(tmp_path)))
    message = refused(lambda: model_folder("nobody/no-such-model"))
    assert "HF_HUB_OFFLINE is set and it is not in the cache; unset it" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON, line 1"),
        ("[]", "expected a JSON object"),
        ("{}", "model family None is not supported"),
        ('{"model_type": "bert", "hwnas_blocks": [[1, 2]]}', "cannot be loaded"),
        ('{"model_type": "bert", "hidden_size": "wide"}', "cannot be loaded"),
        ('{"model_type": "bert", "id2label": 5}', "config.json: not a usable config"),
    ],
)
def test_damaged_configs(text: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert message in refused(lambda: load_model(str(folder)))


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_damaged_weights(keep: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "cannot be loaded" in refused(lambda: load_model(str(folder)))
    assert "cannot be loaded" in refused(lambda: load(folder))


def test_weights_that_lack_a_part_of_the_body_are_refused(folder: Path) -> None:
    lacking = "bert.encoder.layer.1.output.dense.weight"
    remove_weights(folder, lacking)
    for use in (load, lambda path: load_model(str(path), labels=["a", "b"])):
        message = refused(lambda use=use: use(folder))
        assert "lack 1 tensors" in message and lacking in message


def test_a_body_of_other_sizes_than_the_config_says_is_refused(folder: Path) -> None:
    change_config(folder, intermediate_size=32)
    assert "the files do not belong together" in refused(lambda: load_model(str(folder)))
    assert "the files do not belong together" in refused(lambda: load(folder))


def test_a_missing_head_is_only_made_where_one_is_to_be_trained(folder: Path) -> None:
    remove_weights(folder, *HEAD)
    model, _ = load_model(str(folder), labels=LABELS)
    assert 0.01 < model.classifier.weight.std().item() < 0.03
    assert "lack 2 tensors" in refused(lambda: load(folder))


def test_a_head_for_another_number_of_labels_than_the_config_s_is_refused(folder: Path) -> None:
    names = dict(enumerate("abcde"))
    change_config(folder, id2label=names, label2id={name: i for i, name in names.items()})
    assert "lack 2 tensors of the sizes" in refused(lambda: load(folder))
    assert "lack 2 tensors of the sizes" in refused(lambda: load_model(str(folder)))
    model, _ = load_model(str(folder), labels=["no", "yes"])
    assert logits(model).shape == (2, 2)


@pytest.mark.parametrize("labels", [[], ["one"], ["same", "same"]])
def test_labels_that_name_no_classes(labels: list[str], folder: Path) -> None:
    message = refused(lambda: load_model(str(folder), labels=labels))
    assert f"labels {labels}: give two or more different names" in message


class _Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_pickled_weights_are_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(trap)))
    for use in (load, lambda path: load_model(str(path))):
        message = refused(lambda use=use: use(folder))
        assert "has no model.safetensors (pickled weights are not loaded" in message
    assert not trap.exists()


def test_code_in_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w')\n", encoding="utf-8")
    classes = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    change_config(folder, auto_map=classes | {"AutoTokenizer": ["evil.T", None]})
    assert logits(load(folder)).shape == (2, 3)
    load_model(str(folder))
    assert not trap.exists()


def test_tokenizers_that_cannot_be_read(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 5}', encoding="utf-8")
    assert "its tokenizer cannot be read" in refused(lambda: load_model(str(folder)))
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    assert "its tokenizer cannot be read" in refused(lambda: load_model(str(folder)))


def test_tokenizers_cut_where_the_model_s_positions_end(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.model_max_length == 64
    assert len(tokenizer("day " * 100, truncation=True)["input_ids"]) == 64


def test_a_folder_may_be_named_like_a_hub_s_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert model_folder("org/name") == Path("org/name")
    assert "no such folder" in refused(lambda: model_folder("org/other"))


@pytest.mark.slow  # a GGUF file is unpacked: half a minute
def test_a_gguf_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from transformers import AutoTokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    begin = time.perf_counter()
    first, tokenizer = load_model("demo:smollm2", task="text-generation")
    unpacked = time.perf_counter() - begin
    kept, of_tokenizer = sorted((tmp_path / "hwnas").iterdir())
    assert {"config.json", "model.safetensors"} <= {file.name for file in kept.iterdir()}
    assert of_tokenizer.name == f"{kept.name}-tokenizer"
    begin = time.perf_counter()
    second, read_again = load_model("demo:smollm2", task="text-generation")
    assert time.perf_counter() - begin < 0.5 * unpacked
    said = [{"role": "user", "content": "Who's there? 12,5 %"}]
    for name in ("eos_token", "bos_token", "pad_token", "unk_token", "model_max_length"):
        assert getattr(read_again, name) == getattr(tokenizer, name), name
    assert read_again.get_vocab() == tokenizer.get_vocab()
    assert read_again.apply_chat_template(said) == tokenizer.apply_chat_template(said)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert tokenizer.eos_token_id == first.config.eos_token_id
    # the file says that no token stands before a text; transformers' reader does not look
    assert tokenizer("hello").input_ids == tokenizer("hello", add_special_tokens=False).input_ids
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("hello").input_ids == tokenizer("hello").input_ids
    # where nothing can be kept, it is unpacked each time
    shutil.rmtree(tmp_path / "hwnas")
    (tmp_path / "hwnas").write_text("no folder")
    load_model("demo:smollm2", task="text-generation")
