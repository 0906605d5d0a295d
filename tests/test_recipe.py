"""Recipes: the defaults run, files round-trip, and each mistake is named with its key."""

import pytest

from hwnas.errors import UserError
from hwnas.latency.target import Budget, Target
from hwnas.recipe import Recipe, load_recipe, override


def test_defaults_round_trip(tmp_path):
    recipe = Recipe()
    recipe.save(tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert recipe.difference(load_recipe(tmp_path / "r.yaml")) == ""


def test_difference_names_the_setting():
    other = override(Recipe(), "options", {"seed": 4})
    assert other.difference(Recipe()) == "seed: 0 there, 4 now"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("budgets: [banana]", "budgets: budget 'banana'"),
        ("budgets: [0ms]", "must be above zero"),
        ("budgets: ['-5%']", "must be above zero"),
        ("budgets: ['100%']", "below 100%"),
        ("budgets: ['50%', '50%']", "given twice"),
        ("budgets: []", "budgets"),
        ("budget: ['50%']", "budget"),
        ("target: toaster:cpu", "unknown runtime 'toaster'"),
        ("target: openvino", "expected runtime:device"),
        ("compute: {supernet_steps: -1}", "compute.supernet_steps"),
        ("compute: {minuets: 3}", "compute.minuets"),
        ("training: {distill_weight: 2}", "training.distill_weight"),
        ("strategy: magic", "strategy"),
        ("- a\n- b", "expected keys and values"),
        ("model: [", "not valid YAML, line"),
        ("task: {metric: bleu}", "task.metric"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, word):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert word in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_recipe(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


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
