"""The recipe: everything that decides a run, validated before anything is computed.

Without a file, the defaults shrink `demo:minilm` on `demo:tweets` for one CPU thread. The recipe
that ran stands in the run directory, so a run can be repeated and resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hwnas.beside import BesideSpec
from hwnas.elastic.spec import AdapterSpec
from hwnas.errors import UserError
from hwnas.files import validate, write_text
from hwnas.importance.spec import ImportanceSpec
from hwnas.latency.target import Budget, Target
from hwnas.limits import LimitsSpec
from hwnas.search.spec import SearchSpec
from hwnas.space import SpaceSpec
from hwnas.tasks.spec import TaskSpec
from hwnas.tasks.unlabelled import TextSpec
from hwnas.training.compute import ComputePlan, Precision
from hwnas.training.sampling import Sampling

_MOST_WRITTEN = 256  # tokens of a language model's training texts
Strategy = Literal["search", "uniform", "layers"]


class Settings(BaseModel):
    """Base of recipes and their parts: fixed once read, no keys but the known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def save(self, path: Path) -> None:
        """Write the whole recipe as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    def difference(self, other: Settings, among: Sequence[str] = ("",)) -> str:
        """The first setting in which `other` differs, or nothing.

        Args:
            among: beginnings of the settings that are compared; by default all.
        """
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        for key in sorted(mine.keys() | theirs.keys()):
            if key.startswith(tuple(among)) and mine.get(key) != theirs.get(key):
                return f"{key}: {theirs.get(key)!r} there, {mine.get(key)!r} now"
        return ""


class TrainingSpec(Settings):
    """How weights are trained, in all stages and in the baseline's alike."""

    # which: those of adapters beside frozen ones, which are merged afterwards, or all. By default
    # adapters for language models, all for encoders
    weights: Literal["all", "adapters"] | None = None
    adapters: AdapterSpec = AdapterSpec()

    baseline_rate: float = Field(1e-4, gt=0, lt=1)
    supernet_rate: float = Field(1e-4, gt=0, lt=1)
    finalist_rate: float = Field(3e-4, gt=0, lt=1)
    distill_weight: float = Field(0.7, ge=0, le=1)
    temperature: float = Field(2.0, gt=0)
    states_weight: float = Field(1.0, ge=0)  # of the teacher's hidden states in the students' loss
    relations_weight: float = Field(0.0, ge=0)  # of how its last block relates tokens, likewise
    sampling: Sampling = "structured"  # of the super-network's subnetworks
    accumulate: int = Field(1, ge=1)  # parts that a batch is computed in, to save memory
    # of the computation; bf16 where the GPU or the processor has units for it, fp16 on a GPU, and
    # fp32 elsewhere
    precision: Precision = "fp32"
    checkpointing: bool = False  # blocks' activations are computed again, to save memory
    # the baseline's: the model's own, or none; by default only where rows are seen twice
    dropout: bool | None = None
    # that of those who learn from the baseline; a sixth of a step's time, and no gain was seen
    students_dropout: bool = False
    freeze_embeddings: bool = True  # of the words; quicker, and on the demo no worse


class VocabularySpec(Settings):
    """Whether the chosen models keep only some of the tokens, see `vocabulary`."""

    trim: bool = False
    least: int = Field(1, ge=1)  # how often a token must occur in training texts to be kept
    # how many of the commonest tokens are kept though they do not: by default half of a language
    # model's, which understands words in pieces worse, and none of an encoder's
    common: int | None = Field(None, ge=0)


class MeasureSpec(Settings):
    """How latency is measured and what counts as meeting a budget."""

    validate_table: int = Field(8, ge=0)  # unseen subnetworks that the table is checked on
    # of measuring a table, at most; by default as long as there is something to be gained
    table_minutes: float | None = Field(None, ge=0)
    pairs: int = Field(30, ge=5)  # paired samples of a verification
    # measurements of a structure or file at most, until their mean is sure to a hundredth
    repeats: int = Field(6, ge=1)
    tolerance: float = Field(0.02, ge=0, lt=1)  # of the budget, for noise
    margin: float = Field(0.02, ge=0, lt=1)  # of the budget, that the search stays below it
    # that a structure meets the budget before it is timed; by default as likely as not
    confidence: float | None = Field(None, ge=0.5, lt=1)
    rounds: int = Field(3, ge=1)  # searches, each correcting the table by what was measured
    search_again: bool = True  # once, where the final file misses its budget; see `second_search`
    parity_rows: int = Field(100, ge=1)  # real inputs that the exported files are compared on


class Recipe(Settings):
    """A whole run."""

    model: str = "demo:minilm"
    task: TaskSpec = TaskSpec(data="demo:tweets")
    target: str = "openvino:cpu:threads=1,batch=1,seq=64"
    budgets: tuple[str, ...] = Field(("50%", "33%"), min_length=1)
    max_size_mb: float | None = Field(None, gt=0)  # of the folder that is served, 10^6 bytes
    limits: LimitsSpec = LimitsSpec()
    strategy: Strategy = "search"
    seed: int = Field(0, ge=0)
    compute: ComputePlan = ComputePlan()
    training: TrainingSpec = TrainingSpec()
    importance: ImportanceSpec = ImportanceSpec()
    space: SpaceSpec = SpaceSpec()
    search: SearchSpec = SearchSpec()
    vocabulary: VocabularySpec = VocabularySpec()
    # text on which the super-network first learns for `compute.general_steps` to have the states
    # of the baseline, before the task
    unlabelled: TextSpec | None = None
    measure: MeasureSpec = MeasureSpec()
    # of language models: further data that they are scored on, by a name for each
    beside: dict[str, BesideSpec] = {}
    # other ways to serve that compete for the budgets: openvino:int8-static, …, or auto for all
    deployments: tuple[str, ...] = ()

    @field_validator("target")
    @classmethod
    def _target(cls, value: str) -> str:
        try:
            return str(Target.parse(value))
        except UserError as error:
            raise ValueError(str(error)) from None

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        try:
            folders = [Budget.parse(value).folder for value in values]
        except UserError as error:
            raise ValueError(str(error)) from None
        if len(set(folders)) < len(folders):
            raise ValueError(f"budgets {', '.join(values)}: one is given twice; give each once")
        return values

    @model_validator(mode="after")
    def _searched(self) -> Recipe:
        if self.deployments and self.strategy != "search":
            raise ValueError(
                f"deployments are searched together with structures; strategy {self.strategy} "
                "searches nothing, leave them out"
            )
        return self

    @model_validator(mode="after")
    def _for_the_phase(self) -> Recipe:
        target = Target.parse(self.target)
        if (target.phase == "encode") == self.task.is_written:
            has = "prefill or decode" if self.task.is_written else "encode"
            raise ValueError(
                f"target: phase={target.phase}, a task of kind {self.task.kind_name} has "
                f"phase={has}"
            )
        for text in self.budgets:
            Budget.parse(text).check_phase(target)
        if self.limits != LimitsSpec() and target.phase != "decode":
            raise ValueError(
                "limits: the first token's and the cache's are for targets with phase=decode"
            )
        if self.beside and not self.task.is_written:
            raise ValueError("beside: is for language models; leave it out")
        if self.task.is_written and self.space.hidden:
            raise ValueError("space.hidden: the residual width of decoders is not elastic")
        if self.task.is_written and (self.unlabelled or self.importance.kind == "movement"):
            what = "unlabelled" if self.unlabelled else "importance.kind: movement"
            raise ValueError(f"{what}: is for encoders; leave it out")
        return self

    @property
    def adapters(self) -> AdapterSpec | None:
        """What is trained of a model beside its frozen weights; None: all weights."""
        usual = "adapters" if self.task.is_written else "all"
        wanted = self.training.weights or usual
        return self.training.adapters if wanted == "adapters" else None

    @model_validator(mode="after")
    def _two_stages(self) -> Recipe:
        if (self.unlabelled is None) != (self.compute.general_steps == 0):
            raise ValueError(
                "compute.general_steps and unlabelled belong together; give both or neither"
            )
        training = self.training
        if self.unlabelled and training.states_weight == training.relations_weight == 0:
            raise ValueError(
                "unlabelled: text without labels teaches by training.states_weight or "
                "training.relations_weight, and both are 0"
            )
        return self

    @property
    def task_at_target(self) -> TaskSpec:
        """The task, with texts cut where the target's sequence ends unless the recipe says.

        Those of a language model are as long as they are, up to 256 tokens.
        """
        usual = _MOST_WRITTEN if self.task.is_written else Target.parse(self.target).seq
        length = self.task.max_length or usual
        return self.task.model_copy(update={"max_length": length})


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {at: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{at}.{key}" if at else str(key))
    return flat


def shipped_recipes(package: str = "hwnas.recipes") -> dict[str, Traversable]:
    """The recipes that hwnas ships, by name; those of federated runs are a package of their own."""
    folder = resources.files(package)
    found = {entry.name: entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): found[name] for name in sorted(found)}


def load_recipe(path: Path) -> Recipe:
    """Read and validate a YAML recipe: a file, or the shipped one of this name.

    Raises:
        UserError: the file is missing, is not YAML, or a key or value is wrong; names it.
    """
    return validate(Recipe, read_recipe(path, shipped_recipes()), where=str(path))


def read_recipe(path: Path, shipped: Mapping[str, Traversable]) -> dict[str, Any]:
    """The keys and values in a YAML file, or in the shipped recipe of this name.

    Raises:
        UserError: the file is missing or is not YAML.
    """
    try:
        if not path.exists() and str(path) in shipped:
            text = shipped[str(path)].read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except OSError as error:
        names = f"; shipped are {', '.join(shipped)}" if len(path.parts) == 1 else ""
        raise UserError(f"{path}: cannot be read ({error.strerror}){names}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{line}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected keys and values such as 'model: demo:minilm'")
    return value


def override(recipe: Recipe, where: str, changes: dict[str, Any]) -> Recipe:
    """`recipe` with the given top-level settings replaced, validated again."""
    if not changes:
        return recipe
    return validate(Recipe, recipe.model_dump(mode="json") | changes, where=where)
