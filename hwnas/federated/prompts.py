"""Prompt tuning: a few soft tokens before every text, and the task's head, are all that is learned.

The soft tokens and how a model reads them are peft's (Lester et al. 2021); a few KiB travel a
round. All tiers share them, for they are as wide as the residual stream; each reads them with its
own subnetwork of the frozen model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from hwnas.anatomy.modules import task_head
from hwnas.elastic.residual import name_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOFT = "soft_prompt"  # as server and clients call the tokens, (tokens, hidden)
_OF_HEAD = ".modules_to_save.default"  # in peft's names
_TASKS = {"text-classification": "SEQ_CLS"}  # Optimum's name -> peft's


def can_be_prompted(task: str) -> bool:
    """Whether peft has prompts for such a task, and hwnas an export for none of its pieces."""
    return task in _TASKS


def first_prompt(model: PreTrainedModel | Any, count: int, seed: int) -> torch.Tensor:
    """So many tokens that are like the vocabulary's, `(count, hidden)`."""
    embeddings: torch.Tensor = cast("Any", model).get_input_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(seed)
    return embeddings[torch.randperm(len(embeddings), generator=generator)[:count]].clone()


def head_names(model: PreTrainedModel) -> dict[str, torch.Size]:
    """The parameters of the layer that yields the logits, which are trained beside the prompt."""
    last = task_head(model)[-1]
    own = name_of(model, last)
    return {f"{own}.{name}": p.shape for name, p in last.named_parameters()}


def prompted(
    model: PreTrainedModel, task: str, arrays: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """A frozen model that reads these tokens first, with the head that was learned beside them."""
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type=_TASKS[task], num_virtual_tokens=len(arrays[SOFT]))
    wrapped = get_peft_model(model, config)
    own = learned(cast("PreTrainedModel", wrapped))
    with torch.no_grad():
        for name, tensor in arrays.items():
            own[name].copy_(tensor)
    return cast("PreTrainedModel", wrapped.eval())


def learned(wrapped: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What is trained of such a model, the very tensors, by the names that travel."""
    found = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and name.startswith("prompt_encoder."):
            found[SOFT] = parameter.detach()
        elif parameter.requires_grad:
            own = name.removeprefix("base_model.").replace(_OF_HEAD, "")
            found[own] = parameter.detach()
    return found
