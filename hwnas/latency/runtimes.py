"""One inference of a graph through the runtime that will serve it, ready to be timed.

OpenVINO, ONNX Runtime and torch, on the CPU or a GPU, each with the target's threads and precision,
and an inference for each of its lengths out of one compilation, as a server has them. An inference
returns when its result is there: on a GPU it waits for the device. CUDA graphs are not used, for
what Optimum and transformers serve does not use them either.

Language models keep the keys and values of the tokens before. To decode at a stated cache length,
ONNX Runtime is handed a cache of that length every time; OpenVINO's and torch's caches grow with
each token, and are brought back before they have grown by an eighth (`measure.prepare`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.latency.device import BF16, cpu_flags, processors
from hwnas.latency.measure import Inference
from hwnas.latency.target import Target
from hwnas.telemetry import no_telemetry

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel

Feed = dict[str, "npt.NDArray[np.integer[Any]]"]  # input name -> values


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
        flags = cpu_flags()
        if BF16.isdisjoint(flags):
            raise UserError(
                f"target {target}: this processor has no bf16 instructions "
                f"(it has {', '.join(flags) or 'no vector ones that are known'}); choose fp32"
            )
        if target.runtime == "openvino" and target.phase != "encode" and _one_thread(target):
            # openvino issue 33300, still so in 2026.4: a division by zero that ends the process
            raise UserError(
                f"target {target}: OpenVINO crashes when it computes a language model in bf16 "
                "with one thread; choose fp32 or more threads"
            )


def _on_some_processors() -> bool:
    """Whether this process may use some of the machine's processors only."""
    return processors() < (os.cpu_count() or 1)


def _one_thread(target: Target) -> bool:
    """Whether OpenVINO would compute with a single thread: it takes no more than it has cores."""
    return min(target.threads, processors()) == 1


@cache
def openvino_core() -> Any:
    """OpenVINO's one core of this process; with several, freeing a model can crash (2026.2)."""
    import openvino

    return openvino.Core()


def gpu_names(target: Target) -> list[str]:
    """What the target's runtime sees of its kind of GPU."""
    if target.runtime == "openvino":
        core = openvino_core()
        present = [name for name in core.available_devices if name.startswith("GPU")]
        return [str(core.get_property(name, "FULL_DEVICE_NAME")) for name in present]
    if target.runtime == "onnxruntime":
        import onnxruntime

        present = onnxruntime.get_available_providers()
        return [name for name in present if name == "CUDAExecutionProvider"]
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def load_for_timing(folder: Path, target: Target) -> list[Inference]:
    """An exported folder's inference at each length: OpenVINO's, ONNX's, or a dense torch model's.

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
    config = AutoConfig.from_pretrained(folder)
    check_length(config, target)
    vocab = config.vocab_size
    if target.runtime != "torch":
        from hwnas.export.folders import reading

        with reading(folder):
            if target.runtime == "onnxruntime":
                return onnx_inferences(str(folder / name), target, vocab)
            return openvino_inferences(openvino_core().read_model(folder / name), target, vocab)
    from hwnas.models import load

    return torch_inferences(load(folder, shrinkable=False), target, vocab)


def check_length(config: Any, target: Target) -> None:
    """Raise `UserError` if the model reads no sequences as long as the target's."""
    longest = getattr(config, "max_position_embeddings", None)
    tokens = target.cache + target.seq
    if longest is not None and tokens > longest:
        raise UserError(
            f"target {target}: {target.axis}={getattr(target, target.axis)}, "
            f"the model reads at most {longest} tokens"
        )


def random_feed(target: Target, vocab: int) -> Feed:
    """Random token ids of the whole vocabulary after a cache of `target.cache` others.

    Args:
        target: of one length.

    Returns:
        Every input that a model may have: `(batch, seq)`, the mask `(batch, cache + seq)`.
    """
    shape = (target.batch, target.seq)
    positions = np.arange(target.cache, target.cache + target.seq)
    return {
        "input_ids": np.random.default_rng(0).integers(0, vocab, shape),
        "attention_mask": np.ones((target.batch, target.cache + target.seq), np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
        "position_ids": np.broadcast_to(positions, shape).astype(np.int64),
        "beam_idx": np.arange(target.batch, dtype=np.int32),
    }


def openvino_settings(target: Target) -> dict[str, Any]:
    """What OpenVINO is told, here and by whoever serves what was measured here."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if target.precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    if target.device == "cpu":
        settings["INFERENCE_NUM_THREADS"] = target.threads
    return settings


def openvino_inferences(graph: Any, target: Target, vocab: int) -> list[Inference]:
    """Compile an `openvino.Model` for the target, with one stream; a request for each length.

    Raises:
        UserError: the machine lacks the device or the precision.
    """
    require(target)
    settings = openvino_settings(target)
    if target.device == "cpu" and _on_some_processors():
        # kept there for a while, see `pinning`; OpenVINO would note it, and bring this thread back
        # to those processors after each inference of later models too
        settings["ENABLE_CPU_PINNING"] = False
    compiled = openvino_core().compile_model(graph, target.device.upper(), settings)
    inferences: list[Inference] = []
    for point, _ in target.points:
        if point.phase == "decode":
            inferences.append(_OpenVinoDecoding(compiled.create_infer_request(), point, vocab))
            continue
        request = _fed(compiled.create_infer_request(), random_feed(point, vocab))
        inferences.append(request.infer if point.phase == "encode" else _Prefill(request))
    return inferences


def _fed(request: Any, feed: Feed) -> Any:
    """The request with its inputs set."""
    import openvino

    for port in request.model_inputs:
        request.set_tensor(port, openvino.Tensor(np.ascontiguousarray(feed[port.get_any_name()])))
    return request


class _Prefill:
    """Reading a prompt with OpenVINO: each starts with an empty cache."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def __call__(self) -> object:
        self._request.reset_state()
        return self._request.infer()


class _OpenVinoDecoding:
    """One token more with OpenVINO, after `target.cache` others and those of the calls before."""

    def __init__(self, request: Any, target: Target, vocab: int) -> None:
        self._request, self._target = request, target
        self._most = target.cache + max(8, target.cache // 8)
        self._tokens = -1  # in the cache; none yet
        self._feed = random_feed(target, vocab)

    def prepare(self) -> None:
        """Bring the cache back to the target's length if it has grown too far.

        Random keys and values take the time of real ones. The first token after is left untimed:
        the runtime arranges the new cache.
        """
        import openvino

        if 0 <= self._tokens < self._most:
            return
        self._request.reset_state()
        random = np.random.default_rng(0)
        for state in self._request.query_state():
            _, heads, _, size = state.state.shape
            shape = (self._target.batch, heads, self._target.cache, size)
            cache = random.standard_normal(shape, dtype=np.float32)
            state.state = openvino.Tensor(cache)
        self._tokens = self._target.cache
        self()

    def __call__(self) -> object:
        if self._tokens < 0:
            self.prepare()
        self._tokens += 1
        self._feed["attention_mask"] = np.ones((self._target.batch, self._tokens), np.int64)
        self._feed["position_ids"][:] = self._tokens - 1
        return _fed(self._request, self._feed).infer()


def onnx_inferences(model: str | bytes, target: Target, vocab: int) -> list[Inference]:
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

    def at(point: Target) -> Inference:
        feed = random_feed(point, vocab)
        inputs = {
            port.name: _cache_of(port, point) if "past" in port.name else feed[port.name]
            for port in session.get_inputs()
        }
        return lambda: session.run(None, inputs)

    return [at(point) for point, _ in target.points]


def _cache_of(port: Any, target: Target) -> npt.NDArray[np.float32]:
    """Random keys or values `(batch, KV heads, cache, head size)` for an input of a session."""
    _, heads, _, size = port.shape
    shape = (target.batch, heads, target.cache, size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def torch_inferences(model: PreTrainedModel, target: Target, vocab: int) -> list[Inference]:
    """Plain forwards without gradients, with the target's number of threads.

    The model is moved to the target's device and precision.

    Raises:
        UserError: the machine lacks the device or the precision.
    """
    import inspect

    import torch

    require(target)
    kind = torch.bfloat16 if target.precision == "bf16" else torch.float32
    model.eval().to(device=target.device, dtype=kind)

    def at(point: Target) -> Inference:
        feed = random_feed(point, vocab)
        known = ["input_ids", "attention_mask"]
        known += ["token_type_ids"] if point.phase == "encode" else ["position_ids"]
        taken = inspect.signature(model.forward).parameters
        inputs: dict[str, Any] = {
            name: torch.from_numpy(feed[name]).to(target.device) for name in known if name in taken
        }
        if point.phase == "decode":
            inputs["past_key_values"] = _torch_cache(model, point, vocab)

        @torch.inference_mode()
        def infer() -> object:
            before = torch.get_num_threads()
            torch.set_num_threads(target.threads)
            try:
                if point.phase == "decode":
                    inputs["past_key_values"].crop(point.cache)
                answer = model(**inputs)
                if target.device == "cuda":
                    torch.cuda.synchronize()
                return answer
            finally:
                torch.set_num_threads(before)

        return infer

    return [at(point) for point, _ in target.points]


def _torch_cache(model: PreTrainedModel, target: Target, vocab: int) -> Any:
    """The keys and values of `target.cache` random tokens."""
    import torch

    prompt = random_feed(replace(target, seq=target.cache, cache=0), vocab)
    names = ("input_ids", "attention_mask", "position_ids")
    with torch.inference_mode():
        answer: Any = model(
            **{name: torch.from_numpy(prompt[name]).to(target.device) for name in names},
            use_cache=True,
        )
    return answer.past_key_values


def export(model: PreTrainedModel, runtime: str, folder: Path) -> None:
    """Optimum's export for `runtime` into `folder`, without tokenizer; a decoder's with a cache."""
    import copy
    import logging

    from hwnas.anatomy import find_family
    from hwnas.export.decoders import export_configs

    exported: Any = copy.deepcopy(model)
    # Optimum asks in which package the class was written, and knows none of ours
    base = next(c for c in type(model).__mro__ if c.__module__.startswith("transformers.models."))
    exported.__class__ = type(base.__name__, (type(model),), {"__module__": base.__module__})
    exported.config._name_or_path = ""  # else a tokenizer is looked for there
    decoder = find_family(model.config).shape(model.config).decoder
    task = find_family(model.config).task + ("-with-past" if decoder else "")
    own: dict[str, Any] = {}
    if decoder:
        exported.config.architectures = [base.__name__]
        own = export_configs(exported, runtime if runtime == "openvino" else "onnx")
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        if runtime == "openvino":
            from optimum.exporters.openvino import export_from_model

            with no_telemetry():
                export_from_model(exported, folder, task=task, stateful=decoder, **own)
        else:
            from optimum.exporters.onnx import onnx_export_from_model

            onnx_export_from_model(exported, folder, task=task, do_validation=False, **own)
    finally:
        logger.setLevel(level)
