"""Dense models with per-block widths: with new weights here, with trained ones in `elastic`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.anatomy import find_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwnas.subnetwork import Subnetwork


def stated_widths(config: Any) -> list[tuple[int, int]]:
    """`(heads, ffn)` of every block: the config's `hwnas_blocks`, or all alike."""
    full = (config.num_attention_heads, config.intermediate_size)
    blocks = getattr(config, "hwnas_blocks", None) or [full] * config.num_hidden_layers
    return [(heads, ffn) for heads, ffn in blocks]


def new_dense(
    config: Any, subnetwork: Subnetwork, model_class: type | None = None
) -> PreTrainedModel:
    """A dense model of the subnetwork's widths with random weights, in evaluation mode.

    Enough to measure time, which depends on shapes only. `model_class` says the task; without
    it, the task is the family's own.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    family = find_family(config)
    if model_class is None:
        model_class = {
            "text-classification": AutoModelForSequenceClassification,
            "text-generation": AutoModelForCausalLM,
        }[family.task]
    widths = [(block.heads, block.ffn) for _, block in subnetwork.kept]
    dense: PreTrainedModel = family.dense_class(model_class)(family.dense_config(config, widths))
    dense.eval()
    return dense
