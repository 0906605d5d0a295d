"""Recipes: the defaults run, files round-trip, and each mistake is named with its key."""

from pathlib import Path

import pytest

from hwnas.errors import UserError
from hwnas.latency.target import Budget, Target
from hwnas.recipe import Recipe, load_recipe, override, shipped_recipes


def test_defaults_round_trip(tmp_path):
    recipe = Recipe()
    recipe.save(tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert recipe.difference(load_recipe(tmp_path / "r.yaml")) == ""


def test_difference_names_the_setting():
    other = override(Recipe(), "options", {"seed": 4})
    assert other.difference(Recipe()) == "seed: 0 there, 4 now"


def test_difference_may_be_sought_among_some_settings_only():
    other = override(Recipe(), "options", {"seed": 4})
    assert other.difference(Recipe(), ("model", "compute.")) == ""
    assert other.difference(Recipe(), ("model", "seed")) == "seed: 0 there, 4 now"


# what stands in the recipe, the key that the message names, and what it says of it
BAD = [
    ("budgets: [banana]", "budgets", "budget 'banana'"),
    ("budgets: [0ms]", "budgets", "must be above zero"),
    ("budgets: ['-5%']", "budgets", "must be above zero"),
    ("budgets: ['100%']", "budgets", "below 100%"),
    ("budgets: ['50%', '50%']", "budgets", "given twice"),
    ("budgets: []", "budgets", "at least 1"),
    ("budget: ['50%']", "budget", "did you mean 'budgets'?"),
    ("target: toaster:cpu", "target", "unknown runtime 'toaster'"),
    ("target: openvino", "target", "expected runtime:device"),
    ("compute: {supernet_steps: -1}", "compute.supernet_steps", "greater than or equal to 1"),
    ("compute: {minuets: 3}", "compute.minuets", "did you mean 'minutes'?"),
    ("compute: {epochs: 3}", "compute.epochs", "known are minutes, batch"),
    ("training: {distill_weight: 2}", "training.distill_weight", "less than or equal to 1"),
    ("training: {sampling: random}", "training.sampling", "'random' is unknown"),
    ("training: {accumulate: 0}", "training.accumulate", "greater than or equal to 1"),
    ("strategy: magic", "strategy", "'search', 'uniform' or 'layers'"),
    ("task: {metric: bleu}", "task.metric", "use one of: accuracy"),
    ("task: {kind: spans, metric: matthews}", "task.metric", "use one of: f1"),
    ("task: {kind: poems}", "task.kind", "'classification'"),
    ("task: {kind: spans, text: context}", "task.text", "two columns"),
    ("task: {data: nyu-mll/glue, subset: sst3}", "task.subset", "sst2"),
    ("task: {max_length: 1}", "task.max_length", "greater than or equal to 4"),
    ("importance: {kind: random}", "importance.kind", "'first_order'"),
    ("space: {boundaries: by_hand}", "space.boundaries", "'given'"),
    ("space: {smallest: 0.6, largest: 0.4}", "space.largest", "exchange the two"),
    ("space: {boundaries: given, ffn: [64]}", "space.heads", "needs a list of widths"),
    ("space: {boundaries: given, heads: [8, 4], ffn: [64]}", "space.heads", "ascending"),
    ("space: {heads: [4]}", "space.heads", "leave them out"),
    ("search: {signal: luck}", "search.signal", "'divergence', 'loss' or 'metric'"),
    ("compute: {general_steps: 5}", "", "give both or neither"),
    ("unlabelled: {data: wiki.jsonl}", "", "give both or neither"),
    ("unlabelled: {text: line}\ncompute: {general_steps: 5}", "unlabelled.data", "required"),
    (
        "unlabelled: {data: a.jsonl}\ncompute: {general_steps: 5}\ntraining: {states_weight: 0}",
        "",
        "training.relations_weight",
    ),
    ("vocabulary: {trim: perhaps}", "vocabulary.trim", "valid boolean"),
    ("seed: -1", "seed", "greater than or equal to 0"),
    ("- a\n- b", "", "expected keys and values"),
    ("model: [", "", "not valid YAML, line"),
]


@pytest.mark.parametrize(("text", "key", "advice"), BAD)
def test_mistakes_are_named_in_one_line(tmp_path, text, key, advice):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}: " if key else f"{path}: ")
    assert advice in message and "\n" not in message


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_read_by_name(name):
    recipe = load_recipe(Path(name))
    assert recipe.task.usual_metric in recipe.task.task_kind.metrics


def test_missing_recipe(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"sts2: cannot be read .*shipped are .*sst2"):
        load_recipe(Path("sts2"))


@pytest.mark.parametrize(
    "spec",
    [
        "openvino:cpu",
        "openvino:cpu:threads=2",
        "onnxruntime:cpu:batch=8,seq=384",
        "torch:cpu:threads=1,batch=1,seq=64",
    ],
)
def test_targets_round_trip(spec):
    target = Target.parse(spec)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("", "expected"),
        ("openvino", "expected"),
        ("openvino:", "expected"),
        ("tvm:cpu", "unknown runtime"),
        ("openvino:npu", "unknown device"),
        ("openvino:cpu:", "expected"),
        ("openvino:cpu:threads", "threads=''"),
        ("openvino:cpu:threads=0", "threads='0'"),
        ("openvino:cpu:threads=-1", "threads='-1'"),
        ("openvino:cpu:threads=1.5", "threads='1.5'"),
        ("openvino:cpu:threads=two", "threads='two'"),
        ("openvino:cpu:seq=99999999", "seq"),
        ("openvino:cpu:foo=1", "unknown key 'foo'"),
        ("openvino:cpu:seq=1,seq=2", "given twice"),
        ("openvino:cpu:seq=²", "seq"),
    ],
)
def test_bad_targets_name_what_is_wrong(spec, word):
    with pytest.raises(UserError) as caught:
        Target.parse(spec)
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "ms", "folder"),
    [("8ms", 8, "8ms"), ("50%", 10, "50pct"), (" 12.5 ms", 12.5, "12.5ms")],
)
def test_budgets(text, ms, folder):
    budget = Budget.parse(text)
    assert budget.in_ms(20) == ms
    assert budget.folder == folder


@pytest.mark.parametrize(
    "text", ["", "0ms", "-5%", "banana", "8", "ms", "%", "nanms", "infms", "120%", "8s"]
)
def test_bad_budgets(text):
    with pytest.raises(UserError, match="budget"):
        Budget.parse(text)
