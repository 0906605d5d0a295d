"""Dense models with per-block widths: with new weights here, with trained ones in `elastic`."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from hwnas.anatomy import Family, find_family, head_size, stated_widths
from hwnas.anatomy.heads import class_for, task_of
from hwnas.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hwnas.subnetwork import Subnetwork

_LAYOUT = (
    "blocks",
    "attention_in",
    "attention_out",
    "ffn_in",
    "ffn_out",
    "shared",
    "sizes",
    "head_bias",
    "bias_argument",
    "joined",
    "by_head",
)
# attributes of configs that, where they equal the residual width, mean it
_AS_WIDE = ("pooler_hidden_size", "embedding_size")


def new_dense(
    config: PretrainedConfig, subnetwork: Subnetwork, task: str | None = None
) -> PreTrainedModel:
    """A dense model of the subnetwork's widths with random weights, in evaluation mode.

    Enough to measure time, which depends on shapes only.

    Args:
        task: what it is for; without it, what the family's models are mostly for.
    """
    task = task or find_family(config).task
    widths = [(block.heads, block.ffn) for _, block in subnetwork.kept]
    stated: Any = dense_config(config, widths, subnetwork.hidden)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:  # of attention, in decoders: near, or over all
        stated.layer_types = [kinds[i] for i, _ in subnetwork.kept]
    dense = dense_class(config, task)(stated)
    dense.eval()
    return dense


def dense_class(config: PretrainedConfig, task: str) -> type[PreTrainedModel]:
    """The class of dense models for a task whose layers differ in width.

    Raises:
        UserError: the family has no models for it.
    """
    from hwnas.anatomy import modeling_hwnas

    name = f"Hwnas{class_for(config, task).__name__}"
    return cast("type[PreTrainedModel]", getattr(modeling_hwnas, name))


def dense_config(config: Any, widths: list[tuple[int, int]], hidden: int = 0) -> PretrainedConfig:
    """A copy of `config` for the kept blocks with these `(heads, ffn)`.

    Args:
        hidden: residual width; 0: the config's own.
    """
    family = find_family(config)
    shape = family.shape(config)
    result: Any = copy.deepcopy(config)
    result.num_hidden_layers = len(widths)
    result.hwnas_blocks = [list(width) for width in widths]
    result.hwnas_head_size = head_size(config)
    result.hwnas_layout = layout(family, config)
    if hidden:
        for name in _AS_WIDE:
            if getattr(result, name, None) == config.hidden_size:
                setattr(result, name, hidden)
        result.hidden_size = hidden
    heads = {heads for heads, _ in widths}
    if family.decoder and hasattr(config, "num_key_value_heads"):
        result.head_dim = head_size(config)
        if len(heads) == 1:  # exporters make example caches by these numbers
            result.num_attention_heads = heads.pop()
            result.num_key_value_heads = result.num_attention_heads // shape.group
    return cast("PretrainedConfig", result)


def check_hidden(hidden: int, config: Any, where: str) -> None:
    """Raise `UserError` unless a model of this config can have such a residual width.

    Args:
        where: begins the message.
    """
    full, heads = config.hidden_size, config.num_attention_heads
    if find_family(config).decoder:
        raise UserError(f"{where}: the residual width of decoders is not elastic; leave it out")
    if not 0 < hidden < full:
        raise UserError(f"{where}: residual width {hidden}, the model has {full}; give less")
    if hidden == getattr(config, "embedding_size", full):
        raise UserError(
            f"{where}: residual width {hidden} is that of the embeddings, where the family leaves "
            f"out the projection between them, which the model has; give another"
        )
    if hidden % heads:
        raise UserError(
            f"{where}: residual width {hidden} is not a multiple of {heads}, the number of heads; "
            f"the nearest is {max(1, round(hidden / heads)) * heads}"
        )


def layout(family: Family, config: Any) -> dict[str, Any]:
    """What `modeling_hwnas` is to know of the family, as JSON."""
    stated = asdict(family)
    shape = family.shape(config)
    names = {key: stated[key] for key in _LAYOUT}
    names = {key: list(v) if isinstance(v, tuple) else v for key, v in names.items()}
    return names | {"head_size": shape.head_size, "group": shape.group}


def take_apart(model: Any) -> None:
    """Give each block what it shares with others, and each projection a layer of its own.

    Where a bias for each head is shared by all blocks, each block then chooses its heads' part;
    where queries, keys and values come out of one layer, there are three. In place, and only once;
    what the model computes stays. Nothing happens in families that know neither.
    """
    from hwnas.anatomy.modeling_hwnas import own_heads, part
    from hwnas.anatomy.modules import blocks

    config = model.config
    family = find_family(config)
    whole = not family.head_bias and not family.joined
    if whole or getattr(config, "hwnas_blocks", None) is not None:
        return
    widths = stated_widths(config, family)
    known = layout(family, config)
    for block, (heads, _) in zip(blocks(model), widths, strict=True):
        part(block, known)
        if family.head_bias:
            own_heads(block.get_submodule(family.head_bias), heads, family.bias_argument)
    model.__class__ = dense_class(config, task_of(type(model)))
    stated = dense_config(config, widths)
    for name in ("hwnas_blocks", "hwnas_head_size", "hwnas_layout"):
        setattr(config, name, getattr(stated, name))
