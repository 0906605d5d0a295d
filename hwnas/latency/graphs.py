"""Networks of any widths out of two exports: micro-models that are the deployed graph in small.

Converting a torch model takes seconds, most of it spent on what all subnetworks share. So the
full model is exported, by Optimum, and one variant beside it, and every subnetwork is the full
graph with other constants (`templates`). A test compares the result with the real export,
operation by operation.

Weights are random, and never zero or one where training would make them something else:
converters drop an addition of zeros and a multiplication by ones, which would flatter the model.
"""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.anatomy import find_shape
from hwnas.anatomy.dense import dense_config, new_dense
from hwnas.anatomy.modules import blocks as blocks_of
from hwnas.latency.measure import Inference
from hwnas.latency.onnx_graphs import OnnxTemplate
from hwnas.latency.openvino_graphs import OpenVinoTemplate
from hwnas.latency.precision import group_for, quantized, random_rows
from hwnas.latency.runtimes import (
    check_length,
    export,
    onnx_inferences,
    openvino_core,
    openvino_inferences,
    random_feed,
    require,
    torch_inferences,
)
from hwnas.latency.session import Builder
from hwnas.latency.target import Target
from hwnas.latency.templates import variant_of
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_CALIBRATION = 4  # random rows that static quantization is calibrated on


def builder(config: PretrainedConfig, target: Target) -> Builder:
    """A function that compiles any subnetwork of `config` for the target, so many times.

    Raises:
        UserError: the family is unknown, the target's sequence is too long for it, or the machine
            lacks the target's device or precision.
    """
    require(target)
    check_length(config, target)
    vocab = config.vocab_size
    if target.runtime == "torch":

        def torch_models(subnetwork: Subnetwork, compilations: int) -> list[list[Inference]]:
            models = (random_model(config, subnetwork) for _ in range(compilations))
            return [torch_inferences(model, target, vocab) for model in models]

        return torch_models
    shape = find_shape(config)
    widths = list(zip(shape.heads, shape.ffn, strict=True))

    @cache
    def of_width(hidden: int) -> Any:
        return template(dense_config(config, widths, hidden) if hidden else config, target)

    of_width(0)  # what cannot be exported is told before anything is measured

    def graphs(subnetwork: Subnetwork, compilations: int) -> list[list[Inference]]:
        graph = of_width(subnetwork.hidden).resized(subnetwork)
        if target.runtime == "onnxruntime":
            packed = graph.SerializeToString()
            return [onnx_inferences(packed, target, vocab) for _ in range(compilations)]
        return [openvino_inferences(graph, target, vocab) for _ in range(compilations)]

    return graphs


def of_vocabulary(config: PretrainedConfig, tokens: int) -> PretrainedConfig:
    """The same model with so many tokens; the numbers of special ones only have to exist."""
    smaller = copy.deepcopy(config)
    smaller.vocab_size = tokens
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(smaller, name, None) is not None:
            setattr(smaller, name, 0)
    return smaller


def template(config: PretrainedConfig, target: Target) -> Any:
    """The `OpenVinoTemplate` or `OnnxTemplate` of a model of this config, in its precision."""
    full = Subnetwork.full(find_shape(config))
    group = find_shape(config).group
    variant = Subnetwork(tuple(variant_of(block, group) for block in full.blocks))
    model = random_model(config, full)
    paths = {module: path for path, module in model.named_modules()}
    blocks = [paths[block] for block in blocks_of(model)]
    graph = exported_graph(model, target)
    other = exported_graph(random_model(config, variant), target)
    if target.runtime == "onnxruntime":
        return OnnxTemplate(graph, other, full, variant, blocks)
    return OpenVinoTemplate.of(graph, other, full, variant, blocks)


def exported_graph(model: PreTrainedModel, target: Target) -> Any:
    """Optimum's export in the target's precision: an `onnx.ModelProto` or an `openvino.Model`."""
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        export(model, target.runtime, Path(folder))
        if target.runtime == "onnxruntime":
            import onnx

            graph = onnx.load(Path(folder) / "model.onnx")
        else:
            # mapping the file would tie the graph to a folder that is removed
            unmapped = {"ENABLE_MMAP": False}
            path = Path(folder) / "openvino_model.xml"
            graph = openvino_core().read_model(path, config=unmapped)
    vocab = model.config.vocab_size
    calibrating = _CALIBRATION if target.precision == "int8-static" else 0
    rows = list(random_rows(random_feed(target, vocab), vocab, calibrating))
    if target.runtime == "openvino":
        names = {name for port in graph.inputs for name in port.get_names()}
    else:
        names = {port.name for port in graph.graph.input}
    rows = [{name: row[name] for name in row if name in names} for row in rows]
    group = group_for(find_shape(model.config))
    return quantized(graph, target.runtime, target.precision, rows, group)


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
