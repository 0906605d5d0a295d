"""Targets and budgets: what is understood, and what is refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.latency import Budget, Target
from hwnas.latency.target import DEVICES, PRECISIONS, RUNTIMES

TARGETS = st.sampled_from(RUNTIMES).flatmap(
    lambda runtime: st.builds(
        Target,
        runtime=st.just(runtime),
        device=st.sampled_from(DEVICES[runtime]),
        threads=st.integers(1, 64),
        batch=st.integers(1, 64),
        seq=st.integers(1, 4096),
        precision=st.sampled_from(PRECISIONS[runtime]),
    )
)


@given(TARGETS)
def test_target_is_read_as_it_is_written(target: Target) -> None:
    assert Target.parse(str(target)) == target


def test_keys_may_be_left_out_and_come_in_any_order() -> None:
    assert Target.parse("torch:cpu") == Target("torch", "cpu", threads=1, batch=1, seq=128)
    assert Target.parse("openvino:cpu:seq=64,threads=2") == Target(threads=2, seq=64)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("", "runtime:device"),
        ("openvino", "runtime:device"),
        ("openvino::seq=64", "runtime:device"),
        ("tensorrt:cpu", "tensorrt"),
        ("openvino:npu", "openvino has: cpu, gpu"),
        ("openvino:cuda", "cuda"),
        ("torch:cpu:precision=int8-static", "torch has: fp32, bf16"),
        ("openvino:cpu:precision=", "precision"),
        ("openvino:cpu:precision=int8", "int8-weights"),
        ("openvino:cpu:length=64", "length"),
        ("openvino:cpu:seq", "seq"),
        ("openvino:cpu:seq=0", "'0'"),
        ("openvino:cpu:seq=-8", "'-8'"),
        ("openvino:cpu:seq=1e3", "'1e3'"),
        ("openvino:cpu:seq=99999999", "65536"),
        ("openvino:cpu:seq=64,seq=128", "twice"),
    ],
)
def test_bad_target_is_refused(spec: str, named: str) -> None:
    with pytest.raises(UserError) as refusal:
        Target.parse(spec)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_budgets() -> None:
    assert Budget.parse("8ms").in_ms(20.0) == 8.0
    assert Budget.parse(" 12.5% ").in_ms(20.0) == 2.5
    assert (Budget.parse("50%").folder, Budget.parse("8ms").folder) == ("50pct", "8ms")


@pytest.mark.parametrize("text", ["", "8", "ms", "fast", "nanms", "infms", "0ms", "-3%", "100%"])
def test_bad_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="budget"):
        Budget.parse(text)
