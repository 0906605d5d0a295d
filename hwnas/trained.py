"""A run's trained super-network, with what a search of it needs; the run's folder is only read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwnas.elastic.supernet import SuperNetwork
from hwnas.errors import UserError
from hwnas.files import read_model, read_tensors
from hwnas.importance.scores import Importance
from hwnas.inputs import Inputs
from hwnas.judge import Judge
from hwnas.latency.table import LatencyTable
from hwnas.models import load, load_tokenizer, on_gpu
from hwnas.recipe import Recipe, load_recipe
from hwnas.rundir import RunDirectory
from hwnas.space import SearchSpace
from hwnas.stages import fitted_to_minutes
from hwnas.tasks.loading import load_task

_NEEDED = (
    "table.json",
    "baseline/model",
    "importance.safetensors",
    "space.json",
    "teacher.safetensors",
    "supernet",
)


@dataclass
class TrainedRun:
    """What `hwnas supernet` left, or `hwnas run` on its way."""

    inputs: Inputs
    table: LatencyTable  # of the run's own target
    space: SearchSpace
    scores: Importance
    network: SuperNetwork
    judge: Judge

    @classmethod
    def open(cls, path: Path, recipe: Recipe | None = None) -> TrainedRun:
        """Read the run in a folder.

        Args:
            recipe: what the search obeys; by default the run's own. Its task must be the run's.

        Raises:
            UserError: there is none, its super-network is not trained yet, or a file is damaged.
        """
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path}: no run here (it has no recipe.yaml)")
        for name in _NEEDED:
            if not (path / name).exists():
                raise UserError(
                    f"{path}: has no {name}; train a super-network there first: "
                    f"hwnas supernet {path / 'recipe.yaml'} --out {path} --resume"
                )
        recipe = recipe or load_recipe(path / "recipe.yaml")
        try:
            task = load_task(recipe.task_at_target)
        except UserError as error:
            raise UserError(f"{path / 'recipe.yaml'}: task: {error}") from None
        model = on_gpu(load(path / "supernet"))
        inputs = Inputs(
            recipe=recipe,
            directory=RunDirectory(path, read_only=True),
            plan=recipe.compute,
            task=task,
            tokenizer=load_tokenizer(path / "baseline" / "model"),
            config=model.config,
        )
        if recipe.compute.minutes is not None:
            inputs.plan = fitted_to_minutes(inputs, recipe.compute.minutes)
        space = read_model(path / "space.json", SearchSpace)
        space.check(inputs.shape, where=str(path / "space.json"))
        answers = read_tensors(path / "teacher.safetensors")["search"].numpy()
        return cls(
            inputs=inputs,
            table=LatencyTable.load(path / "table.json"),
            space=space,
            scores=Importance.load(path / "importance.safetensors"),
            network=SuperNetwork(model),
            judge=Judge(inputs, answers),
        )
