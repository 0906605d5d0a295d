"""A resized graph is the real export of the same subnetwork, operation by operation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig

from hwnas.anatomy import find_shape
from hwnas.latency.graphs import (
    _block_names,
    builder,
    random_model,
    resize_onnx,
    resize_openvino,
)
from hwnas.latency.measure import export
from hwnas.latency.target import Target
from hwnas.space import Subnetwork

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


def exported(genome: list[list[int]], runtime: str, folder: Path) -> Any:
    """The real export of a subnetwork, read again."""
    export(random_model(TINY, Subnetwork.of(genome)), runtime, folder)
    if runtime == "onnxruntime":
        import onnx

        return onnx.load(folder / "model.onnx")
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the folder may go
    return core.read_model(folder / "openvino_model.xml")


@pytest.fixture(scope="module")
def names() -> Any:
    return _block_names(random_model(TINY, Subnetwork.full(find_shape(TINY))))


@pytest.fixture(scope="module")
def full_openvino(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exported(SUBNETWORKS[0], "openvino", tmp_path_factory.mktemp("openvino"))


@pytest.fixture(scope="module")
def full_onnx(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exported(SUBNETWORKS[0], "onnxruntime", tmp_path_factory.mktemp("onnx"))


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


@pytest.mark.parametrize("genome", SUBNETWORKS)
def test_openvino(full_openvino: Any, names: Any, genome: list[list[int]], tmp_path: Path) -> None:
    resized = resize_openvino(full_openvino, names, Subnetwork.of(genome), head_size=8)
    real = exported(genome, "openvino", tmp_path)
    assert openvino_operations(resized) == openvino_operations(real)


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
        yield re.sub(r"^Constant_\d+$", "Constant", node.name), node.op_type, weights, values


@pytest.mark.parametrize("genome", SUBNETWORKS)
def test_onnx(full_onnx: Any, names: Any, genome: list[list[int]], tmp_path: Path) -> None:
    import onnx

    resized = resize_onnx(full_onnx, names, Subnetwork.of(genome), head_size=8)
    onnx.checker.check_model(resized)
    real = exported(genome, "onnxruntime", tmp_path)
    assert list(onnx_operations(resized)) == list(onnx_operations(real))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_every_subnetwork_runs(runtime: str) -> None:
    build = builder(TINY, Target(runtime, batch=2, seq=16))
    for genome in SUBNETWORKS:
        answer: Any = build(Subnetwork.of(genome))()
        logits = answer.logits.numpy() if runtime == "torch" else answer[0]
        assert logits.shape == (2, 3)
        assert np.isfinite(logits).all()
