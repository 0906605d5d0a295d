"""Networks of any widths out of one export: micro-models that are the deployed graph in small.

Converting a torch model takes seconds, most of it spent on what all subnetworks share. So the
full model is exported once, by Optimum, and each subnetwork is that graph with other constants:
the weights of its linear layers resized, the head counts in its reshapes replaced, the blocks
left out short-circuited. A test compares the result with the real export, operation by operation.

Weights are random, and never zero or one where training would make them something else:
converters drop an addition of zeros and a multiplication by ones, which would flatter the model.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.anatomy import find_family, find_shape
from hwnas.anatomy.dense import new_dense
from hwnas.latency.measure import (
    Inference,
    export,
    onnx_inference,
    openvino_inference,
    random_feed,
    torch_inference,
)
from hwnas.latency.target import Target
from hwnas.space import Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PretrainedConfig, PreTrainedModel

    Array = npt.NDArray[Any]

Builder = Callable[[Subnetwork], Inference]


@dataclass(frozen=True)
class _Names:
    """Where one block's elastic parts are, as dotted module paths of the torch model."""

    block: str
    attention: tuple[str, ...]  # modules that reshape to heads and back
    wide_out: dict[str, str]  # linear layer -> "heads" or "ffn": its outputs are elastic
    wide_in: dict[str, str]  # likewise its inputs


def builder(config: PretrainedConfig, target: Target) -> Builder:
    """A function that compiles any subnetwork of `config` for the target, ready to be timed.

    Raises:
        UserError: the family is unknown, or the target's sequence is too long for it.
    """
    feed = random_feed(config, target)
    if target.runtime == "torch":
        return lambda subnetwork: torch_inference(random_model(config, subnetwork), target, feed)

    full = Subnetwork.full(find_shape(config))
    model = random_model(config, full)
    names = _block_names(model)
    head_size = find_shape(config).head_size
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        export(model, target.runtime, Path(folder))
        if target.runtime == "onnxruntime":
            import onnx

            proto = onnx.load(Path(folder) / "model.onnx")
            return lambda subnetwork: onnx_inference(
                resize_onnx(proto, names, subnetwork, head_size).SerializeToString(), target, feed
            )
        import openvino

        # mapping the file would tie the graph to a folder that is removed
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})
        graph = core.read_model(Path(folder) / "openvino_model.xml")
    return lambda subnetwork: openvino_inference(
        resize_openvino(graph, names, subnetwork, head_size), target, feed
    )


def random_model(config: PretrainedConfig, subnetwork: Subnetwork) -> PreTrainedModel:
    """A dense model of the subnetwork's widths whose every parameter is a small random number."""
    import torch

    model = new_dense(config, subnetwork)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def _block_names(model: PreTrainedModel) -> list[_Names]:
    family = find_family(model.config)
    path_of = {module: path for path, module in model.named_modules()}
    found = []
    for block in family.blocks(model):
        modules = family.block_modules(block)

        def path(slot: tuple[Any, str]) -> str:
            return f"{path_of[slot[0]]}.{slot[1]}"

        found.append(
            _Names(
                block=path_of[block],
                attention=tuple({path_of[holder]: None for holder, _ in modules.attention_in}),
                wide_out={path(slot): "heads" for slot in modules.attention_in}
                | {path(slot): "ffn" for slot in modules.ffn_in},
                wide_in={path(modules.attention_out): "heads", path(modules.ffn_out): "ffn"},
            )
        )
    return found


def _layers(names: _Names, block: Block, head_size: int) -> Iterator[tuple[str, int, int]]:
    """Each elastic linear layer's path, its new width, and the axis of a (out, in) weight."""
    widths = {"heads": block.heads * head_size, "ffn": block.ffn}
    for axis, layers in ((0, names.wide_out), (1, names.wide_in)):
        for path, kind in layers.items():
            yield path, widths[kind], axis


def _resized(array: Array, axis: int, width: int) -> Array:
    """`array` with `width` entries along `axis`, values repeated or cut: only times matter."""
    shape = list(array.shape)
    shape[axis] = width
    return np.resize(array, shape)


def resize_openvino(graph: Any, names: list[_Names], subnetwork: Subnetwork, head_size: int) -> Any:
    """A copy of the `openvino.Model` of the full network, resized to the subnetwork's widths."""
    graph = graph.clone()
    kept = [block for _, block in subnetwork.kept]
    operations = {op.get_friendly_name(): op for op in graph.get_ops()}

    def within(path: str, kind: str) -> list[Any]:
        return [
            op
            for name, op in operations.items()
            if name.startswith(f"__module.{path}/") and op.get_type_name() == kind
        ]

    for where, block in zip(names, kept, strict=False):
        for path, width, axis in _layers(where, block, head_size):
            for matmul in within(path, "MatMul"):
                # weights lie as (out, in), or the other way round
                at = axis if matmul.get_attributes()["transpose_b"] else 1 - axis
                _set_constant(matmul, partial(_resized, axis=at, width=width))
            if axis == 0:
                for add in within(path, "Add"):
                    _set_constant(add, partial(_resized, axis=-1, width=width))
        for path in where.attention:
            for reshape in within(path, "Reshape"):
                change = partial(_reshape_to, heads=block.heads, head_size=head_size)
                _set_constant(reshape, change)
    if len(kept) < len(names):
        last, end = (_openvino_output(operations, names[i]) for i in (len(kept) - 1, -1))
        for port in end.get_target_inputs():
            port.replace_source_output(last)
    graph.validate_nodes_and_infer_types()
    return graph


def _set_constant(operation: Any, change: Callable[[Array], Array]) -> None:
    """Replace the constant among an operation's inputs."""
    from openvino import opset13 as ops

    for port in operation.inputs():
        source = port.get_source_output().get_node()
        if source.get_type_name() == "Constant":
            constant = ops.constant(change(source.get_data()))
            port.replace_source_output(constant.output(0))


def _reshape_to(shape: Array, heads: int, head_size: int) -> Array:
    """A reshape's target `(batch, seq, heads, head_size)` or `(batch, seq, width)` for `heads`."""
    shape = shape.copy()
    shape[2] = heads if len(shape) == 4 else heads * head_size
    return shape


def _openvino_output(operations: dict[str, Any], names: _Names) -> Any:
    """The one value of a block that operations outside the block use."""
    inside = f"__module.{names.block}."
    return next(
        output
        for name, op in operations.items()
        if name.startswith(inside)
        for output in op.outputs()
        for port in output.get_target_inputs()
        if not port.get_node().get_friendly_name().startswith(inside)
    )


def resize_onnx(proto: Any, names: list[_Names], subnetwork: Subnetwork, head_size: int) -> Any:
    """A copy of the ONNX model of the full network, resized to the subnetwork's widths."""
    import onnx

    kept = [block for _, block in subnetwork.kept]
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    makers = {output: node for node in graph.node for output in node.output}

    def set_tensor(tensor: Any, array: Array) -> None:
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    for where, block in zip(names, kept, strict=False):
        for path, width, axis in _layers(where, block, head_size):
            weight = tensors[nodes[f"{_scope(path)}/MatMul"].input[1]]  # (in, out)
            set_tensor(weight, _resized(onnx.numpy_helper.to_array(weight), 1 - axis, width))
            add = nodes.get(f"{_scope(path)}/Add") if axis == 0 else None
            for bias in (tensors[name] for name in (add.input if add else ()) if name in tensors):
                set_tensor(bias, _resized(onnx.numpy_helper.to_array(bias), -1, width))
        for path in where.attention:
            for name, node in nodes.items():
                if node.op_type == "Reshape" and name.startswith(f"{_scope(path)}/"):
                    sizes = makers[node.input[1]].input  # of a Concat
                    size = makers[sizes[2]].attribute[0].t
                    new = block.heads if len(sizes) == 4 else block.heads * head_size
                    set_tensor(size, np.array([new], np.int64))
    if len(kept) < len(names):
        last, end = (_onnx_output(graph, names[i]) for i in (len(kept) - 1, -1))
        for node in graph.node:
            if not node.name.startswith(f"{_scope(names[-1].block)}/"):
                node.input[:] = [last if name == end else name for name in node.input]
    _remove_unused(graph)
    return result


def _scope(path: str) -> str:
    """How the exporter names what stands in the module `path`: `/bert/encoder/layer.0`."""
    return "/" + re.sub(r"\.(?!\d+(\.|$))", "/", path)


def _onnx_output(graph: Any, names: _Names) -> str:
    """The one value of a block that nodes outside the block use."""
    inside = f"{_scope(names.block)}/"
    made = {o for node in graph.node if node.name.startswith(inside) for o in node.output}
    outside = (node for node in graph.node if not node.name.startswith(inside))
    return str(next(name for node in outside for name in node.input if name in made))


def _remove_unused(graph: Any) -> None:
    """Remove nodes and initializers that no output needs; nodes are in topological order."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
