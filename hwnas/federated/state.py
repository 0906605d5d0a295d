"""What the server knows between two rounds, kept on disk whole, so that a killed run goes on.

`state/` holds the super-network as a model's folder, the server optimizer's moments, and the rest
as JSON; a round's end replaces it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from hwnas.elastic.supernet import SuperNetwork
from hwnas.federated.parts import Part
from hwnas.federated.recipe import FederatedRecipe
from hwnas.federated.server_optimizers import ServerOptimizer
from hwnas.federated.tiers import Tier
from hwnas.files import read_model, replacing, write_json
from hwnas.models import load

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_FOLDER = "state"


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

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole model's, the very ones; changing them changes the model."""
        return self.network.model.state_dict()

    def part(self, tier: Tier) -> Part:
        """What clients of a tier train."""
        return Part.of(
            self.network.model.config,
            tier.subnetwork,
            self.recipe.task.task_kind.task,
            freeze_embeddings=self.recipe.local.freeze_embeddings,
        )

    def smaller(self, tier: Tier) -> list[Tier]:
        """Tiers of smaller subnetworks, the largest first."""
        found = [other for other in self.tiers.values() if other.macs < tier.macs]
        return sorted(found, key=lambda other: -other.macs)

    def save(self, run: Path) -> None:
        """Replace `state/` in a run directory."""
        with replacing(run / _FOLDER) as partial:
            self.network.model.save_pretrained(partial / "model")
            self.tokenizer.save_pretrained(partial / "model")
            self.optimizer.save(partial / "optimizer.safetensors")
            kept = _Kept(number=self.number, labels=self.labels, tiers=self.tiers)
            write_json(partial / "state.json", kept)

    @classmethod
    def find(cls, run: Path, recipe: FederatedRecipe) -> ServerState | None:
        """The state that a run directory holds, if any."""
        from hwnas.models import load_tokenizer

        folder = run / _FOLDER
        if not folder.exists():
            return None
        kept = read_model(folder / "state.json", _Kept)
        optimizer = ServerOptimizer(recipe.aggregation)
        optimizer.load(folder / "optimizer.safetensors")
        return cls(
            recipe=recipe,
            network=SuperNetwork(load(folder / "model")),
            tokenizer=load_tokenizer(folder / "model"),
            optimizer=optimizer,
            labels=kept.labels,
            tiers=kept.tiers,
            number=kept.number,
        )
