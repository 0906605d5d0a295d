"""OpenVINO graphs of any subnetwork, out of the full model's (`templates`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.latency.templates import ElasticConstant, rules_between, same_size
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


class OpenVinoTemplate:
    """The full model's graph, and what in it follows the widths of its blocks."""

    def __init__(
        self, graph: Any, variant: Any, full: Subnetwork, other: Subnetwork, blocks: Sequence[str]
    ) -> None:
        """Compare two `openvino.Model`s.

        Args:
            graph: of the full model.
            variant: of the model whose blocks have the widths `other`.
            full: the widths of the full model's blocks.
            blocks: dotted path of each block in the torch model that was exported.

        Raises:
            HwnasError: the two do not correspond, operation by operation.
        """
        self.graph = graph
        self.full = full
        self._scopes = [f"__module.{path}." for path in blocks]
        self.elastic = list(self._compare(variant, other))

    def resized(self, subnetwork: Subnetwork) -> Any:
        """A copy of the graph for the subnetwork: widths changed, its other blocks left out."""
        graph = self.graph.clone()
        operations = {op.get_friendly_name(): op for op in graph.get_ops()}
        kept = [block for _, block in subnetwork.kept]
        for constant in self.elastic:
            if constant.block < len(kept):
                port = operations[constant.consumer].input(constant.port)
                source = port.get_source_output().get_node()
                widths = kept[constant.block], self.full.blocks[constant.block]
                resized = constant.resized(_array(source), *widths)
                port.replace_source_output(_constant(resized, source))
        if len(kept) < len(self._scopes):
            self._cut(operations, len(kept))
        graph.validate_nodes_and_infer_types()
        return graph

    def _compare(self, variant: Any, other: Subnetwork) -> Iterator[ElasticConstant]:
        ours, theirs = self.graph.get_ordered_ops(), variant.get_ordered_ops()
        if [op.get_type_name() for op in ours] != [op.get_type_name() for op in theirs]:
            raise HwnasError("two exports of the model differ in more than their widths")
        for op, twin in zip(ours, theirs, strict=True):
            for port, (a, b) in enumerate(zip(op.inputs(), twin.inputs(), strict=True)):
                source, changed = (x.get_source_output().get_node() for x in (a, b))
                if source.get_type_name() != "Constant":
                    continue
                array, twins = _array(source), _array(changed)
                if same_size(array, twins):
                    continue
                block = self._block_of(op)
                widths = self.full.blocks[block], other.blocks[block]
                entries, rules = rules_between(array, twins, *widths)
                yield ElasticConstant(op.get_friendly_name(), port, block, entries, rules)

    def _block_of(self, operation: Any) -> int:
        """The block that the operation belongs to: its own, or that of what it leads to."""
        ahead = deque([operation])
        while ahead:
            op = ahead.popleft()
            name = op.get_friendly_name()
            for block, scope in enumerate(self._scopes):
                if name.startswith(scope):
                    return block
            ahead.extend(p.get_node() for out in op.outputs() for p in out.get_target_inputs())
        raise HwnasError(f"{operation.get_friendly_name()} is elastic but in no block")

    def _cut(self, operations: dict[str, Any], kept: int) -> None:
        """Lead the last kept block's result to where the last block's went."""
        last, end = (self._result(operations, self._scopes[i]) for i in (kept - 1, -1))
        for port in end.get_target_inputs():
            port.replace_source_output(last)

    def _result(self, operations: dict[str, Any], scope: str) -> Any:
        """The one value of a block that operations outside the block use, before quantization."""

        def leaves(port: Any) -> bool:
            user = port.get_node()
            if user.get_type_name() == "FakeQuantize":
                return any(leaves(p) for out in user.outputs() for p in out.get_target_inputs())
            return not user.get_friendly_name().startswith(scope)

        for name, op in operations.items():
            if name.startswith(scope) and op.get_type_name() != "FakeQuantize":
                for output in op.outputs():
                    if any(leaves(port) for port in output.get_target_inputs()):
                        return output
        raise HwnasError(f"nothing outside {scope} uses its result")


def _packed(constant: Any) -> bool:
    """Whether several of the constant's values share a byte."""
    return int(constant.get_output_element_type(0).bitwidth) < 8


def _array(constant: Any) -> Array:
    """The constant's values; where they are packed, an array of its shape."""
    if _packed(constant):
        return np.broadcast_to(np.uint8(0), tuple(constant.get_output_shape(0)))
    values: Array = constant.get_data()
    return values


def _constant(array: Array, like: Any) -> Any:
    """A constant of the array's shape and the other's type; packed values are the other's."""
    import openvino
    from openvino import opset13 as ops

    if not _packed(like):
        return ops.constant(array).output(0)
    kind = like.get_output_element_type(0)
    bytes_needed = -(-array.size * kind.bitwidth // 8)
    packed = np.resize(like.get_data().view(np.uint8).ravel(), bytes_needed)
    return ops.constant(openvino.Tensor(packed, array.shape, kind)).output(0)
