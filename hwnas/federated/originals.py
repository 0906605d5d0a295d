"""The original model as a client and the server have it: what is not sent, for both have it.

A client keeps its config, tokenizer and word embeddings; where adapters or prompts are trained, all
its frozen weights, sorted as the server's are. What is made of a recipe is kept by its JSON text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hwnas.federated.recipe import FederatedRecipe
from hwnas.subnetwork import Subnetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.elastic.supernet import SuperNetwork
    from hwnas.federated.parts import Part, Tensors


@lru_cache(maxsize=4)
def recipe_of(text: str) -> FederatedRecipe:
    """The recipe in a JSON text."""
    return FederatedRecipe.model_validate_json(text)


def load_original(
    recipe: FederatedRecipe, labels: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The original model with a new head, the same for everybody, and its tokenizer."""
    from hwnas.models import load_model

    return load_model(
        recipe.model,
        task=recipe.task.task_kind.task,
        labels=list(labels) or None,
        regression=recipe.task.kind_name == "regression",
        seed=recipe.seed,
    )


@dataclass(frozen=True)
class Original:
    """What a client keeps of the original model."""

    config: Any
    embeddings: Tensors  # those of the words, by the parameter's name
    tokenizer: PreTrainedTokenizerBase


@lru_cache(maxsize=1)
def original_of(text: str, labels: tuple[str, ...]) -> Original:
    """The original model's config for these labels, its word embeddings, its tokenizer."""
    from hwnas.anatomy.dense import take_apart
    from hwnas.federated.methods import embeddings_of

    model, tokenizer = load_original(recipe_of(text), labels)
    names = embeddings_of(model)
    frozen = {name: t.clone() for name, t in model.state_dict().items() if name in names}
    take_apart(model)
    return Original(model.config, frozen, tokenizer)


@lru_cache(maxsize=16)
def part_of(text: str, labels: tuple[str, ...], subnetwork: Subnetwork) -> Part:
    """What is trained of a subnetwork of the whole model."""
    from hwnas.federated.parts import Part

    recipe = recipe_of(text)
    config = original_of(text, labels).config
    return Part.of(config, subnetwork, recipe.task.task_kind.task, recipe.method)


class Scores:
    """What heads and neurons are sorted by; equal where all numbers are."""

    def __init__(self, scores: Tensors) -> None:
        self.scores = scores
        self._key = tuple((n, t.numpy().tobytes()) for n, t in sorted(scores.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scores) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=1)
def sorted_of(text: str, labels: tuple[str, ...], scores: Scores) -> SuperNetwork:
    """The original model with its heads and neurons sorted as the server's are."""
    from hwnas.elastic.supernet import SuperNetwork
    from hwnas.importance.reordering import reorder
    from hwnas.importance.scores import Importance

    model, _ = load_original(recipe_of(text), labels)
    network = SuperNetwork(model)
    found = scores.scores
    depth = len(network.blocks)
    heads = tuple(found[f"heads.{i}"] for i in range(depth))
    reorder(model, Importance(heads, tuple(found[f"ffn.{i}"] for i in range(depth))))
    return network
