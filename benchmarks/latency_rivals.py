"""What else predicts latency, given as much measuring time as a latency table: the rivals.

Lines through operations and parameters, an MLP and boosted trees, all trained on whole random
networks timed for as long as the table took; and the sum of operators timed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from hwnas.anatomy import Shape
from hwnas.latency.measure import Turns, prepare, time_at_lengths
from hwnas.latency.plan import Plan, whole_networks
from hwnas.latency.precision import group_for, quantized
from hwnas.latency.runtimes import openvino_core
from hwnas.latency.session import (
    COMPILATIONS,
    PAIRS_EACH,
    SECONDS_EACH,
    Measurement,
    Stopwatch,
)
from hwnas.latency.target import Target
from hwnas.latency.validation import operations
from hwnas.subnetwork import Subnetwork

Predict = Callable[[Sequence[Subnetwork]], np.ndarray]  # shares of the reference's latency
_SAMPLES_SEED = 31337
_WIDTHS = 5  # of each operator timed alone


def whole_samples(plan: Plan, shape: Shape, stopwatch: Stopwatch, seconds: float) -> list[Any]:
    """Whole random networks, none of the unseen ones, timed in pairs for so many seconds."""
    end = time.perf_counter() + seconds
    found: list[Measurement] = []
    for subnetwork in whole_networks(shape, 2000, _SAMPLES_SEED):
        if time.perf_counter() > end:
            break
        if subnetwork not in plan.unseen:
            found.append(stopwatch.time(subnetwork, PAIRS_EACH, COMPILATIONS, SECONDS_EACH))
    return found


def parameters(subnetwork: Subnetwork, shape: Shape) -> float:
    """Weights of the kept blocks; what all networks share is in the line's intercept."""
    matrices = 3 if shape.gated else 2
    return sum(
        shape.hidden
        * (2 * block.heads * shape.head_size * (1 + 1 / shape.group) + matrices * block.ffn)
        for _, block in subnetwork.kept
    )


def features(subnetworks: Sequence[Subnetwork], shape: Shape) -> np.ndarray:
    """Widths of every block as shares of the full ones, and their sums: `(n, 3 * blocks + 3)`."""
    rows = np.array([s.genome for s in subnetworks], dtype=np.float64)
    heads, ffn = rows[..., 0] / max(shape.heads), rows[..., 1] / max(shape.ffn)
    kept = (heads > 0).astype(np.float64)
    sums = np.stack([kept.sum(1), heads.sum(1), ffn.sum(1)], axis=1) / shape.depth
    return np.concatenate([heads, ffn, kept, sums], axis=1)


def trained(samples: Sequence[Measurement], shape: Shape, target: Target) -> dict[str, Predict]:
    """The rivals that learn from whole networks."""
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    networks = [m.subnetwork for m in samples]
    ratios = np.array([m.points[0].ratio for m in samples])
    mlp = make_pipeline(
        StandardScaler(),
        MLPRegressor(hidden_layer_sizes=(400, 400, 400), max_iter=2000, random_state=0),
    )
    trees = GradientBoostingRegressor(n_estimators=300, max_depth=3, random_state=0)
    inputs = features(networks, shape)
    scale = ratios.mean()
    mlp.fit(inputs, ratios / scale)
    trees.fit(inputs, ratios / scale)

    def line(cost: Callable[[Subnetwork], float]) -> Predict:
        costs = np.array([cost(s) for s in networks])
        slope, intercept = np.polyfit(costs, ratios, 1, w=1 / ratios)
        return lambda subnetworks: intercept + slope * np.array([cost(s) for s in subnetworks])

    return {
        "flops": line(lambda s: operations(s, shape, target)),
        "parameters": line(lambda s: parameters(s, shape)),
        "mlp": lambda s: scale * mlp.predict(features(s, shape)),
        "trees": lambda s: scale * trees.predict(features(s, shape)),
    }


class _Attention(nn.Module):
    """Projections and attention of one block, alone; keys and values of a cache as inputs."""

    def __init__(self, shape: Shape, heads: int) -> None:
        super().__init__()
        self.size, self.group = shape.head_size, shape.group
        width, shared = heads * shape.head_size, heads // shape.group * shape.head_size
        self.q, self.k, self.v, self.o = (
            nn.Linear(a, b)
            for a, b in (
                (shape.hidden, width),
                (shape.hidden, shared),
                (shape.hidden, shared),
                (width, shape.hidden),
            )
        )

    def forward(self, x: Any, keys: Any, values: Any) -> Any:
        """`(batch, seq, hidden)` after a cache `(batch, KV heads, cache, head size)`."""
        batch, seq, _ = x.shape
        q, k, v = (
            m(x).view(batch, seq, -1, self.size).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        k, v = (t.repeat_interleave(self.group, 1) if self.group > 1 else t for t in (k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(out.transpose(1, 2).reshape(batch, seq, -1))


class _Ffn(nn.Module):
    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden, width) if shape.gated else None
        self.up, self.down = nn.Linear(shape.hidden, width), nn.Linear(width, shape.hidden)

    def forward(self, x: Any) -> Any:
        if self.gate is None:
            return self.down(nn.functional.gelu(self.up(x)))
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class _Ends(nn.Module):
    """Embeddings and, of a language model, the output layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocab, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocab if shape.decoder else shape.hidden)

    def forward(self, ids: Any) -> Any:
        return self.head(self.norm(self.words(ids)))


def isolated(plan: Plan, shape: Shape, target: Target, reference: Any) -> Predict:
    """The sum of operators that are timed alone, in pairs with the same reference."""
    (point, _), *_ = target.points
    rng = np.random.default_rng(0)
    x = rng.standard_normal((point.batch, point.seq, shape.hidden), dtype=np.float32)

    def cost(module: nn.Module, inputs: dict[str, Any]) -> float:
        infer = _compiled(module.eval(), inputs, target, group_for(shape))
        turns = [Turns([infer])]
        prepare(reference[0])
        (paired,) = time_at_lengths(turns, reference[:1], point, PAIRS_EACH)
        return paired.ratio

    def attention(heads: int) -> float:
        size = (point.batch, heads // shape.group, point.cache, shape.head_size)
        cache = rng.standard_normal(size, dtype=np.float32)
        return cost(_Attention(shape, heads), {"x": x, "keys": cache, "values": cache})

    def curve(widths: Sequence[int], of: Callable[[int], float]) -> Callable[[Any], Any]:
        chosen = sorted({widths[round(i)] for i in np.linspace(0, len(widths) - 1, _WIDTHS)})
        costs = [of(width) for width in chosen]
        return lambda wanted: np.interp(wanted, chosen, costs)

    by_heads = curve(plan.heads, attention)
    by_width = curve(plan.ffn, lambda width: cost(_Ffn(shape, width), {"x": x}))
    ids = rng.integers(0, shape.vocab, (point.batch, point.seq))
    ends = cost(_Ends(shape), {"ids": ids})
    return lambda subnetworks: np.array(
        [ends + sum(by_heads(b.heads) + by_width(b.ffn) for _, b in s.kept) for s in subnetworks]
    )


def _compiled(module: nn.Module, inputs: dict[str, Any], target: Target, group: int) -> Any:
    """One operator in the target's runtime and precision."""
    with torch.inference_mode():
        if target.runtime == "openvino":
            return _openvino(module, inputs, target, group)
        return _onnx(module, inputs, target, group)


def _openvino(module: nn.Module, inputs: dict[str, Any], target: Target, group: int) -> Any:
    import openvino

    example = {name: torch.from_numpy(value) for name, value in inputs.items()}
    graph = openvino.convert_model(module, example_input=example)
    graph = quantized(graph, "openvino", target.precision, [inputs], group)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    settings["INFERENCE_NUM_THREADS"] = target.threads
    request = openvino_core().compile_model(graph, "CPU", settings).create_infer_request()
    for port, value in zip(request.model_inputs, inputs.values(), strict=True):
        request.set_tensor(port, openvino.Tensor(value))
    return request.infer


def _onnx(module: nn.Module, inputs: dict[str, Any], target: Target, group: int) -> Any:
    import tempfile
    from pathlib import Path

    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "operator.onnx"
        example = tuple(torch.from_numpy(value) for value in inputs.values())
        torch.onnx.export(
            module, example, str(path), input_names=list(inputs), dynamo=False, opset_version=17
        )
        proto = onnx.load(path)
    used = {port.name for port in proto.graph.input}
    fed = {name: value for name, value in inputs.items() if name in used}
    proto = quantized(proto, "onnxruntime", target.precision, [fed], group)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads, 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, fed)


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Mean absolute error in per cent, and Kendall's tau."""
    from scipy.stats import kendalltau

    return {
        "mape": float(100 * np.mean(np.abs(predicted / measured - 1))),
        "tau": float(kendalltau(predicted, measured).statistic),
    }


@contextmanager
def toggled_load(period: float) -> Iterator[None]:
    """Burn two processors on and off, so many seconds each, while the body runs."""
    import subprocess
    import sys

    code = (
        "import time, numpy as np\n"
        "a = np.random.rand(700, 700)\n"
        f"while True:\n    end = time.time() + {period}\n"
        "    while time.time() < end: a @ a\n"
        f"    time.sleep({period})\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()
