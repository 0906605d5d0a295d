"""Profiling on this machine: a measured table is whole, and predicts networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import TARGET, TINY, TINY_LLAMA
from transformers import BertConfig

from hwnas.errors import UserError
from hwnas.latency.profiling import profile
from hwnas.latency.runtimes import gpu_names
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target
from hwnas.latency.validation import validate_table
from hwnas.subnetwork import Subnetwork


@pytest.fixture(scope="module")
def measured() -> LatencyTable:
    return profile(TINY, TARGET, validate=3, seed=7)


def test_measured_table_is_whole(measured: LatencyTable, tmp_path: Path) -> None:
    measured.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == measured
    assert {e.dims["heads"] for e in measured.entries if e.op == "attention"} >= {1, 2, 4}
    assert {e.dims["width"] for e in measured.entries if e.op == "ffn"} == {32, 64}
    assert {e.dims["seq"] for e in measured.entries} == {16}
    assert measured.protocol.clock == "process"
    assert all(e.ms.p10 <= e.ms.median <= e.ms.p90 for e in measured.entries)
    full = measured.predictor().predict(Subnetwork.of([[4, 64]] * 2))
    # a network of some microseconds on a machine that does other things
    assert 1 / 3 < full / measured.reference_ms < 3


def test_validation_says_what_its_rows_say(measured: LatencyTable) -> None:
    found = measured.validation
    assert found is not None and found.n == len(found.rows) == 3
    errors = [100 * (row.predicted_ms / row.measured_ms - 1) for row in found.rows]
    again = [100 * (row.remeasured_ms / row.measured_ms - 1) for row in found.rows]
    flops = [100 * (row.flops_ms / row.measured_ms - 1) for row in found.rows]
    assert found.mape == pytest.approx(np.mean(np.abs(errors)))
    assert found.bias == pytest.approx(np.mean(errors))
    assert found.noise == pytest.approx(np.mean(np.abs(again)))
    assert found.flops_mape == pytest.approx(np.mean(np.abs(flops)))
    predictor = measured.predictor()
    for row in found.rows:
        assert row.predicted_ms == predictor.predict(Subnetwork.of(row.genome))


def test_table_of_another_model_or_target_is_not_validated(measured: LatencyTable) -> None:
    with pytest.raises(UserError, match="seq=32"):
        validate_table(measured, TINY, Target.parse("openvino:cpu:seq=32"), 2)
    other = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(UserError, match="hidden 64"):
        validate_table(measured, other, TARGET, 2)


def test_validated_again_elsewhere(measured: LatencyTable) -> None:
    again = validate_table(measured, TINY, TARGET, 2, seed=8)
    assert again.entries == measured.entries
    assert again.validation is not None and again.validation.n == 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_other_runtimes(runtime: str) -> None:
    table = profile(TINY, Target(runtime, seq=16), minutes=0)
    table.check_target(Target(runtime, seq=16))
    assert table.validation is None


def test_mix_of_lengths_and_percentile() -> None:
    spec = "openvino:cpu:seq=8*0.5/16*0.3/32*0.2,statistic=p95"
    table = profile(TINY, spec, validate=2, minutes=0)
    assert [length.tokens for length in table.lengths] == [8, 16, 32]
    assert table.protocol.clock == "wall"
    slowest = table.lengths[-1]
    assert slowest.quantiles is not None
    assert slowest.quantiles["0.05"] <= slowest.quantiles["0.5"] <= slowest.quantiles["0.95"]
    # of the longest fifth, the 75th percentile
    full = Subnetwork.of([[4, 64]] * 2)
    expected = slowest.quantiles["0.75"] * table.predictor_at(32).predict(full)
    assert table.predictor().predict(full) == pytest.approx(expected)
    assert table.validation is not None and table.validation.n == 2


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
@pytest.mark.parametrize("phase", ["phase=prefill,seq=16", "phase=decode,cache=16/32"])
def test_language_models(runtime: str, phase: str) -> None:
    table = profile(TINY_LLAMA, f"{runtime}:cpu:{phase}", minutes=0)
    heads = {e.dims["heads"] for e in table.entries if e.op == "attention"}
    assert heads == {2, 4, 6}  # whole KV groups
    assert all(Target.parse(table.target).axis in e.dims for e in table.entries)
    assert table.model.group == 2 and table.model.decoder


def test_phases_that_a_model_does_not_have() -> None:
    with pytest.raises(UserError, match="phase=prefill or decode"):
        profile(TINY_LLAMA, "openvino:cpu:seq=16")
    with pytest.raises(UserError, match="phase=encode"):
        profile(TINY, "openvino:cpu:phase=decode,cache=16")
    with pytest.raises(UserError, match="int8-static is for encoders"):
        profile(TINY_LLAMA, "openvino:cpu:phase=prefill,seq=16,precision=int8-static")


@pytest.mark.slow  # about two minutes: a real model, every width
def test_real_model_is_predicted_within_the_machines_noise() -> None:
    from hwnas.models import load_model

    target = Target.parse("openvino:cpu:threads=1,batch=1,seq=64")
    table = profile(load_model("demo:minilm")[0].config, target, validate=12, seed=1)
    found = table.validation
    assert found is not None
    assert found.kendall_tau > 0.8
    assert found.mape < 4 + 2 * found.noise


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_table_of_a_language_model_on_a_gpu(precision: str) -> None:
    spec = f"torch:cuda:phase=decode,cache=16,precision={precision}"
    table = profile(TINY_LLAMA, spec, validate=2, minutes=0)
    assert table.device.gpu is not None
    assert table.validation is not None


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ["torch:cuda:seq=16", "onnxruntime:cuda:seq=16"])
def test_table_of_a_gpu(spec: str) -> None:
    if not gpu_names(Target.parse(spec)):
        pytest.skip(f"{spec}: the runtime finds no GPU")
    table = profile(TINY, spec, validate=2, minutes=0)
    assert table.protocol.clock == "wall"
    assert table.device.gpu is not None
    assert table.validation is not None
