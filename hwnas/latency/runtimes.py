"""One inference of a graph through the runtime that will serve it, ready to be timed.

OpenVINO, ONNX Runtime and torch, on the CPU or a GPU, each with the target's threads, shape and
precision. An inference returns when its result is there: on a GPU it waits for the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.latency.measure import Inference
from hwnas.latency.target import Target

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel

Feed = dict[str, "npt.NDArray[np.int64]"]  # input name -> (batch, seq)


def require(target: Target) -> None:
    """Raise `UserError` unless this machine has the target's device and can compute as it says."""
    if target.device != "cpu":
        present = gpu_names(target)
        if not present:
            raise UserError(
                f"target {target}: {target.runtime} finds no {target.device} here; "
                "`hwnas doctor` lists what it finds"
            )
    elif target.precision == "bf16":
        from hwnas.doctor import examine_cpu

        flags = examine_cpu().flags
        if not {"avx512_bf16", "amx_bf16"} & set(flags):
            raise UserError(
                f"target {target}: this processor has no bf16 instructions "
                f"(it has {', '.join(flags) or 'no vector ones that are known'}); choose fp32"
            )


def gpu_names(target: Target) -> list[str]:
    """What the target's runtime sees of its kind of GPU."""
    if target.runtime == "openvino":
        import openvino

        return [name for name in openvino.Core().available_devices if name.startswith("GPU")]
    if target.runtime == "onnxruntime":
        import onnxruntime

        present = onnxruntime.get_available_providers()
        return [name for name in present if name == "CUDAExecutionProvider"]
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def load_for_timing(folder: Path, target: Target) -> Inference:
    """The inference of an exported folder: OpenVINO's, ONNX's, or a dense torch model's.

    Raises:
        UserError: the folder holds no model for the target's runtime, or its longest sequence is
            shorter than the target's.
    """
    from transformers import AutoConfig

    name = {
        "openvino": "openvino_model.xml",
        "onnxruntime": "model.onnx",
        "torch": "config.json",
    }[target.runtime]
    for needed in (name, "config.json"):
        if not (folder / needed).is_file():
            raise UserError(f"{folder / needed}: no such file; {target} needs it")
    feed = random_feed(AutoConfig.from_pretrained(folder), target)
    if target.runtime == "openvino":
        import openvino

        return openvino_inference(openvino.Core().read_model(folder / name), target, feed)
    if target.runtime == "onnxruntime":
        return onnx_inference(str(folder / name), target, feed)
    from hwnas.models import load

    return torch_inference(load(folder), target, feed)


def random_feed(config: Any, target: Target) -> Feed:
    """Random token ids of the whole vocabulary and full masks, each `(batch, seq)`.

    Raises:
        UserError: the model reads no sequences that long.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and target.seq > longest:
        raise UserError(f"target {target}: seq={target.seq}, the model reads at most {longest}")
    shape = (target.batch, target.seq)
    return {
        "input_ids": np.random.default_rng(0).integers(0, config.vocab_size, shape),
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }


def openvino_inference(graph: Any, target: Target, feed: Feed) -> Inference:
    """Compile an `openvino.Model` for the target, with one stream.

    Raises:
        UserError: the machine lacks the device or the precision.
    """
    import openvino

    require(target)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if target.precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    if target.device == "cpu":
        settings["INFERENCE_NUM_THREADS"] = target.threads
    compiled = openvino.Core().compile_model(graph, target.device.upper(), settings)
    request = compiled.create_infer_request()
    for port in request.model_inputs:
        request.set_tensor(port, openvino.Tensor(feed[port.get_any_name()]))
    return request.infer  # type: ignore[no-any-return]


def onnx_inference(model: str | bytes, target: Target, feed: Feed) -> Inference:
    """A session of ONNX Runtime, all graph optimizations on, from a path or serialized model.

    Raises:
        UserError: the machine lacks the device.
    """
    import onnxruntime

    require(target)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    first = ["CUDAExecutionProvider"] if target.device == "cuda" else []
    providers = [*first, "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    inputs = {port.name: feed[port.name] for port in session.get_inputs()}
    return lambda: session.run(None, inputs)


def torch_inference(model: PreTrainedModel, target: Target, feed: Feed) -> Inference:
    """A plain forward without gradients, with the target's number of threads.

    The model is moved to the target's device and precision.

    Raises:
        UserError: the machine lacks the device or the precision.
    """
    import torch

    require(target)
    kind = torch.bfloat16 if target.precision == "bf16" else torch.float32
    model.eval().to(device=target.device, dtype=kind)
    inputs = {name: torch.from_numpy(ids).to(target.device) for name, ids in feed.items()}

    @torch.inference_mode()
    def infer() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(target.threads)
        try:
            answer = model(**inputs)
            if target.device == "cuda":
                torch.cuda.synchronize()
            return answer
        finally:
            torch.set_num_threads(before)

    return infer


def export(model: PreTrainedModel, runtime: str, folder: Path) -> None:
    """Optimum's export of a classifier for `runtime` into `folder`, without tokenizer."""
    import copy
    import logging

    exported: Any = copy.deepcopy(model)
    # Optimum asks in which package the class was written, and knows none of ours
    base = next(c for c in type(model).__mro__ if c.__module__.startswith("transformers.models."))
    exported.__class__ = type(base.__name__, (type(model),), {"__module__": base.__module__})
    exported.config._name_or_path = ""  # else a tokenizer is looked for there
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        if runtime == "openvino":
            from optimum.exporters.openvino import export_from_model

            export_from_model(exported, folder, task="text-classification", stateful=False)
        else:
            from optimum.exporters.onnx import onnx_export_from_model

            onnx_export_from_model(
                exported, folder, task="text-classification", do_validation=False
            )
    finally:
        logger.setLevel(level)
