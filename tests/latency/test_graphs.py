"""A resized graph is the real export of the same subnetwork, operation by operation."""

from __future__ import annotations

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


def exported(config: BertConfig, genome: list[list[int]], runtime: str, folder: Path) -> Path:
    export(random_model(config, Subnetwork.of(genome)), runtime, folder)
    return folder


def openvino_operations(graph: Any) -> Counter[tuple[str, ...]]:
    """Kind and shape of the values of every operation that the outputs need."""
    return Counter(
        (op.get_type_name(), *(str(port.get_partial_shape()) for port in op.outputs()))
        for op in graph.get_ordered_ops()
    )


@pytest.mark.parametrize("genome", SUBNETWORKS)
def test_openvino(tiny_config: BertConfig, genome: list[list[int]], tmp_path: Path) -> None:
    import openvino

    core = openvino.Core()
    full = core.read_model(
        exported(tiny_config, SUBNETWORKS[0], "openvino", tmp_path / "full") / "openvino_model.xml"
    )
    names = _block_names(random_model(tiny_config, Subnetwork.of(SUBNETWORKS[0])))
    resized = resize_openvino(full, names, Subnetwork.of(genome), head_size=8)
    real = core.read_model(
        exported(tiny_config, genome, "openvino", tmp_path / "real") / "openvino_model.xml"
    )
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
        yield node.name, node.op_type, weights, values


@pytest.mark.parametrize("genome", SUBNETWORKS)
def test_onnx(tiny_config: BertConfig, genome: list[list[int]], tmp_path: Path) -> None:
    import onnx

    full = onnx.load(
        exported(tiny_config, SUBNETWORKS[0], "onnxruntime", tmp_path / "full") / "model.onnx"
    )
    names = _block_names(random_model(tiny_config, Subnetwork.of(SUBNETWORKS[0])))
    resized = resize_onnx(full, names, Subnetwork.of(genome), head_size=8)
    real = onnx.load(exported(tiny_config, genome, "onnxruntime", tmp_path / "real") / "model.onnx")
    onnx.checker.check_model(resized)
    assert list(onnx_operations(resized)) == list(onnx_operations(real))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_every_subnetwork_runs(tiny_config: BertConfig, runtime: str) -> None:
    build = builder(tiny_config, Target(runtime, batch=2, seq=16))
    for genome in SUBNETWORKS:
        answer: Any = build(Subnetwork.of(genome))()
        logits = answer.logits.numpy() if runtime == "torch" else answer[0]
        assert logits.shape == (2, 3)
        assert np.isfinite(logits).all()
    assert find_shape(tiny_config).heads == (4, 4, 4)
