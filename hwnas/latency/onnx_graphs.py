"""ONNX graphs of any subnetwork, out of the full model's (`templates`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError
from hwnas.latency.templates import ElasticConstant, rules_between, same_size
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


class OnnxTemplate:
    """The full model's graph, and what in it follows the widths of its blocks."""

    def __init__(
        self, proto: Any, variant: Any, full: Subnetwork, other: Subnetwork, blocks: Sequence[str]
    ) -> None:
        """Compare two `onnx.ModelProto`s; arguments and errors as `OpenVinoTemplate` has them."""
        self.proto = proto
        self.full = full
        self._scopes = [f"{_scope(path)}/" for path in blocks]
        self.elastic = list(self._compare(variant, other))
        self._cached = self._caches(variant)

    def resized(self, subnetwork: Subnetwork) -> Any:
        """A copy of the model for the subnetwork: widths changed, its other blocks left out."""
        import onnx

        result = onnx.ModelProto()
        result.CopyFrom(self.proto)
        graph = result.graph
        tensors = _constants(graph)
        nodes = {node.name: node for node in graph.node}
        kept = [block for _, block in subnetwork.kept]
        done: set[str] = set()
        for constant in self.elastic:
            name = nodes[constant.consumer].input[constant.port]
            if constant.block < len(kept) and name not in done:
                tensor = tensors[name]
                array = onnx.numpy_helper.to_array(tensor)
                resized = constant.resized(
                    array, kept[constant.block], self.full.blocks[constant.block]
                )
                tensor.CopyFrom(onnx.numpy_helper.from_array(resized, tensor.name))
                done.add(name)
        for values in (graph.input, graph.output):
            for value in list(values):
                block = self._cached.get(value.name)
                if block is not None and block >= len(kept):
                    values.remove(value)
                elif block is not None:
                    shape = value.type.tensor_type.shape
                    heads = shape.dim[1].dim_value * kept[block].heads
                    shape.dim[1].dim_value = heads // self.full.blocks[block].heads
        if len(kept) < len(self._scopes):
            last, end = (self._result(graph, self._scopes[i]) for i in (len(kept) - 1, -1))
            for node in graph.node:
                if not node.name.startswith(self._scopes[-1]):
                    node.input[:] = [last if name == end else name for name in node.input]
        _remove_unused(graph)
        del graph.value_info[:]  # sizes of the full model's values, where a quantizer noted them
        return result

    def _compare(self, variant: Any, other: Subnetwork) -> Iterator[ElasticConstant]:
        import onnx

        ours, theirs = self.proto.graph, variant.graph
        if [node.op_type for node in ours.node] != [node.op_type for node in theirs.node]:
            raise HwnasError("two exports of the model differ in more than their widths")
        mine, changed = _constants(ours), _constants(theirs)
        for node, twin in zip(ours.node, theirs.node, strict=True):
            for port, (a, b) in enumerate(zip(node.input, twin.input, strict=True)):
                if a not in mine:
                    continue
                array, twins = (onnx.numpy_helper.to_array(t) for t in (mine[a], changed[b]))
                if same_size(array, twins):
                    continue
                block = self._block_of(node)
                widths = self.full.blocks[block], other.blocks[block]
                entries, rules = rules_between(array, twins, *widths)
                yield ElasticConstant(node.name, port, block, entries, rules)

    def _block_of(self, node: Any) -> int:
        """The block that the node belongs to: its own, or that of what it leads to."""
        ahead = [node]
        for node in ahead:  # grows while it is read
            for block, scope in enumerate(self._scopes):
                if node.name.startswith(scope):
                    return block
            made = set(node.output)
            ahead += [user for user in self.proto.graph.node if made.intersection(user.input)]
        raise HwnasError(f"{ahead[0].name} is elastic but in no block")

    def _caches(self, variant: Any) -> dict[str, int]:
        """Inputs and outputs that are the keys and values of a block, with the block's index.

        They are those whose second axis, the KV heads, differs in the variant.
        """
        graph, other = self.proto.graph, variant.graph
        found = {}
        for ours, theirs in ((graph.input, other.input), (graph.output, other.output)):
            for value, twin in zip(ours, theirs, strict=True):
                sides = [v.type.tensor_type.shape.dim for v in (value, twin)]
                if len(sides[0]) > 1 and sides[0][1].dim_value != sides[1][1].dim_value:
                    node = next(
                        n for n in graph.node if value.name in n.input or value.name in n.output
                    )
                    found[value.name] = self._block_of(node)
        return found

    def _result(self, graph: Any, scope: str) -> str:
        """The one value of a block that nodes outside the block use."""
        made = {o for node in graph.node if node.name.startswith(scope) for o in node.output}
        for node in graph.node:
            if not node.name.startswith(scope):
                for name in node.input:
                    if name in made:
                        return str(name)
        raise HwnasError(f"nothing outside {scope} uses its result")


def _constants(graph: Any) -> dict[str, Any]:
    """Every constant tensor by the name of its value: initializers and `Constant` nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = next(a.t for a in node.attribute if a.name == "value")
    return found


def _scope(path: str) -> str:
    """How the exporter names what stands in the module `path`: `/bert/encoder/layer.0`."""
    return "/" + re.sub(r"\.(?!\d+(\.|$))", "/", path)


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
