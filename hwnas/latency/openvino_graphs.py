"""OpenVINO graphs of any subnetwork, out of the full model's (`templates`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.latency.templates import ElasticConstant, rules_between, same_size
from hwnas.subnetwork import Block, Subnetwork

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_SMALL = 4096  # bytes
_RANK = 3  # of what goes from block to block


@dataclass(frozen=True)
class OpenVinoTemplate:
    """The full model's graph, and what in it follows the widths of its blocks."""

    graph: Any  # openvino.Model
    full: Subnetwork
    scopes: tuple[str, ...]  # of each block, which its operations' names begin with
    elastic: tuple[ElasticConstant, ...]
    borrowed: tuple[ElasticConstant, ...]  # shapes that a block takes from another
    cached: dict[str, int]  # cache of keys or values (its Assign) -> its block

    @classmethod
    def of(
        cls, graph: Any, variant: Any, full: Subnetwork, other: Subnetwork, blocks: Sequence[str]
    ) -> OpenVinoTemplate:
        """Compare two `openvino.Model`s.

        Args:
            graph: of the full model.
            variant: of the model whose blocks have the widths `other`.
            full: the widths of the full model's blocks.
            blocks: dotted path of each block in the torch model that was exported.

        Raises:
            HwnasError: the two do not correspond, operation by operation.
        """
        found = _Comparison(graph, variant, full, other, [f"__module.{path}" for path in blocks])
        return cls(
            graph=graph,
            full=full,
            scopes=tuple(found.scopes),
            elastic=tuple(found.elastic()),
            borrowed=tuple(found.borrowed()),
            cached=found.cached(),
        )

    def to_json(self) -> dict[str, Any]:
        """All but the graph, for a kit."""
        return {
            "full": self.full.genome,
            "scopes": self.scopes,
            "elastic": [asdict(constant) for constant in self.elastic],
            "borrowed": [asdict(constant) for constant in self.borrowed],
            "cached": self.cached,
        }

    @classmethod
    def from_json(cls, graph: Any, stored: dict[str, Any]) -> OpenVinoTemplate:
        """What `to_json` wrote, with its graph."""
        return cls(
            graph=graph,
            full=Subnetwork.of(stored["full"]),
            scopes=tuple(stored["scopes"]),
            elastic=tuple(ElasticConstant.from_json(c) for c in stored["elastic"]),
            borrowed=tuple(ElasticConstant.from_json(c) for c in stored["borrowed"]),
            cached=dict(stored["cached"]),
        )

    def resized(self, subnetwork: Subnetwork) -> Any:
        """A copy of the graph for the subnetwork: widths changed, its other blocks left out."""
        graph = self.graph.clone()
        operations = {op.get_friendly_name(): op for op in graph.get_ordered_ops()}
        kept = [block for _, block in subnetwork.kept]
        for constant in self.elastic:
            if constant.block < len(kept):
                port = operations[constant.consumer].input(constant.port)
                source = port.get_source_output().get_node()
                widths = kept[constant.block], self.full.blocks[constant.block]
                resized = constant.resized(_array(source), *widths)
                port.replace_source_output(_constant(resized, source))
        for borrowed in self.borrowed:
            if borrowed.block < len(kept) and kept[borrowed.block].heads != kept[0].heads:
                widths = kept[borrowed.block], self.full.blocks[borrowed.block]
                _lend(operations[borrowed.consumer].input(borrowed.port), borrowed, *widths)
        if len(kept) < len(self.scopes):
            self._cut(operations, len(kept))
        for sink in graph.get_sinks():  # the caches of keys and values
            block = self.cached.get(sink.get_friendly_name())
            if block is not None and block >= len(kept):
                graph.remove_sink(sink)
                graph.remove_variable(graph.get_variable_by_id(sink.get_variable_id()))
            elif block is not None:
                self._resize_cache(graph, sink, kept[block], self.full.blocks[block])
        graph.validate_nodes_and_infer_types()
        return graph

    def _resize_cache(self, graph: Any, sink: Any, block: Block, full: Block) -> None:
        """Give a block's cache `(batch, KV heads, tokens, head size)` the block's heads."""
        from openvino.op.util import VariableInfo

        variable = graph.get_variable_by_id(sink.get_variable_id())
        old = variable.get_info()
        new = VariableInfo()
        new.variable_id, new.data_type = old.variable_id, old.data_type
        shape = old.data_shape
        heads = shape[1].get_length() * block.heads // full.heads
        shape[1] = heads
        new.data_shape = shape
        variable.update(new)

    def _cut(self, operations: dict[str, Any], kept: int) -> None:
        """Lead the last kept block's result to where the last block's went."""
        last, end = (self._result(operations, self.scopes[i]) for i in (kept - 1, -1))
        for port in end.get_target_inputs():
            port.replace_source_output(last)

    def _result(self, operations: dict[str, Any], scope: str) -> Any:
        """A block's result `(batch, seq, hidden)`, which operations outside the block use.

        Before quantization; masks, positions and caches that others use are of another shape.
        """

        def leaves(port: Any) -> bool:
            user = port.get_node()
            if user.get_type_name() == "ShapeOf":
                return False
            if user.get_type_name() == "FakeQuantize":
                return any(leaves(p) for out in user.outputs() for p in out.get_target_inputs())
            return not _within(user.get_friendly_name(), scope)

        for name, op in operations.items():
            if _within(name, scope) and op.get_type_name() != "FakeQuantize":
                for output in op.outputs():
                    shape = output.get_partial_shape()
                    of_tokens = (
                        shape.rank.is_static and len(shape) == _RANK and shape[_RANK - 1].is_static
                    )
                    if of_tokens and any(leaves(port) for port in output.get_target_inputs()):
                        return output
        raise HwnasError(f"nothing outside {scope} uses its result")


@dataclass(frozen=True)
class _Comparison:
    """Two exports of different widths, side by side."""

    graph: Any
    variant: Any
    full: Subnetwork
    other: Subnetwork
    scopes: list[str]

    def elastic(self) -> Iterator[ElasticConstant]:
        """Constants that differ, and how."""
        ours, theirs = self.graph.get_ordered_ops(), self.variant.get_ordered_ops()
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
                widths = self.full.blocks[block], self.other.blocks[block]
                entries, rules = rules_between(array, twins, *widths)
                yield ElasticConstant(op.get_friendly_name(), port, block, entries, rules)

    def borrowed(self) -> Iterator[ElasticConstant]:
        """Shapes that a block takes from another block, and which of their entries follow widths.

        The converter makes one of all shapes that are alike, and those of blocks whose keys and
        values are shared by several query heads are, as long as all blocks have as many.
        """
        for op, twin in zip(
            self.graph.get_ordered_ops(), self.variant.get_ordered_ops(), strict=True
        ):
            if op.get_type_name() != "Broadcast":
                continue
            block = self._scope_of(op.get_friendly_name())
            source = op.input_value(1).get_node()
            if block is None or self._scope_of(source.get_friendly_name()) in (None, block):
                continue
            ours, theirs = (_static_sizes(o.output(0)) for o in (op, twin))
            widths = self.full.blocks[block], self.other.blocks[block]
            _, rules = rules_between(ours, theirs, *widths)
            if rules:
                yield ElasticConstant(op.get_friendly_name(), 1, block, True, rules)

    def _scope_of(self, name: str) -> int | None:
        """The block in which an operation stands by its name."""
        return next((i for i, scope in enumerate(self.scopes) if _within(name, scope)), None)

    def _block_of(self, operation: Any) -> int:
        """The block that the operation belongs to: its own, or that of what it leads to."""
        ahead = deque([operation])
        while ahead:
            op = ahead.popleft()
            block = self._scope_of(op.get_friendly_name())
            if block is not None:
                return block
            ahead.extend(p.get_node() for out in op.outputs() for p in out.get_target_inputs())
        raise HwnasError(f"{operation.get_friendly_name()} is elastic but in no block")

    def cached(self) -> dict[str, int]:
        """The caches of keys and values, each with its block."""
        return {
            sink.get_friendly_name(): self._block_of(sink.input_value(0).get_node())
            for sink in self.graph.get_sinks()
        }


def _within(name: str, scope: str) -> bool:
    """Whether an operation's name says that it is of the module `scope`, or in it."""
    return name.startswith((f"{scope}.", f"{scope}/"))


def _lend(port: Any, borrowed: ElasticConstant, block: Block, full: Block) -> None:
    """Replace a shape that was another block's by one with the block's own sizes."""
    from openvino import opset13 as ops

    own = {rule.at: rule.for_block(block, full) for rule in borrowed.rules}
    others = port.get_source_output()
    rank = others.get_shape()[0]
    axis = ops.constant(np.int64(0))
    kind = others.get_element_type().to_dtype()
    parts = [
        ops.constant(np.array([own[at]], kind))
        if at in own
        else ops.gather(others, ops.constant(np.array([at], np.int64)), axis)
        for at in range(rank)
    ]
    port.replace_source_output(ops.concat(parts, 0).output(0))


def _static_sizes(output: Any) -> Array:
    """The sizes of a value's axes, 0 where they are not known."""
    shape = output.get_partial_shape()
    return np.array([axis.get_length() if axis.is_static else 0 for axis in shape], np.int64)


def _packed(constant: Any) -> bool:
    """Whether several of the constant's values share a byte."""
    return int(constant.get_output_element_type(0).bitwidth) < 8


def repeat(constant: Any, count: int, number: int) -> None:
    """Put a constant in the place of a large one that repeats its first `count` values.

    They are moved a little by `number`: the runtime may keep equal weights only once. Small ones
    stay as they are: shapes, scales, norms.
    """
    import openvino
    from openvino import opset13 as ops

    raw = np.ascontiguousarray(constant.get_data()).reshape(-1).view(np.uint8)
    if raw.size <= _SMALL:
        return
    if _packed(constant):
        few = np.roll(raw[:count], number)
        shape, kind = tuple(constant.get_output_shape(0)), constant.get_output_element_type(0)
        replacement = ops.constant(openvino.Tensor(np.resize(few, raw.size), shape, kind))
    else:
        values = constant.get_data()
        few = np.roll(values.ravel()[:count], number)
        if few.dtype.kind == "f":
            few = few * few.dtype.type(1 + 1e-3 * number)
        replacement = ops.constant(np.resize(few, values.shape))
    replacement.set_friendly_name(constant.get_friendly_name())
    for port in constant.output(0).get_target_inputs():
        port.replace_source_output(replacement.output(0))


def _array(constant: Any) -> Array:
    """A constant's values; where several share a byte, an array of its shape only."""
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
