"""Training in half precision on a processor: products of matrices in bf16, all else in fp32.

Only where the processor has units for bf16 (AMX, or AVX-512's); without them it would be slower.
Weights, gradients and the optimizer stay in fp32, and what a model says is made fp32 before a loss
looks at it: on a processor, torch would take the logarithms of probabilities in bf16 too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from hwnas.latency.device import BF16, cpu_flags

if TYPE_CHECKING:
    from hwnas.training.compute import Precision


@cache
def has_units() -> bool:
    """Whether this processor multiplies matrices in bf16 itself."""
    return not BF16.isdisjoint(cpu_flags())


def on_processor(precision: Precision) -> bool:
    """Whether a training of this precision is one in bf16 on the processor."""
    import torch

    return precision == "bf16" and not torch.cuda.is_available() and has_units()


@contextmanager
def in_half() -> Iterator[None]:
    """A forward pass on the processor in bf16."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # torch's fused attention takes nine times as long in bf16 as in fp32 (2.13, with AMX)
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield
