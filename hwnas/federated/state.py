"""What the server knows between two rounds, kept on disk whole, so that a killed run goes on.

`start/` holds the model as it began, its heads and neurons sorted; `state/` what is trained of it,
the server optimizer's moments, and the rest as JSON. A round's end replaces `state/` at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from hwnas.elastic.supernet import SuperNetwork
from hwnas.federated.messages import weights
from hwnas.federated.parts import Part
from hwnas.federated.prompts import SOFT, first_prompt, prompted
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server_optimizers import ServerOptimizer
from hwnas.federated.tiers import Tier
from hwnas.files import read_model, read_tensors, replacing, write_json
from hwnas.importance.scores import Importance
from hwnas.models import load, on_gpu
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    import torch
    from flwr.app import ArrayRecord
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_START, _FOLDER = "start", "state"
_SCORES = "scores.safetensors"


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    labels: list[str]
    tiers: dict[str, Tier]


@dataclass
class ServerState:
    """The super-network and how far it is."""

    recipe: FederatedRecipe
    network: SuperNetwork
    tokenizer: PreTrainedTokenizerBase
    optimizer: ServerOptimizer
    labels: list[str]
    tiers: dict[str, Tier]
    number: int = 0  # of the last round that ended
    prompt: dict[str, torch.Tensor] = field(default_factory=dict)  # its tokens, where there is one
    scores: Importance = field(default_factory=lambda: Importance((), ()))
    _parts: dict[Subnetwork, Part] = field(default_factory=dict, init=False)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole model's, the very ones; changing them changes the model."""
        return self.network.model.state_dict() | self.prompt

    @contextmanager
    def answering(self, tier: Tier) -> Iterator[PreTrainedModel]:
        """A tier's model for a while, as it is now, in evaluation mode, on the GPU if any."""
        if self.prompt:
            arrays = self.part(tier.subnetwork).cut(self.tensors)
            yield on_gpu(prompted(self.network.extract(tier.subnetwork), self.task, arrays))
            return
        try:
            with self.network.as_subnetwork(tier.subnetwork) as model:
                yield on_gpu(model.eval())
        finally:
            self.network.model.cpu()

    @property
    def task(self) -> str:
        """Optimum's name of it."""
        return self.recipe.task.task_kind.task

    def part(self, subnetwork: Subnetwork) -> Part:
        """What is trained of a subnetwork."""
        if subnetwork not in self._parts:
            config = self.network.model.config
            self._parts[subnetwork] = Part.of(config, subnetwork, self.task, self.recipe.method)
        return self._parts[subnetwork]

    @cached_property
    def whole(self) -> Part:
        """All that is trained."""
        return self.part(self.network.full)

    def smaller(self, tier: Tier) -> list[Tier]:
        """Tiers of smaller subnetworks, the largest first."""
        found = [other for other in self.tiers.values() if other.macs < tier.macs]
        return sorted(found, key=lambda other: -other.macs)

    def begin(self, run: Path, scores: Importance) -> None:
        """Write `start/`, before adapters are attached, and attach them.

        Args:
            scores: by which the model has been sorted.
        """
        with replacing(run / _START) as partial:
            self.network.model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            scores.save(partial / _SCORES)
        self.scores = scores
        self.attach()

    def attach(self) -> None:
        """Put adapters beside the network's weights, or make a prompt, if that is the method."""
        method = self.recipe.method
        method.attach(self.network, self.recipe.seed)
        if method.prompt:
            tokens = first_prompt(self.network.model, method.prompt, self.recipe.seed)
            self.prompt = {SOFT: tokens}

    @property
    def order(self) -> dict[str, torch.Tensor]:
        """The scores that the model was sorted by, as clients are told."""
        named = {f"heads.{i}": t.float() for i, t in enumerate(self.scores.heads)}
        return named | {f"ffn.{i}": t.float() for i, t in enumerate(self.scores.ffn)}

    def save(self, run: Path) -> None:
        """Replace `state/` in a run directory."""
        tensors = self.tensors
        trained = {p.name: tensors[p.name].contiguous() for p in self.whole.trained}
        with replacing(run / _FOLDER) as partial:
            partial.mkdir()
            save_file(trained, partial / "trained.safetensors")
            self.optimizer.save(partial / "optimizer.safetensors")
            kept = _Kept(number=self.number, labels=self.labels, tiers=self.tiers)
            write_json(partial / "state.json", kept)

    @classmethod
    def find(cls, run: Path, recipe: FederatedRecipe) -> ServerState | None:
        """The state that a run directory holds, if any."""
        from hwnas.models import load_tokenizer

        folder, start = run / _FOLDER, run / _START
        if not folder.exists():
            return None
        kept = read_model(folder / "state.json", _Kept)
        optimizer = ServerOptimizer(recipe.aggregation)
        optimizer.load(folder / "optimizer.safetensors")
        state = cls(
            recipe=recipe,
            network=SuperNetwork(load(start)),
            tokenizer=load_tokenizer(start),
            optimizer=optimizer,
            labels=kept.labels,
            tiers=kept.tiers,
            number=kept.number,
            scores=Importance.load(start / _SCORES),
        )
        state.attach()
        tensors = state.tensors
        for name, tensor in read_tensors(folder / "trained.safetensors").items():
            tensors[name].copy_(tensor)
        return state


def order_of(state: ServerState) -> ArrayRecord | None:
    """What clients sort the original model by, where they have its frozen weights."""
    return weights(state.order) if state.recipe.method.freezes else None
