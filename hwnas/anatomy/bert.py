"""BERT-like encoders (`model_type: bert`): MiniLM, BERT, and their fine-tuned descendants."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from hwnas.anatomy import BlockModules, Shape
from hwnas.anatomy.dense import stated_widths
from hwnas.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


task = "text-classification"


def shape(config: Any) -> Shape:
    """The sizes in a BERT config; per-block widths from `hwnas_blocks` if it has them."""
    widths = stated_widths(config)
    return Shape(
        family="bert",
        hidden=config.hidden_size,
        head_size=config.hidden_size // config.num_attention_heads,
        heads=tuple(heads for heads, _ in widths),
        ffn=tuple(ffn for _, ffn in widths),
        vocab=config.vocab_size,
    )


def blocks(model: Any) -> nn.ModuleList:
    """The encoder's layers."""
    layers: nn.ModuleList = model.base_model.encoder.layer
    return layers


def replace_blocks(model: Any, kept: nn.ModuleList) -> None:
    """Make the encoder run exactly these layers."""
    model.base_model.encoder.layer = kept


def block_modules(block: Any) -> BlockModules:
    """The elastic linear layers of one `BertLayer`, each with the module that holds it."""
    attention = block.attention.self
    return BlockModules(
        attention_in=((attention, "query"), (attention, "key"), (attention, "value")),
        attention_out=(block.attention.output, "dense"),
        ffn_in=((block.intermediate, "dense"),),
        ffn_out=(block.output, "dense"),
    )


def set_heads(block: nn.Module, heads: int) -> None:
    """Tell a layer's attention how many heads its projections now yield."""
    from hwnas.anatomy.modeling_hwnas_bert import set_heads as set_bert_heads

    set_bert_heads(block, heads)


def dense_class(model_class: type) -> type[PreTrainedModel]:
    """The class of a dense model whose layers differ in width, for the task of `model_class`."""
    from hwnas.anatomy import modeling_hwnas_bert as modeling

    by_task = {"ForSequenceClassification": modeling.HwnasBertForSequenceClassification}
    for task, dense in by_task.items():
        if model_class.__name__.endswith(task):
            return dense
    raise UserError(
        f"{model_class.__name__}: this kind of task is not supported for bert; "
        f"supported: {', '.join('Bert' + task for task in by_task)}"
    )


def dense_config(config: Any, widths: list[tuple[int, int]]) -> PretrainedConfig:
    """A copy of `config` for the kept layers with these `(heads, ffn)`."""
    result: PretrainedConfig = copy.deepcopy(config)
    result.num_hidden_layers = len(widths)
    result.hwnas_blocks = [list(width) for width in widths]
    return result


def task_head(model: Any) -> list[nn.Module]:
    """The modules between the last layer and the logits: pooler and classifier."""
    return [
        m for m in (model.base_model.pooler, getattr(model, "classifier", None)) if m is not None
    ]
