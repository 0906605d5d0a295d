"""A resized graph is the real export of the same subnetwork, operation by operation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, LlamaConfig

from hwnas.latency.graphs import builder, exported_graph, random_model, template
from hwnas.latency.measure import prepare
from hwnas.latency.target import PRECISIONS, Target
from hwnas.subnetwork import Subnetwork

SUBNETWORKS = [
    [[4, 64], [4, 64], [4, 64]],
    [[1, 32], [3, 64], [2, 8]],
    [[0, 0], [2, 40], [3, 64]],
    [[3, 24], [0, 0], [0, 0]],
]


TINY = BertConfig(
    vocab_size=120,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    num_labels=3,
)


LLAMA = LlamaConfig(
    vocab_size=120,
    hidden_size=96,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=16,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)
# exporters know one number of key-value heads only, so only such networks can be compared
LLAMA_SUBNETWORKS = [
    [[9, 64], [9, 64], [9, 64]],
    [[6, 32], [6, 64], [6, 16]],
    [[0, 0], [6, 48], [6, 64]],
    [[9, 32], [0, 0], [0, 0]],
]


def config_for(target: Target) -> Any:
    return TINY if target.phase == "encode" else LLAMA


def exported(genome: list[list[int]], target: Target) -> Any:
    """The real export of a subnetwork."""
    return exported_graph(random_model(config_for(target), Subnetwork.of(genome)), target)


TARGETS = [
    Target.parse(f"{runtime}:cpu:seq=16,precision={precision}")
    for runtime in ("openvino", "onnxruntime")
    for precision in PRECISIONS[runtime]
    if precision != "bf16"  # the same graph
]


# quantized graphs differ from the plain ones in their constants, not in how widths change
PAIRS = [
    (t, g) for t in TARGETS for g in (SUBNETWORKS if t.precision == "fp32" else SUBNETWORKS[2:])
]
DECODERS = [
    Target.parse(f"{runtime}:cpu:phase=decode,cache=16,precision={precision}")
    for runtime in ("openvino", "onnxruntime")
    for precision in PRECISIONS[runtime]
    if precision not in ("bf16", "int8-static")
]
PAIRS += [
    (t, g)
    for t in DECODERS
    for g in (LLAMA_SUBNETWORKS if t.precision == "fp32" else LLAMA_SUBNETWORKS[1:3])
]


@cache
def full(target: Target) -> Any:
    """The template of the runtime and precision."""
    return template(config_for(target), target)


def openvino_operations(graph: Any) -> Counter[tuple[str, ...]]:
    """Kind of every operation that the outputs need, and shapes of its values.

    A transposition that moves an axis of one head is a reshape, and the converter, which sees the
    one, writes some of them so; the runtime does it anyway.
    """

    def kind(op: Any) -> str:
        shape = op.output(0).get_partial_shape() if op.get_output_size() else ()
        one = any(axis.is_static and axis.get_length() == 1 for axis in shape)
        name: str = op.get_type_name()
        return "Reshape" if name == "Transpose" and one else name

    return Counter(
        (kind(op), *(str(port.get_partial_shape()) for port in op.outputs()))
        for op in graph.get_ordered_ops()
    )


def onnx_operations(proto: Any) -> Iterator[tuple[Any, ...]]:
    """Name and kind of every node, the shapes of its weights, and its values if a constant."""
    import onnx

    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        weights = [shapes[name] for name in node.input if name in shapes]
        values = [
            onnx.numpy_helper.to_array(attribute.t).tolist()
            for attribute in node.attribute
            if attribute.name == "value"
        ]
        # what stands in no module is numbered throughout
        name = re.sub(r"^(Constant|onnx::MatMul|Transpose|Identity)_\d+", r"\1", node.name)
        yield name, node.op_type, weights, values


@pytest.mark.parametrize(("target", "genome"), PAIRS, ids=str)
def test_resized_graph_is_the_real_export(target: Target, genome: list[list[int]]) -> None:
    resized = full(target).resized(Subnetwork.of(genome))
    real = exported(genome, target)
    if target.runtime == "openvino":
        assert openvino_operations(resized) == openvino_operations(real)
    else:
        import onnx

        onnx.checker.check_model(resized)
        assert list(onnx_operations(resized)) == list(onnx_operations(real))


@pytest.mark.parametrize("target", [*TARGETS, Target("torch", seq=16)], ids=str)
def test_every_subnetwork_runs(target: Target) -> None:
    build = builder(TINY, replace(target, batch=2))
    for genome in SUBNETWORKS:
        ((infer,),) = build(Subnetwork.of(genome), 1)
        answer: Any = infer()
        logits = answer.logits.numpy() if target.runtime == "torch" else answer[0]
        assert logits.shape == (2, 3)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("phase", ["phase=decode,cache=16/32", "phase=prefill,seq=16"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_every_subnetwork_of_a_decoder_runs(runtime: str, phase: str) -> None:
    target = Target.parse(f"{runtime}:cpu:batch=2,{phase}")
    build = builder(LLAMA, target)
    for genome in (*LLAMA_SUBNETWORKS, [[6, 32], [9, 64], [3, 16]], [[9, 32], [0, 0], [6, 64]]):
        for infer, (point, _) in zip(*build(Subnetwork.of(genome), 1), target.points, strict=True):
            prepare(infer)
            for _ in range(2):
                answer: Any = infer()
                logits = answer.logits.numpy() if runtime == "torch" else answer[0]
                assert logits.shape == (2, point.seq, 120)
                assert np.isfinite(logits).all()


def test_cache_of_a_resized_decoder_is_its_own() -> None:
    """The template's and other copies' caches stay as they are."""
    target = Target.parse("openvino:cpu:phase=decode,cache=16")
    original = full(target)
    narrow = original.resized(Subnetwork.of([[3, 64], [6, 64], [0, 0]]))
    heads = {v.get_info().data_shape[1].get_length() for v in original.graph.get_variables()}
    assert heads == {3}
    found = sorted(v.get_info().data_shape[1].get_length() for v in narrow.get_variables())
    assert found == [1, 1, 2, 2]  # keys and values of two blocks
    assert len(narrow.get_sinks()) == 4
