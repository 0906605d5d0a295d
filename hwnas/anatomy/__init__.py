"""Where a model's elastic parts are: its blocks, attention heads, FFNs, widths.

A `Family` says by names where these parts stand in the modules of transformers; everything else in
hwnas works on that. A new family is one new file that makes one, listed in `_FAMILIES`.

Needs no torch, for shapes travel in profiling kits.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hwnas.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# model_type of the config -> the module here whose `family` knows it
_FAMILIES = {
    "bert": "bert",
    "bloom": "bloom",
    "camembert": "bert",
    "deberta-v2": "deberta",
    "distilbert": "distilbert",
    "electra": "bert",
    "gemma": "llama",
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "mpnet": "mpnet",
    "qwen2": "llama",
    "qwen3": "llama",
    "roberta": "bert",
    "vit": "vit",
    "xlm-roberta": "bert",
}


@dataclass(frozen=True)
class Shape:
    """What decides a model's cost: enough to build a model of the same sizes, without weights."""

    family: str
    hidden: int
    head_size: int
    heads: tuple[int, ...]  # per block
    ffn: tuple[int, ...]  # per block
    vocab: int  # 0 where inputs are no tokens
    group: int = 1  # query heads that share a key-value head (a KV group)
    gated: bool = False  # the FFN has a gate beside its way in: three matrices instead of two
    decoder: bool = False  # it writes token by token, with a cache of keys and values

    @property
    def depth(self) -> int:
        return len(self.heads)


@dataclass(frozen=True)
class Family:
    """Where the elastic parts of a family's models stand, as dotted names of modules.

    All names but that of `blocks` are within one block. Attention projections yield or take
    `heads * head_size` columns, a head's columns side by side; those of the FFN one column a
    neuron. A name that a model does not have is passed over, for some are optional.
    """

    task: str  # what its models are mostly for, as Optimum names it
    blocks: str  # the list of blocks, within the base model
    attention_in: tuple[str, ...]  # query, key, value …: (heads * head_size, hidden)
    attention_out: str  # (hidden, heads * head_size)
    ffn_in: tuple[str, ...]  # (ffn, hidden)
    ffn_out: str  # (hidden, ffn)
    shared: tuple[str, ...] = ()  # those of `attention_in` with one head for each KV group
    # attributes that hold a block's sizes -> "heads", "size" of a head, "width" of all heads,
    # "scaling" (one over the root of a head's size)
    sizes: dict[str, str] = field(default_factory=dict)
    # a module that is called with a bias for each head, the same in all blocks, and as what: the
    # name of the argument, or empty for the fourth
    head_bias: str = ""
    bias_argument: str = ""
    # projections that transformers keeps in one layer -> names they get as layers of their own;
    # `by_head`: that layer has a head's query, key and value side by side, not all queries first
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    by_head: bool = False
    # its name in the config; where that says nothing, FFNs are four times as wide as the stream
    ffn_width: str = "intermediate_size"
    gated: bool = False
    decoder: bool = False

    def shape(self, config: Any) -> Shape:
        """The sizes that a config states, per-block widths from `hwnas_blocks` if it has them."""
        widths = stated_widths(config, self)
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return Shape(
            family=config.model_type,
            hidden=config.hidden_size,
            head_size=head_size(config),
            heads=tuple(heads for heads, _ in widths),
            ffn=tuple(ffn for _, ffn in widths),
            vocab=getattr(config, "vocab_size", 0),
            group=config.num_attention_heads // kv_heads,
            gated=self.gated,
            decoder=self.decoder,
        )


def stated_widths(config: Any, family: Family) -> list[tuple[int, int]]:
    """`(heads, ffn)` of every block: the config's `hwnas_blocks`, or all alike."""
    ffn = getattr(config, family.ffn_width, None) or 4 * config.hidden_size
    full = (config.num_attention_heads, ffn)
    blocks = getattr(config, "hwnas_blocks", None) or [full] * config.num_hidden_layers
    return [(heads, ffn) for heads, ffn in blocks]


def head_size(config: Any) -> int:
    """Columns of an attention head."""
    size: int = (
        getattr(config, "hwnas_head_size", None)
        or getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )
    return size


def find_family(config: PretrainedConfig | Any) -> Family:
    """The family that knows models of this config.

    Raises:
        UserError: the family is unknown; the message names the known ones.
    """
    kind = getattr(config, "model_type", None)
    if kind not in _FAMILIES:
        raise UserError(
            f"model family {kind!r} is not supported; supported: {', '.join(sorted(_FAMILIES))} "
            "(CONTRIBUTING.md says how to add one)"
        )
    found: Family = importlib.import_module(f"hwnas.anatomy.{_FAMILIES[kind]}").family
    return found


def find_shape(config: PretrainedConfig | Any) -> Shape:
    """The `Shape` of a model with this config.

    Raises:
        UserError: the family is unknown.
    """
    return find_family(config).shape(config)
