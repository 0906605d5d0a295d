"""The whole line on language models: tiny ones of several families, and SmolLM2's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import make_model

from hwnas.anatomy import find_shape
from hwnas.cli import main
from hwnas.deployments import Anchors
from hwnas.elastic.supernet import SuperNetwork
from hwnas.export import export_model, load_exported, served_folder
from hwnas.export.decoders import PlainDecoder
from hwnas.files import read_model
from hwnas.importance.scores import Importance
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.limits import FirstTokenSpec, LimitsSpec, limits_at
from hwnas.models import load, load_tokenizer, model_folder
from hwnas.pipeline import Given, prepare
from hwnas.recipe import load_recipe
from hwnas.report.records import read_lines
from hwnas.subnetwork import Subnetwork
from hwnas.summary import Finalist, Summary
from hwnas.training.halving import START

TARGET = "openvino:cpu:threads=1,phase=decode,cache=8"
SETTINGS: dict[str, Any] = {
    "task": {
        "data": "demo:tweets",
        "kind": "choice",
        "text": "text",
        "label": "label",
        "choices": ["negative", "neutral", "positive"],
        "template": "Tweet: {text}\nMood:",
        "max_length": 40,
    },
    "target": TARGET,
    "budgets": ["90%"],
    "compute": {
        "batch": 8,
        "start_steps": 3,
        "supernet_steps": 3,
        "evaluations": 4,
        "evaluation_rows": 8,
        "plateau_rows": 8,
        "choice_rows": 16,
        "first_rung_steps": 2,
        "winner_steps": 4,
        "heir_steps": 2,
        "test_rows": 24,
    },
    "training": {"adapters": {"rank": 4, "ranks": [2]}},
    "importance": {"rows": 16, "loss_rows": 8},
    "measure": {
        "validate_table": 0,
        "table_minutes": 0.05,
        "pairs": 6,
        "repeats": 1,
        "tolerance": 0.9,
        "margin": 0.0,
        "parity_rows": 4,
    },
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 99 tokens, single letters; any other is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,:;!?'-#@/&"]
    names = ["<unk>", "<end>", *letters]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", model_max_length=40
    ).save_pretrained(folder)
    return folder


def _recipe(folder: Path, named: Path, /, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": str(named)} | SETTINGS | changes))
    return path


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["hwnas", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def model(request: Any, words: Path, tmp_path: Path) -> Path:
    """A tiny random model of a family, with that tokenizer."""
    make_model(request.param).save_pretrained(tmp_path / "model")
    for file in words.iterdir():
        shutil.copy(file, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow  # half a minute for each family
@pytest.mark.parametrize(
    "model",
    ["llama", *(pytest.param(name, marks=pytest.mark.variant) for name in ("gpt2", "bloom"))],
    indirect=True,
)
def test_every_stage_on_a_tiny_model(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    copies: dict[str, list[int]],
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"a text of {i} words"}) + "\n" for i in range(9)))
    beside = {"words": {"kind": "language", "data": str(texts), "rows": 5}}
    out = tmp_path / "run"
    limits: dict[str, Any] = {"cache_mb": 1}
    limited = "llama" in (model / "config.json").read_text()
    if limited:  # takes a second latency table
        limits["first_token"] = {"prompt": 8, "budget": "99%"}
    branching = "bloom" not in (model / "config.json").read_text()
    task = SETTINGS["task"] | {"learn": "choices" if branching else "answer"}
    recipe = _recipe(tmp_path, model, task=task, beside=beside, limits=limits)
    assert _run(monkeypatch, "run", recipe, "--out", out) == 0
    assert copies.pop("super-network") == [1], "frozen weights are their own teacher"
    (of_finalists,) = copies.values()
    assert max(of_finalists) <= 3  # the teacher, the super-network, and who is trained
    summary = read_model(out / "summary.json", Summary)
    assert summary.pipeline == "text-generation"
    assert summary.splits["test"] == 24
    lines = (out / "finalists.jsonl").read_text().splitlines()
    of_baseline = [f for f in map(json.loads, lines) if f["start"] == "teacher"]
    assert of_baseline
    untrained = [f["kind"] for f in of_baseline if f["rung"] == START]
    assert {f["kind"] for f in of_baseline} == {*untrained}, "cuts of a finished baseline compete"
    (chosen,) = summary.chosen
    names = ["cache", "first token"] if limited else ["cache"]
    assert [one.name for one in chosen.limits] == names
    assert 0 < chosen.limits[0].value < 1
    (score,) = summary.beside
    assert (score.rows, score.of, score.metric) == (5, 9, "perplexity")
    assert min(score.original, score.baseline, score.chosen["90%"]) > 1
    scores = Importance.load(out / "importance.safetensors")
    for block in (*scores.head_losses, *scores.ffn_losses):
        assert (block[1:-1] >= block[2:]).all() and block[-1] == 0
    dense = load(out / chosen.path / "model")
    assert not any("adapt" in type(m).__name__.lower() for m in dense.modules())
    served = load_exported(out / chosen.path / served_folder(Target.parse(TARGET)))
    assert served.config.hwnas_blocks == [b for b in chosen.genome if b[0]]
    report = (out / "report.html").read_text()
    assert "Beside the task" in report and "perplexity" in report
    card = (out / chosen.path / "openvino" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "OVModelForCausalLM" in card
    # the three models go on from a prompt
    capsys.readouterr()
    assert _run(monkeypatch, "ask", out, "Tweet: fine", "--tokens", 3, "--json") == 0
    replies = json.loads(capsys.readouterr().out)["replies"]
    assert [one["name"] for one in replies] == ["original", "baseline", "90%"]
    assert all(one["tokens"] <= 3 and one["first_ms"] > 0 for one in replies)
    # a finished run is only reported again
    assert _run(monkeypatch, "run", recipe, "--out", out, "--resume") == 0


def _wordy(folder: Path, **widths: int) -> Path:
    """A random Llama with SmolLM2's tokenizer: its output layer is most of it."""
    import torch
    from tiny_models import LLAMA
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(model_folder("demo:smollm2"))
    torch.manual_seed(0)
    config = LlamaConfig(**(LLAMA | {"vocab_size": len(tokenizer)} | widths))
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_uneven_decoder_is_asked_through_onnx_runtime(tmp_path: Path) -> None:
    """Optimum does not know blocks of different numbers of heads; ONNX Runtime alone does it."""
    from hwnas.asking import _reply

    folder = _wordy(tmp_path / "model")
    model, tokenizer = load(folder), load_tokenizer(folder)
    shape = find_shape(model.config)
    widths = [[shape.group, 32], *([h, f] for h, f in zip(shape.heads, shape.ffn, strict=True))]
    uneven = SuperNetwork(model).extract(Subnetwork.of(widths[: shape.depth]))
    export_model(uneven, tokenizer, tmp_path / "out", ["onnx"])
    loaded = load_exported(tmp_path / "out" / "onnx", 1)
    assert isinstance(loaded, PlainDecoder)
    reply = _reply("chosen", "onnxruntime fp32", loaded, tokenizer, "Tweet: fine", 3, chat=False)
    assert 0 <= reply.tokens <= 3 and reply.first_ms > 0 and reply.tokens_per_s


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.slow  # a run at two deployments
@pytest.mark.parametrize("enough", [0.01, pytest.param(0, marks=pytest.mark.variant)])
def test_the_whole_model_in_fewer_bits_wins_where_it_fits(
    enough: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is left out where eight bits save enough, with a search or without one."""
    wordy = _wordy(tmp_path / "model", hidden_size=256)  # weights that take time to read
    task = SETTINGS["task"] | {"max_length": 32}
    limits = {"first_token": {"prompt": 16, "budget": "900ms"}}
    changes = {"task": task, "deployments": ["openvino:int8-weights"], "limits": limits}
    changes["search"] = {"enough": enough}
    if enough:
        changes["budgets"] = ["90%", "95%"]
    out = tmp_path / "run"
    recipe = _recipe(tmp_path, wordy, **changes)
    exported: list[Path] = []

    def export(model: Any, tokenizer: Any, folder: Path, formats: list[str]) -> None:
        exported.append(folder.relative_to(out))
        export_model(model, tokenizer, folder, formats)

    monkeypatch.setattr("hwnas.export.export_model", export)
    assert _run(monkeypatch, "run", recipe, "--out", out) == 0
    assert exported == [Path("baseline"), Path("chosen/90pct")]
    (anchor,) = read_model(out / "deployments.json", Anchors).anchors
    assert anchor.ratio < 0.85
    chosen, *others = read_model(out / "summary.json", Summary).chosen
    for other in others:  # the same, written and scored once
        assert (other.path, other.metric, other.parity) == (
            "chosen/95pct",
            chosen.metric,
            chosen.parity,
        )
        assert _files(out / other.path) == _files(out / chosen.path)
    assert (chosen.runtime, chosen.precision) == ("openvino", "int8-weights")
    assert Subnetwork.of(chosen.genome) == Subnetwork.full(find_shape(load(wordy).config))
    standing = read_lines(out / "finalists.jsonl", Finalist)
    rungs = [one.rung for one in standing if one.genome == chosen.genome]
    assert rungs == [START] * (1 + len(others))  # once for each budget
    said = "nothing is left out" in capsys.readouterr().err
    assert said == (not (out / "supernet").exists()) == (enough > 0)
    # prompts, too, are limited by a share of the target's own baseline, on one clock
    inputs = prepare(load_recipe(out / "recipe.yaml"), out, resume=True, given=Given())
    half = LimitsSpec(first_token=FirstTokenSpec(prompt=16, budget="50%"))
    inputs.recipe = inputs.recipe.model_copy(update={"limits": half})
    int8 = Target.parse(anchor.target)
    (own,), (theirs,) = (limits_at(inputs, target) for target in (inputs.target, int8))
    inputs.directory.close()
    assert own.most == theirs.most
    whole = Subnetwork.of(chosen.genome)
    assert theirs.of(whole) / (own.most * 2) == pytest.approx(anchor.first_token, rel=0.3)
    served = out / chosen.path / served_folder(chosen.served_at(int8))
    assert load_exported(served).config.vocab_size == load(wordy).config.vocab_size


@pytest.mark.slow  # a run whose output layer is most of the model
def test_the_search_counts_the_tokens_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    wordy = _wordy(tmp_path / "model")
    task = SETTINGS["task"] | {"max_length": 32}
    few = {"trim": True, "least": 2, "common": 0}
    changes = {"task": task, "budgets": ["70%"], "vocabulary": few}
    out = tmp_path / "run"
    recipe = _recipe(tmp_path, wordy, **changes)
    assert _run(monkeypatch, "run", recipe, "--out", out) == 0
    chosen = read_model(out / "summary.json", Summary).chosen[0]
    kept = json.loads((out / chosen.path / "vocabulary.json").read_text())
    assert kept["after"] < kept["before"] / 2
    measured = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    (ratio,) = (
        one["value"]["ratio"]
        for one in measured
        if one["key"].startswith(f"{kept['after']} tokens at {Target.parse(TARGET)}")
    )
    assert ratio < 0.9
    table = LatencyTable.load(out / "table.json")
    assert table.model.vocab == load(wordy).config.vocab_size, (
        "what may be shared is of the whole model"
    )
    chosen_ms = table.predictor().predict(Subnetwork.of(chosen.genome))
    saved_ms = (1 - ratio) * table.reference_ms
    assert chosen.predicted_ms == pytest.approx(chosen_ms - saved_ms, rel=0.3)
    # it is a wider one than the budget has room for where all tokens are kept
    assert chosen_ms > 0.7 * table.reference_ms
    served = load_exported(out / chosen.path / served_folder(Target.parse(TARGET)))
    assert served.config.vocab_size == kept["after"]


@pytest.mark.slow  # a minute: a run, killed and resumed
@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_an_adapter_that_peft_wrote_is_the_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load(model), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    from hwnas.elastic.adapters import merge_adapter

    plain = load(model)
    merge_adapter(plain, tmp_path / "adapter")
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        assert torch.allclose(plain(ids).logits, adapted(ids).logits, atol=1e-5)
    settings = {"adapters": {"rank": 4, "start": str(tmp_path / "adapter")}}
    recipe = _recipe(tmp_path, model, training=settings)
    assert _run(monkeypatch, "supernet", recipe, "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / "supernet" / "model.safetensors").exists()
    settings["adapters"]["start"] = str(tmp_path)
    recipe = _recipe(tmp_path, model, training=settings)
    assert _run(monkeypatch, "run", recipe, "--out", tmp_path / "other") == 2
    assert "training.adapters.start: " in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("model", ["bloom"], indirect=True)
def test_an_attention_that_cannot_branch_does_not_learn_choices(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = _recipe(tmp_path, model, task=SETTINGS["task"] | {"learn": "choices"})
    assert _run(monkeypatch, "run", recipe, "--out", tmp_path / "run") == 2
    assert "bloom's attention cannot; use answer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "words_of_error"),
    [
        ({"target": "openvino:cpu:threads=1,seq=8"}, "phase=encode, a task of kind choice"),
        ({"target": "openvino:cpu:phase=decode,cache=64"}, "the model reads at most 40 tokens"),
        ({"task": SETTINGS["task"] | {"max_length": 64}}, "the model reads at most 40 tokens"),
        ({"task": SETTINGS["task"] | {"choices": ["good", "bad"]}}, "is none of: good, bad"),
        ({"task": SETTINGS["task"] | {"choices": None}}, "give task.choices"),
        ({"task": SETTINGS["task"] | {"label": "answer"}}, "'text' and 'label'"),
        ({"task": SETTINGS["task"] | {"chat": True}}, "has no chat template"),
        ({"task": {"data": "demo:tweets"}, "target": "openvino:cpu:seq=8"}, "a language model is"),
        ({"budgets": ["0.001ms/token"]}, "budget 0.001ms/token cannot be met"),
        (
            {"target": "openvino:cpu:phase=prefill,seq=8", "budgets": ["3ms/token"]},
            "give a target with phase=decode",
        ),
        ({"training": {"adapters": {"rank": 0}}}, "training.adapters.rank"),
        ({"training": {"adapters": {"ranks": [64]}}}, "64 is not from 1 to the adapters' rank"),
        ({"training": {"adapters": {"start": "nowhere"}}}, "training.adapters.start: nowhere"),
        ({"space": {"hidden": [24]}}, "the residual width of decoders is not elastic"),
        ({"importance": {"kind": "movement"}}, "importance.kind: movement: is for encoders"),
        ({"beside": {"x": {"data": "none.jsonl", "kind": "language"}}}, "beside.x: none.jsonl"),
        ({"beside": {"x": {"data": "a.jsonl"}}}, "beside.x: kind classification is for encoders"),
        ({"model": "demo:minilm"}, "an encoder writes no text"),
        ({"vocabulary": {"trim": True}}, "vocabulary.trim: PreTrainedTokenizerFast: a tokenizer"),
        ({"model": "nowhere.gguf"}, "nowhere.gguf: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    model: Path,
    changes: dict[str, Any],
    words_of_error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    recipe = _recipe(tmp_path, model, **changes)
    out = tmp_path / "run"
    expected = 3 if "cannot be met" in words_of_error else 2
    assert _run(monkeypatch, "run", recipe, "--out", out) == expected
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("hwnas: ") and words_of_error in lines[-1]
    if expected == 2:
        assert len(lines) == 1 and not out.exists()
