"""The command line: bad input is one line, exit 2, nothing written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from hwnas.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hwnas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Run the command line in an empty folder; its exit code, output and error output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hwnas", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit 2 and one line that holds all the words."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def rows(path: Path, count: int, label: str = "label", labels: str = "ab") -> Path:
    """A CSV of `count` distinct texts."""
    lines = [f"text,{label}"]
    lines += [f"the {i}th text of number {i * 7},{labels[i % len(labels)]}" for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


# what can be told only with the model and the data at hand
BAD_FOR_THE_MODEL = [
    ("space: {boundaries: given, heads: [14], ffn: [512]}", "space.heads: 14", "the model has 12"),
    ("space: {boundaries: given, heads: [6], ffn: [4096]}", "space.ffn: 4096", "has 1536"),
    ("task: {data: DATA, label: verdict}", "task: ", "no column 'verdict'"),
    ("task: {data: DATA, text: body}", "task: ", "it has: text, label"),
    ("task: {data: none.csv}", "task: none.csv", "no such file"),
    ("task: {data: FOLDER}", "task: ", "has no split 'train'; it has: validation"),
    ("task: {max_length: 4000}", "task.max_length: 4000", "at most 512"),
    ("target: 'openvino:cpu:seq=2000'", "seq=2000", "at most 512"),
    ("target: 'openvino:gpu'", "openvino:gpu", "hwnas doctor"),
    ("model: no/such-model", "no/such-model", "unset it to download"),
    ("importance: {kind: movement}\ntask: {kind: embedding}", "importance.kind", "first_order"),
    (
        "importance: {kind: movement}\ntraining: {weights: adapters}",
        "importance.kind",
        "first_order",
    ),
    ("space: {hidden: [192]}\ntraining: {weights: adapters}", "space.hidden", "weights: all"),
]


@pytest.mark.parametrize(("text", "key", "advice"), BAD_FOR_THE_MODEL)
def test_recipes_that_the_model_or_the_data_contradicts(
    hwnas: Run, tmp_path: Path, text: str, key: str, advice: str
) -> None:
    import datasets

    datasets.disable_progress_bars()  # its bars, not ours, on the same stream
    data, folder = rows(tmp_path / "data.csv", 40), tmp_path / "rows"
    folder.mkdir()
    (folder / "validation.jsonl").write_text('{"text": "one", "label": "a"}\n' * 4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("DATA", str(data)).replace("FOLDER", str(folder)))
    refused(hwnas("run", recipe, "--out", "out"), key, advice)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["run", "--data", "missing.csv"], ["missing.csv", "no such file"]),
        (["run", "--data", "demo:novels"], ["demo:novels", "demo:tweets"]),
        (["run", "--model", "no/folder/here"], ["no/folder/here"]),
        (["run", "--model", "demo:gpt9"], ["demo:gpt9", "demo:minilm"]),
        (["run", "--budget", "0ms"], ["0ms", "above zero"]),
        (["run", "--budget=-5%"], ["-5%", "above zero"]),
        (["run", "--budget", "banana"], ["banana", "8ms", "50%"]),
        (["run", "--budget", "50%", "--budget", "50%"], ["given twice"]),
        (["run", "--target", "toaster:cpu"], ["toaster", "openvino, onnxruntime, torch"]),
        (["run", "--target", "openvino:cpu:seq=none"], ["seq='none'"]),
        (["run", "--target", "openvino:cpu:seq=4096"], ["4096", "512"]),
        (["run", "--target", "torch:cpu:precision=bf16"], ["not yet exported"]),
        (["run", "--baseline", "magic"], ["strategy", "search"]),
        (
            ["export", "m", "--out", "o", "--target", "openvino:cpu:precision=int8-static"],
            ["int8-static", "--data"],
        ),
        (["supernet", "missing.yaml", "--out", "o"], ["missing.yaml"]),
        (["supernet", "sst2"], ["--out"]),
        (["run", "--minutes", "-1"], ["compute.minutes"]),
        (["run", "--table", "missing.json"], ["missing.json"]),
        (["run", "--reuse", "missing"], ["missing"]),
        (["run", "--frobnicate"], ["--frobnicate"]),
        (["fly"], ["fly"]),
        (["profile", "demo:minilm"], ["--out"]),
        (["profile", "demo:minilm", "--out", "t.json", "--target", "gpu"], ["'gpu'"]),
        (["profile", "demo:minilm", "--out", "t.json", "--minutes", "-1"], ["--minutes"]),
        (
            ["profile", "demo:minilm", "--out", "t.json", "--target", "openvino:cpu:phase=decode"],
            ["needs cache"],
        ),
        (
            ["profile", "demo:smollm2", "--out", "t.json", "--target", "openvino:cpu:seq=8"],
            ["phase=prefill or decode"],
        ),
        (["run", "--model", "demo:smollm2"], ["demo:smollm2", "tasks of kind choice, instruction"]),
        (["run", "--confidence", "1.5"], ["measure.confidence"]),
        (["tables", "show", "missing.json"], ["missing.json"]),
        (["tables", "compare", "missing.json", "other.json"], ["missing.json"]),
        (["tables", "merge", "missing.json", "other.json", "--out", "x.json"], ["missing.json"]),
        (["tables", "adapt", "missing.json", "demo:minilm", "--out", "x.json"], ["missing.json"]),
        (["tables", "import", "missing.json", "--out", "x.json"], ["missing.json"]),
        (
            ["tables", "kit", "demo:minilm", "--out", "k.zip", "--target", "torch:cpu:seq=8"],
            ["made for openvino"],
        ),
        (["export", "missing", "--out", "x"], ["missing"]),
        (["evaluate", "missing", "--data", "missing.csv"], ["missing"]),
        (["report", "missing"], ["missing", "no such run directory"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_options(hwnas: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    refused(hwnas(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spec", ["torch:cuda", "onnxruntime:cuda", "openvino:gpu"])
@pytest.mark.parametrize("verb", ["run", "profile"])
def test_device_that_is_not_here(hwnas: Run, tmp_path: Path, spec: str, verb: str) -> None:
    from hwnas.latency.runtimes import gpu_names
    from hwnas.latency.target import Target

    if gpu_names(Target.parse(spec)):
        pytest.skip(f"{spec} is here")
    given = ["profile", "demo:minilm"] if verb == "profile" else ["run"]
    device = spec.split(":")[1]
    refused(hwnas(*given, "--target", spec, "--out", "t"), f"finds no {device}", "hwnas doctor")
    assert list(tmp_path.iterdir()) == []


def test_csv_without_the_label_column(hwnas: Run, tmp_path: Path) -> None:
    data = rows(tmp_path / "d.csv", 40, label="mood")
    refused(hwnas("run", "--data", data, "--out", "r"), "d.csv", "'label'", "text, mood")
    assert not (tmp_path / "r").exists()


def test_empty_file_and_empty_split(hwnas: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("text,label\n")
    refused(hwnas("run", "--data", "empty.csv", "--out", "r"), "empty.csv", "no rows")
    refused(hwnas("run", "--data", rows(tmp_path / "d.csv", 3), "--out", "r"), "too few rows")
    recipe = tmp_path / "r.yaml"
    rows(tmp_path / "train.csv", 60)
    recipe.write_text("task: {data: train.csv, validation: empty.csv}\n")
    refused(hwnas("run", recipe, "--out", "r"), "empty.csv", "no rows")
    assert not (tmp_path / "r").exists()


def test_label_never_seen_in_training(hwnas: Run, tmp_path: Path) -> None:
    rows(tmp_path / "train.csv", 60)
    (tmp_path / "test.csv").write_text("text,label\nsome other words,zebra\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task: {data: train.csv, test: test.csv}\n")
    refused(hwnas("run", recipe, "--out", "r"), "zebra", "never seen", "test.csv")
    assert not (tmp_path / "r").exists()


def test_unknown_family(hwnas: Run, tmp_path: Path) -> None:
    from transformers import GPTJConfig, GPTJForSequenceClassification

    config = GPTJConfig(vocab_size=50, n_embd=16, n_layer=1, n_head=2, num_labels=2)
    GPTJForSequenceClassification(config).save_pretrained(tmp_path / "gpt")
    data = rows(tmp_path / "d.csv", 60)
    refused(hwnas("run", "--model", tmp_path / "gpt", "--data", data, "--out", "r"), "gptj", "bert")
    assert not (tmp_path / "r").exists()


def test_table_of_another_model_or_target(hwnas: Run, tmp_path: Path, tiny_table: Path) -> None:
    data = rows(tmp_path / "d.csv", 60)
    given = ["run", "--data", data, "--table", tiny_table, "--out", "r"]
    refused(hwnas(*given, "--target", "openvino:cpu:seq=16"), "model")
    assert not (tmp_path / "r").exists()


@pytest.fixture
def tiny_table(tmp_path_factory: pytest.TempPathFactory, tiny_config: object) -> Path:
    """A table that was really measured, of a tiny model."""
    from hwnas.latency.profiling import profile
    from hwnas.progress import set_quiet

    path = tmp_path_factory.mktemp("table") / "table.json"
    set_quiet(True)
    profile(tiny_config, "openvino:cpu:seq=16", minutes=0).save(path)  # type: ignore[arg-type]
    set_quiet(False)
    return path


def test_a_table_s_doubts_are_said_where_it_is_used(
    hwnas: Run, tmp_path: Path, tiny_table: Path
) -> None:
    shutil.copy(tiny_table, tmp_path / "t.json")
    for arguments in (
        ["show", "t.json"],
        ["predict", "t.json", "[[1, 32]]"],
        ["compare", "t.json", "t.json"],
    ):
        code, _, errors = hwnas("tables", *arguments)
        assert code == 0
        assert "warning: t.json: never checked" in errors
    refused(hwnas("tables", "predict", "t.json", "[[99, 32]]"), "block 0 has 99 heads")
    for genome in ("[[-3, 32]]", "[[0, 32]]", "[[1, 0]]"):
        said = "both are above 0, or both 0 where it is left out"
        refused(hwnas("tables", "predict", "t.json", genome), said)


def test_a_model_of_another_width_is_not_taken_for_the_tables(
    hwnas: Run, tmp_path: Path, tiny_table: Path, tiny_config: BertConfig
) -> None:
    shutil.copy(tiny_table, tmp_path / "t.json")
    wide = BertConfig(**tiny_config.to_dict() | {"hidden_size": 2 * tiny_config.hidden_size})
    for name, config in (("same", tiny_config), ("wide", wide)):
        BertForSequenceClassification(config).save_pretrained(tmp_path / name)
    code, _, _ = hwnas("tables", "predict", "t.json", "same")
    assert code == 0
    refused(hwnas("tables", "predict", "t.json", "wide"), "the table is of a model of bert")


def test_a_table_that_cannot_be_written_is_not_measured_for(
    hwnas: Run, tmp_path: Path, tiny_table: Path
) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(tiny_table, tmp_path / "t.json")
    for arguments in (
        ["profile", "nowhere/model"],  # found out before the model is looked for
        ["tables", "adapt", "t.json", "nowhere/model"],
        ["tables", "kit", "nowhere/model"],
        ["tables", "merge", "t.json", "t.json"],
    ):
        refused(hwnas(*arguments, "--out", "folder"), "folder: is a folder; name a file")


def test_a_command_alone_shows_its_help(hwnas: Run) -> None:
    code, out, errors = hwnas("tables")
    assert code == 2 and "predict" in out + errors and "hwnas:  (see" not in errors


def test_tables_side_by_side_joined_and_drawn(hwnas: Run, tmp_path: Path, tiny_table: Path) -> None:
    shutil.copy(tiny_table, tmp_path / "t.json")
    code, out, _ = hwnas("tables", "compare", "t.json", "t.json", "--json")
    assert code == 0
    assert json.loads(out)[0]["scale"] == 1
    code, out, _ = hwnas("tables", "merge", "t.json", "t.json", "--out", "joined.json", "--json")
    assert code == 0
    assert json.loads(out)["protocol"]["networks"] > 20
    code, _, _ = hwnas("tables", "show", "joined.json", "--html", "page.html")
    assert code == 0
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, out, _ = hwnas("tables", "predict", "joined.json", "[[1, 32]]")
    assert code == 0
    assert "9 of 10 measurements" in out


def test_schema_is_published_as_it_is(hwnas: Run) -> None:
    from importlib.resources import files

    from hwnas.latency.table import json_schema

    published = files("hwnas.latency_tables") / "latency-table.schema.json"
    assert published.read_text(encoding="utf-8") == json_schema()
    code, out, _ = hwnas("tables", "list", "--json")
    assert code == 0
    assert "latency-table.schema.json" not in json.loads(out)


def test_output_folder_in_use(hwnas: Run, tmp_path: Path) -> None:
    from hwnas.recipe import Recipe

    data = rows(tmp_path / "d.csv", 60)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    refused(hwnas("run", "--data", data, "--out", other), "other", "holds no run")
    run = tmp_path / "run"
    Recipe().save(run / "recipe.yaml")
    refused(hwnas("run", "--data", data, "--out", run), "--resume")
    refused(hwnas("run", "--data", data, "--out", run, "--resume"), "another recipe", "task.data")
    assert sorted(p.name for p in run.iterdir()) == ["recipe.yaml"]
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]


def test_version_and_doctor(hwnas: Run) -> None:
    from hwnas import __version__

    assert hwnas("--version")[:2] == (0, f"{__version__}\n")
    code, out, _ = hwnas("doctor", "--json")
    assert code == 0
    assert json.loads(out)


@pytest.mark.parametrize("verb", ["run", "profile", "tables", "export", "evaluate", "report"])
def test_every_verb_explains_itself(hwnas: Run, verb: str) -> None:
    code, out, _ = hwnas(verb, "--help")
    assert code == 0
    assert "--help" in out
