"""Timing one inference, in pairs with a reference, through the runtime that will serve the model.

Idea: the clock of a machine drifts (frequency, neighbours, caches), and it drifts alike for two
networks that take turns. So a candidate runs between two runs of a reference, the *ratio* is
kept, and the median over many such pairs is the result.

The clock: with one thread, an inference never waits for anything but a processor, so the CPU time
that the process used is what it takes when it has its processor to itself. Where others compete,
that is steadier than wall time by a factor of ten; on a quiet machine the two are equal. With more
threads the waiting of one for another is part of the latency, and wall time is taken.

Assumptions: the runtime's computing threads are the process's own, and nothing else in this
process computes meanwhile.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.latency.target import Target

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel

Inference = Callable[[], object]
Clock = Callable[[], float]  # seconds
Feed = dict[str, "npt.NDArray[np.int64]"]  # input name -> (batch, seq)

PAIRS = 15
_BURST_MS = 2.0  # shorter inferences are repeated until a sample takes as long, far above the timer
_WARM_RUNS = (3, 20)  # at least, at most
_STEADY = 0.1  # warm when a run differs from the fastest so far by less


@dataclass(frozen=True)
class Paired:
    """A candidate's time beside the reference's."""

    ratio: float  # median over pairs of candidate / mean of the references before and after
    ratio_spread: float  # half the distance between the quartiles of these ratios
    ms: float  # the candidate's median; p10 and p90 are its own percentiles
    p10_ms: float
    p90_ms: float
    reference_ms: float  # the reference's median in the same minutes
    samples: int  # pairs


def clock_of(target: Target) -> Clock:
    """The clock that is right for the target, see the module's docstring."""
    return time.process_time if target.threads == 1 else time.perf_counter


def time_pairs(
    candidate: Inference,
    reference: Inference,
    *,
    pairs: int = PAIRS,
    clock: Clock = time.perf_counter,
) -> Paired:
    """Time `candidate` between runs of `reference`, `pairs` times.

    Args:
        clock: `clock_of(target)`; by default wall time.

    Raises:
        ValueError: fewer than one pair.
    """
    if pairs < 1:
        raise ValueError(f"pairs={pairs}: at least one is needed")
    repeats = _burst(_warm_up(candidate, clock))
    reference_repeats = _burst(_warm_up(reference, clock))
    before = _sample(reference, reference_repeats, clock)
    times, references, ratios = [], [before], []
    for _ in range(pairs):
        mine = _sample(candidate, repeats, clock)
        after = _sample(reference, reference_repeats, clock)
        ratios.append(2 * mine / (before + after))
        times.append(mine)
        references.append(after)
        before = after
    low, ratio, high = np.percentile(ratios, (25, 50, 75))
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    return Paired(
        ratio=float(ratio),
        ratio_spread=float(high - low) / 2,
        ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        reference_ms=float(np.median(references)),
        samples=pairs,
    )


def in_turns(inferences: Sequence[Inference]) -> Inference:
    """One inference that is each of these in turn, all of them run once.

    Where in memory a compiled network happens to lie makes it faster or slower by a few per cent,
    for as long as it lives. A network that matters is compiled several times, and they take turns.
    """
    for infer in inferences:
        infer()
    turns = itertools.cycle(inferences)
    return lambda: next(turns)()


def confirmed(measure: Callable[[], Paired], limit: float) -> Paired:
    """A measurement; if its ratio exceeds `limit`, the one of median ratio among it and two more.

    Noise alone should not fail a verdict that a whole run led up to.
    """
    first = measure()
    if first.ratio <= limit:
        return first
    return sorted((first, measure(), measure()), key=lambda paired: paired.ratio)[1]


def _warm_up(inference: Inference, clock: Clock) -> float:
    """Run until the time settles; the fastest run in milliseconds."""
    at_least, at_most = _WARM_RUNS
    fastest = math.inf
    for run in range(1, at_most + 1):
        took = _sample(inference, 1, clock)
        steady = abs(took - fastest) <= _STEADY * fastest
        fastest = min(fastest, took)
        if run >= at_least and steady:
            break
    return fastest


def _burst(ms: float) -> int:
    """How often to repeat an inference of `ms` in one sample."""
    return max(1, math.ceil(_BURST_MS / max(ms, 1e-3)))


def _sample(inference: Inference, repeats: int, clock: Clock) -> float:
    """Milliseconds of one inference, mean over a burst of `repeats`."""
    start = clock()
    for _ in range(repeats):
        inference()
    return (clock() - start) / repeats * 1e3


def compile_model(model: PreTrainedModel, target: Target) -> Inference:
    """The inference of a dense torch model as the target's runtime will serve its export.

    For OpenVINO and ONNX Runtime the model goes through Optimum's own export (dynamic shapes), so
    that the graph is that of the deployed file. The model itself is left as it was.

    Raises:
        UserError: the target's sequence is longer than the model can read.
    """
    feed = random_feed(model.config, target)
    if target.runtime == "torch":
        return torch_inference(model, target, feed)
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        export(model, target.runtime, Path(folder))
        return load_for_timing(Path(folder), target)


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
    """Compile an `openvino.Model` for the target; single precision, one stream."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": target.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    for port in request.model_inputs:
        request.set_tensor(port, openvino.Tensor(feed[port.get_any_name()]))
    return request.infer  # type: ignore[no-any-return]


def onnx_inference(model: str | bytes, target: Target, feed: Feed) -> Inference:
    """A session of ONNX Runtime, all graph optimizations on, from a path or serialized model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {port.name: feed[port.name] for port in session.get_inputs()}
    return lambda: session.run(None, inputs)


def torch_inference(model: PreTrainedModel, target: Target, feed: Feed) -> Inference:
    """A plain forward without gradients, with the target's number of threads."""
    import torch

    inputs = {name: torch.from_numpy(ids) for name, ids in feed.items()}
    model.eval()

    @torch.inference_mode()
    def infer() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(target.threads)
        try:
            return model(**inputs)
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
