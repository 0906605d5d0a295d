"""Quantizing an exported graph for a target's precision, in the runtime's own way.

NNCF for OpenVINO, ONNX Runtime's own quantizer for ONNX. Static quantization is calibrated on the
rows given; for micro-models, of which only times matter, random ones do.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.telemetry import no_telemetry

if TYPE_CHECKING:
    import numpy.typing as npt

    from hwnas.anatomy import Shape

    Feed = dict[str, npt.NDArray[np.integer[Any]]]

_GROUP = 32  # weights that share a scale where they have 4 bits, at most


def quantized(
    graph: Any, runtime: str, precision: str, rows: Sequence[Feed], group: int = _GROUP
) -> Any:
    """The exported graph at the precision; the graph itself where that is fp32 or bf16.

    Args:
        graph: an `openvino.Model` or an `onnx.ModelProto`.
        precision: one that `target.PRECISIONS` lists for the runtime.
        rows: inputs to calibrate static quantization on; with 4 bits, rounding and scales
            depend on them (AWQ, Lin et al. 2023; NNCF's scale estimation), if there are any.
        group: weights that share a scale where they have 4 bits; see `group_for`.
    """
    if precision in ("fp32", "bf16"):  # the runtime itself computes in bf16
        return graph
    with quiet_quantizers():
        if runtime == "openvino":
            return _openvino(graph, precision, rows, group)
        return _onnx(graph, precision, rows)


def group_of(config: Any) -> int:
    """`group_for` of a model with this config; the usual one where its family is unknown."""
    from hwnas.anatomy import find_shape

    try:
        return group_for(find_shape(config))
    except UserError:
        return _GROUP


def group_for(shape: Shape) -> int:
    """The largest group that divides every width a subnetwork may have: whole heads, FFN steps."""
    common = math.gcd(_GROUP, shape.hidden, shape.head_size, *shape.ffn)
    return common & -common


def _openvino(graph: Any, precision: str, rows: Sequence[Feed], group: int) -> Any:
    import nncf

    if precision == "int8-weights":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    if precision == "int4-weights":
        mode = nncf.CompressWeightsMode.INT4_ASYM
        aware: dict[str, Any] = {}
        if rows:
            aware = {"dataset": nncf.Dataset(list(rows)), "awq": True, "scale_estimation": True}
        return nncf.compress_weights(graph, mode=mode, group_size=group, ratio=1.0, **aware)
    return nncf.quantize(
        graph,
        nncf.Dataset(list(rows)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(rows),
    )


def _onnx(proto: Any, precision: str, rows: Sequence[Feed]) -> Any:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        quantize_dynamic,
        quantize_static,
    )

    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        source, out = (Path(folder) / name for name in ("fp32.onnx", "int8.onnx"))
        onnx.save(proto, source)
        if precision == "int8-dynamic":
            quantize_dynamic(source, out, per_channel=True)
        else:

            class Rows(CalibrationDataReader):  # type: ignore[misc]
                left = iter(rows)

                def get_next(self) -> Feed | None:
                    return next(self.left, None)

            quantize_static(source, out, Rows(), quant_format=QuantFormat.QDQ, per_channel=True)
        return onnx.load(out)


def random_rows(feed: Feed, vocab: int, count: int) -> Iterator[Feed]:
    """Random token ids in the shape of `feed`, its other inputs as they are."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        ids = generator.integers(0, vocab, feed["input_ids"].shape)
        yield feed | {"input_ids": ids}


@contextmanager
def quiet_quantizers() -> Iterator[None]:
    """The quantizers print tables, warn of what is meant to be so, and report what they do."""
    levels = {name: logging.getLogger(name).level for name in ("nncf", "root")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), no_telemetry():
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
