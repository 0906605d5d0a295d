"""What clients train of a model: all of it, adapters beside frozen weights, or a soft prompt.

Whatever is frozen is never sent. A client has the original model, and sorts its heads and neurons
by the scores that the server sends along, so that its frozen weights are the server's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hwnas.anatomy.modules import task_head
from hwnas.elastic.adapters import Adapters
from hwnas.elastic.residual import name_of
from hwnas.elastic.supernet import SuperNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hwnas.elastic.spec import AdapterSpec


@dataclass(frozen=True)
class Method:
    """What is trained.

    Args:
        freeze_embeddings: those of the words are not; only where all else is trained.
        adapters: low-rank pairs are trained, and the task's head.
        prompt: so many soft tokens are, and the layer that yields the logits.
    """

    freeze_embeddings: bool
    adapters: AdapterSpec | None = None
    prompt: int = 0

    @property
    def freezes(self) -> bool:
        """Whether clients take weights of the blocks from the original model."""
        return self.adapters is not None or self.prompt > 0

    def attach(self, network: SuperNetwork, seed: int = 0) -> Adapters | None:
        """Put adapters beside a network's weights, if that is the method, and free its head."""
        if self.adapters is None:
            return None
        attached = Adapters(network, self.adapters, seed)
        if not network.shape.decoder:
            for module in task_head(network.model):
                module.requires_grad_(True)
        return attached

    def trained(self, model: PreTrainedModel) -> set[str]:
        """Names of the parameters that are trained, of a model that has its adapters."""
        found = {name for name, p in model.named_parameters() if p.requires_grad}
        if self.adapters is None and self.freeze_embeddings:
            found -= embeddings_of(model)
        return found

    def frozen(self, model: PreTrainedModel) -> set[str]:
        """Names of the tensors that a client takes from the original model."""
        names = set(model.state_dict())
        if self.adapters is not None:
            return names - self.trained(model)
        return embeddings_of(model) if self.freeze_embeddings else set()


def embeddings_of(model: PreTrainedModel | torch.nn.Module) -> set[str]:
    """The names of the word embeddings' parameters."""
    layer = model.get_input_embeddings()  # type: ignore[operator]
    own = name_of(model, layer)
    return {f"{own}.{name}" for name, _ in layer.named_parameters()}
