"""Training in half precision on a processor: products of matrices in bf16, all else in fp32.

Only where that is quicker, which is measured: with AMX a product of matrices takes a fraction of
its time in fp32, with AVX-512's units for bf16 alone perhaps 1.6 times as long (a Xeon with torch
2.13). Weights, gradients and the optimizer stay in fp32, and what a model says is made fp32 before
a loss looks at it: on a processor, torch would take the logarithms of probabilities in bf16 too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from hwnas.latency.device import BF16, cpu_flags

if TYPE_CHECKING:
    from hwnas.training.compute import Precision

_ROWS, _WIDTH = 256, 768  # of the matrices that are multiplied to see
_PAIRS = 9
_CLEARLY = 0.8  # of the time in fp32


@cache
def has_units() -> bool:
    """Whether this processor multiplies matrices in bf16 itself."""
    return not BF16.isdisjoint(cpu_flags())


@cache
def pays() -> bool:
    """Whether this processor multiplies matrices in bf16 in clearly less time than in fp32."""
    import torch

    if not has_units():
        return False
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        rows, weights = torch.randn(_ROWS, _WIDTH), torch.randn(_WIDTH, _WIDTH)
    for dtype in (*seconds, *[one for _ in range(_PAIRS) for one in seconds]):
        x, w = rows.to(dtype), weights.to(dtype)
        begin = time.perf_counter()
        x @ w
        seconds[dtype].append(time.perf_counter() - begin)
    # the first of each prepares the kernel
    exact, half = (statistics.median(taken[1:]) for taken in seconds.values())
    return half < _CLEARLY * exact


def on_processor(precision: Precision) -> bool:
    """Whether a training of this precision is one in bf16 on the processor."""
    import torch

    return precision == "bf16" and not torch.cuda.is_available() and pays()


@contextmanager
def in_half() -> Iterator[None]:
    """A forward pass on the processor in bf16."""
    import torch

    with torch.autocast("cpu", torch.bfloat16), _plain_attention():
        yield


def again_in_half() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around a block's pass in `in_half`, and around its second one (torch's `checkpoint`).

    That comes in the backward pass, outside of `in_half`; torch itself sees to the precision.
    """
    return nullcontext(), _plain_attention()


def _plain_attention() -> AbstractContextManager[None]:
    """torch's fused attention takes nine times as long in bf16 as in fp32 (2.13, with AMX)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
