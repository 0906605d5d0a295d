"""What a runtime is given, where it is refused, and that an answer is there when it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from hwnas.anatomy import find_shape
from hwnas.doctor import examine_cpu
from hwnas.errors import UserError
from hwnas.latency import runtimes
from hwnas.latency.graphs import builder
from hwnas.latency.runtimes import check_length, load_for_timing, random_feed, require
from hwnas.latency.target import Target
from hwnas.subnetwork import Subnetwork


def test_feed_is_of_the_targets_shape(tiny_config: BertConfig) -> None:
    feed = random_feed(Target(batch=3, seq=16), vocab=50)
    assert feed["input_ids"].shape == feed["attention_mask"].shape == (3, 16)
    assert feed["input_ids"].max() < 50
    check_length(tiny_config, Target(seq=64))
    with pytest.raises(UserError, match="at most 64"):
        check_length(tiny_config, Target(seq=65))


def test_feed_of_one_token_more() -> None:
    feed = random_feed(Target.parse("openvino:cpu:batch=2,phase=decode,cache=16"), vocab=50)
    assert feed["input_ids"].shape == (2, 1)
    assert feed["attention_mask"].shape == (2, 17)
    assert feed["position_ids"].tolist() == [[16], [16]]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_folder_without_a_model(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_for_timing(tmp_path, Target(runtime))


def test_bf16_where_the_processor_has_none() -> None:
    if {"avx512_bf16", "amx_bf16"} & set(examine_cpu().flags):
        pytest.skip("this processor has bf16")
    with pytest.raises(UserError, match="no bf16 instructions"):
        require(Target.parse("openvino:cpu:precision=bf16"))


def test_bf16_of_a_language_model_with_one_thread_would_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtimes, "cpu_flags", lambda: ("avx512f", "amx_bf16"))
    for phase in ("phase=prefill", "phase=decode,cache=8"):
        target = Target.parse(f"openvino:cpu:threads=1,{phase},precision=bf16")
        with pytest.raises(UserError, match="with one thread; choose fp32 or more threads"):
            require(target)
    require(Target.parse("openvino:cpu:threads=1,precision=bf16"))  # an encoder's
    monkeypatch.setattr(runtimes.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    require(Target.parse("openvino:cpu:threads=2,phase=decode,cache=8,precision=bf16"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_on_a_gpu_waits_for_its_result(tiny_config: Any, precision: str) -> None:
    import torch

    target = Target.parse(f"torch:cuda:seq=16,precision={precision}")
    ((infer,),) = builder(tiny_config, target)(Subnetwork.full(find_shape(tiny_config)), 1)
    answer: Any = infer()
    assert answer.logits.is_cuda
    assert torch.cuda.current_stream().query()  # nothing is left to be computed
