"""Small models, plans and tables that the tests of latency share."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig, LlamaConfig

from hwnas.anatomy import Shape
from hwnas.latency.parts import (
    AtLength,
    Device,
    Entry,
    Milliseconds,
    ModelSizes,
    Operator,
    Protocol,
    Validation,
    ValidationRow,
)
from hwnas.latency.plan import Plan
from hwnas.latency.table import LatencyTable
from hwnas.latency.target import Target

MINILM = Shape("bert", hidden=384, head_size=32, heads=(12,) * 6, ffn=(1536,) * 6, vocab=30522)
SMOLLM2 = Shape("llama", 576, 64, (9,) * 30, (1536,) * 30, 49152, group=3, gated=True, decoder=True)
SMALL = Shape("bert", hidden=64, head_size=16, heads=(4, 4), ffn=(128, 128), vocab=100)
PLAN = Plan.of(MINILM, unseen=30, seed=1)
TARGET = Target.parse("openvino:cpu:threads=1,batch=1,seq=16")
TINY = BertConfig(
    vocab_size=120,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
)


TINY_LLAMA = LlamaConfig(
    vocab_size=120,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=8,
    max_position_embeddings=64,
)


def entry(op: Operator, dims: dict[str, int], ms: float, seq: int = 64, full: float = 2.0) -> Entry:
    spread = Milliseconds(median=ms, p10=0.9 * ms, p90=1.2 * ms)
    width = dims | {"seq": seq}
    return Entry(op=op, dims=width, ms=spread, ratio_to_reference=ms / full, samples=12)


def entries(seq: int = 64, scale: float = 1.0) -> tuple[Entry, ...]:
    """Costs of which the full model's are `1.9 * scale` at this length."""
    full = 2.0 * scale
    return (
        entry("fixed", {}, 0.2 * scale, seq, full),
        *(entry("attention", {"heads": h}, 0.1 * h * scale, seq, full) for h in (1, 2, 4)),
        *(entry("ffn", {"width": w}, w / 256 * scale, seq, full) for w in (32, 128)),
    )


def small_table(seq: int = 64, scale: float = 1.0, **changes: Any) -> LatencyTable:
    """A table of two blocks; every cost times `scale`, and other fields as `changes` say."""
    row = ValidationRow(
        genome=[[2, 64], [0, 0]],
        predicted_ms=0.6,
        measured_ms=0.62,
        remeasured_ms=0.61,
        flops_ms=0.4,
    )
    base = LatencyTable(
        model=ModelSizes.of(SMALL),
        target=f"openvino:cpu:threads=1,batch=1,seq={seq}",
        device=Device(
            cpu="Some CPU",
            flags=("avx2",),
            cores=2,
            governor=None,
            memory_gb=8,
            system="Linux 6 x86_64",
        ),
        versions={"openvino": "2026.0"},
        protocol=Protocol(
            pairs=6,
            networks=20,
            clock="process",
            reference="the full model",
            spread=0.01,
            seconds=3.5,
        ),
        reference_ms=2.0 * scale,
        lengths=(AtLength(tokens=seq, share=1.0, reference_ms=2.0 * scale),),
        entries=entries(seq, scale),
        interval_90=0.05,
        validation=Validation(
            n=1,
            mape=3.2,
            bias=-3.2,
            kendall_tau=1.0,
            noise=1.6,
            flops_mape=35.0,
            coverage_90=1.0,
            rows=(row,),
        ),
    )
    return LatencyTable(**(dict(base) | changes))
