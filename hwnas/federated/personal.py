"""A client's own model: the shared one after some more steps on the client's own rows.

Nothing of it is sent. Part of the client's training rows decide whether it is better for this
client than the shared one, which is kept otherwise; both are then judged on rows that neither has
seen. The client's own shares of classes, of which a shared model must not know, help here.

Sources: last local steps: Yu et al. 2020, "Salvaging federated learning by local adaptation"; a
local head on shared features: Arivazhagan et al. 2019 (FedPer).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.anatomy.modules import task_head
from hwnas.federated.local import Trainee, train_locally
from hwnas.files import replacing
from hwnas.models import on_gpu
from hwnas.tasks.predict import predict
from hwnas.training.optimization import Optimization
from hwnas.training.trainer import train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hwnas.federated.recipe import FederatedRecipe
    from hwnas.tasks.kinds import Kind

LEAST = 4  # rows that can decide; of fewer the shared model is kept


@dataclass(frozen=True)
class Own:
    """What came of it.

    Attributes:
        kept: whether the own model is used; else the shared one.
    """

    trainee: Trainee
    kept: bool

    @property
    def model(self) -> PreTrainedModel:
        """The one that is used."""
        return self.trainee.model

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write it as a model's folder, adapters merged; of a prompt, as peft writes it."""
        if self.trainee.adapters is not None:
            self.trainee.adapters.merge()
        with replacing(folder) as partial:
            self.model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)


def personalise(
    shared: Callable[[], Trainee],
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    recipe: FederatedRecipe,
    seed: int,
) -> Own:
    """Train a client's own model, and decide.

    Args:
        shared: makes the shared model.
        rows: the client's training rows, encoded.
    """
    spec, kind = recipe.personal, recipe.task.task_kind
    assert spec is not None
    deciding = round(spec.validation * len(rows))
    own = shared()
    if deciding < LEAST or deciding >= len(rows):
        return Own(own, kept=False)
    learned = rows.select(range(len(rows) - deciding))
    held = rows.select(range(len(rows) - deciding, len(rows)))
    before = _loss(own.model, held, kind)
    _train(own, tokenizer, learned, recipe, seed)
    if _loss(own.model, held, kind) < before:
        return Own(own, kept=True)
    return Own(shared(), kept=False)


def _loss(model: PreTrainedModel, rows: Dataset, kind: Kind) -> float:
    return kind.loss(predict(on_gpu(model), rows), rows)


def _train(
    own: Trainee,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    recipe: FederatedRecipe,
    seed: int,
) -> None:
    spec, kind = recipe.personal, recipe.task.task_kind
    assert spec is not None
    if spec.kind == "trained":
        alone = {"nested": 0, "calibrate": 0.0, "keep": 0.0}
        train_locally(
            own,
            tokenizer,
            rows,
            kind,
            recipe.local.model_copy(update=alone),
            smaller=[],
            steps=spec.steps,
            rate=spec.rate,
            seed=seed,
        )
        return
    optimization = Optimization(
        steps=spec.steps,
        learning_rate=spec.rate,
        batch=recipe.local.batch,
        dropout=False,
        freeze_embeddings=True,
        adapters=recipe.adapters if spec.kind == "adapters" else None,
        checkpoint_every=0,
        seed=seed,
    )
    if spec.kind == "head":
        own.model.requires_grad_(False)
        for module in task_head(own.model):
            module.requires_grad_(True)
    with tempfile.TemporaryDirectory() as work:
        train(own.model, tokenizer, rows, optimization, Path(work), kind=kind, title="own model")
