"""The recipe of a federated run: model, task, clients, their devices' tiers, rounds, aggregation.

It is a file of its own kind beside `hwnas.recipe`: what a client does is decided here, before any
client is asked.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hwnas.elastic.spec import AdapterSpec
from hwnas.errors import UserError
from hwnas.files import validate
from hwnas.latency.target import Budget, Target
from hwnas.recipe import Settings, read_recipe, shipped_recipes
from hwnas.tasks.kinds import WRITTEN
from hwnas.tasks.spec import TaskSpec
from hwnas.training.compute import Precision

if TYPE_CHECKING:
    from hwnas.federated.methods import Method

SHIPPED = "hwnas.federated.recipes"
_MOST_WRITTEN = 128  # tokens of a language model's training texts
# precisions of files that serve: what static int8 is calibrated on would have to leave the clients
SERVED = ("fp32", "int8-dynamic", "int8-weights", "int4-weights")
_LABELLED = ("classification", "regression", "spans", "tokens")


class Dirichlet(Settings):
    """Labels are spread unevenly: each client's shares of them are drawn (Hsu et al. 2019)."""

    kind: Literal["dirichlet"]
    alpha: float = Field(0.3, gt=0)  # the smaller, the more uneven
    least: int = Field(16, ge=2)  # rows that every client has


class Even(Settings):
    """Rows are dealt out at random."""

    kind: Literal["even"]


class Groups(Settings):
    """Rows of one author, or whatever the column says, are one client's."""

    kind: Literal["groups"]
    column: str


Split = Annotated[Dirichlet | Even | Groups, Field(discriminator="kind")]


class ClientsSpec(Settings):
    """How the task's training rows become the clients' in a simulation, and who takes part."""

    count: int = Field(12, ge=1)
    split: Split = Dirichlet(kind="dirichlet", alpha=0.3)
    held_out: float = Field(0.2, gt=0, lt=1)  # of a client's rows, that it is evaluated on
    rows: int | None = Field(None, ge=4)  # of a client, at most
    share: float = Field(1.0, gt=0, le=1)  # of the clients that a round asks
    least: int = Field(1, ge=1)  # answers without which a round changes nothing
    deadline_s: float = Field(600.0, gt=0)  # of a round; who is later is left out of it
    at_once: int = Field(8, ge=1)  # messages under way, which bounds the server's memory


class TierSpec(Settings):
    """Devices of one kind, and the latency that models on them may have."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    budget: str | None = None  # `8ms`, or `50%` of the whole model there; without it, all of it
    target: str = "openvino:cpu:threads=1,batch=1,seq=64"
    table: str | None = None  # latency table: a file, or a shipped one's name; else measured now
    # in simulations, of the clients; of real ones, each says its tier
    share: float = Field(1.0, gt=0)
    memory_mb: float | None = Field(None, gt=0)  # for training, that a client has
    steps: int | None = Field(None, ge=1)  # of its clients in a round, instead of `local.steps`

    @field_validator("budget")
    @classmethod
    def _budget(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                Budget.parse(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("target")
    @classmethod
    def _target(cls, value: str) -> str:
        try:
            target = Target.parse(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        if target.precision not in SERVED:
            raise ValueError(
                f"{value}: federated models are served in {', '.join(SERVED)}, which need no rows "
                "of the clients"
            )
        return str(target)


class LocalSpec(Settings):
    """What a client does in a round."""

    steps: int = Field(10, ge=1)
    batch: int = Field(16, ge=1)
    rate: float = Field(1e-4, gt=0, lt=1)
    decay: bool = True  # the rate falls linearly over the rounds, to a tenth
    nested: int = Field(1, ge=0)  # smaller tiers' subnetworks, trained beside the client's own
    grow: float = Field(0.2, ge=0, lt=1)  # of the rounds, in which smaller tiers' are learned first
    # of the rounds after those, in which a client trains the largest subnetwork that its memory
    # holds, for as much computing as its own would take; in the others its own. By default all of
    # them where smaller ones are nested, for they learn only so, and else none
    reach: float | None = Field(None, ge=0, le=1)
    distill_weight: float = Field(0.7, ge=0, le=1)  # of what the largest says, for the nested ones
    temperature: float = Field(2.0, gt=0)
    proximal: float = Field(0.0, ge=0)  # weight of the distance from the server's weights (FedProx)
    # of what the received weights say of the rows at hand, beside the labels
    keep: float = Field(0.0, ge=0)
    # of a client's own shares of classes, by which its loss corrects its logits
    calibrate: float = Field(1.0, ge=0)
    freeze_embeddings: bool = True  # of the words: they are never sent then
    threads: int = Field(1, ge=1)
    # of the computation; bf16 where a client's processor or GPU has units for it, else fp32
    precision: Precision = "fp32"


class AggregationSpec(Settings):
    """How the server makes one super-network of the clients' parts."""

    rule: Literal["mean", "median", "trimmed_mean", "krum"] = "mean"
    weigh: Literal["examples", "clients"] = "examples"
    # to which power the share of a round's weight that trained a coordinate shortens its step; 0:
    # whoever trained it decides it alone
    few: float = Field(1.0, ge=0, le=1)
    trim: float = Field(0.1, gt=0, lt=0.5)  # of the values at each end, for `trimmed_mean`
    malicious: int = Field(1, ge=0)  # clients that `krum` expects to poison
    optimizer: Literal["average", "momentum", "adam", "yogi"] = "average"
    rate: float = Field(1.0, gt=0)  # of that optimizer
    momentum: float = Field(0.9, ge=0, lt=1)
    largest_norm: float | None = Field(None, gt=0)  # of an update; a larger one is scaled down

    @property
    def for_krum(self) -> int:
        """Answers without which `krum` cannot tell who poisons (Blanchard et al. 2017)."""
        return 2 * self.malicious + 3

    def enough(self, least: int) -> int:
        """Answers without which a round changes nothing, where the recipe asks for `least`."""
        return max(least, self.for_krum) if self.rule == "krum" else least


class PrivacySpec(Settings):
    """Noise on clients' updates, and what it promises; see `privacy`.

    Attributes:
        kind: who adds it: the server to the sum of a round (`central`: it must be trusted), or
            each client to its own update before it is sent (`local`).
    """

    kind: Literal["central", "local"]
    clip: float = Field(gt=0)  # norm of an update, at most; of narrower parts, in proportion
    noise: float = Field(gt=0)  # standard deviation, of each number, in units of `clip`
    delta: float = Field(1e-5, gt=0, lt=1)


class SecureSpec(Settings):
    """The server sees sums of updates only; see `secure`."""

    least: int = Field(3, ge=3)  # clients of a sum
    threshold: float = Field(0.6, gt=0.5, lt=1)  # of neighbours, that are needed to undo masks
    # of an update's numbers: larger ones are cut, and all are rounded to 2**22 steps within it
    range: float = Field(0.1, gt=0)


class CandidatesSpec(Settings):
    """Other structures for each tier, in the end, that its clients judge; see `search`."""

    candidates: int = Field(8, ge=1)  # of each tier, beside the one that it has trained


class PersonalSpec(Settings):
    """Each client's own model in the end, which stays with it; see `personal`.

    Attributes:
        kind: what it learns: what was trained in federation, or the task's head alone, or adapters,
            which are merged.
        validation: of a client's training rows, that decide whether its own model is used.
    """

    kind: Literal["trained", "head", "adapters"] = "trained"
    steps: int = Field(20, ge=1)
    rate: float = Field(5e-5, gt=0, lt=1)
    validation: float = Field(0.2, gt=0, lt=1)


class ContinualSpec(Settings):
    """What comes and goes while a network learns; see `continual`."""

    phases: int = Field(ge=2)
    by: Literal["classes", "clients", "column"] = "classes"
    column: str | None = Field(None, validate_default=True)  # of `column`: a topic's name

    @field_validator("column")
    @classmethod
    def _column(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is not None) != (info.data.get("by") == "column"):
            raise ValueError("belongs to by: column; give both or neither")
        return value


class EvaluationSpec(Settings):
    """How often, and on what, models are judged while they are trained."""

    every: int = Field(5, ge=1)  # rounds
    server: bool = True  # whether the server has the task's test rows
    rows: int = Field(1000, ge=1)  # of them
    clients: bool = True  # each client on its held-out rows, with its tier's model


class FederatedRecipe(Settings):
    """A whole federated run."""

    model: str = "demo:minilm"
    task: TaskSpec = TaskSpec(data="demo:tweets")
    labels: tuple[str, ...] | None = None  # by default those that clients report
    tiers: tuple[TierSpec, ...] = Field(
        (
            TierSpec(name="large"),
            TierSpec(name="medium", budget="60%"),
            TierSpec(name="small", budget="35%"),
        ),
        min_length=1,
    )
    rounds: int = Field(20, ge=1)
    clients: ClientsSpec = ClientsSpec()
    # what is trained: all weights, or adapters and the task's head, or a soft prompt and the layer
    # that yields the logits
    train: Literal["all", "adapters", "prompt"] = "all"
    prompt: int = Field(8, ge=1)  # soft tokens
    adapters: AdapterSpec = AdapterSpec(rank=8, alpha=16, dropout=0.0)
    local: LocalSpec = LocalSpec()
    aggregation: AggregationSpec = AggregationSpec()
    privacy: PrivacySpec | None = None
    secure: SecureSpec | None = None
    continual: ContinualSpec | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    search: CandidatesSpec | None = None
    personal: PersonalSpec | None = None
    table_minutes: float | None = Field(None, gt=0)  # of measuring a latency table, at most
    # every tier's blocks at one share of their widths, or the widths of most importance in sum
    structure: Literal["uniform", "importance"] = "uniform"
    # which heads and neurons are the first ones: those whose weights are largest, or those that
    # matter most to the clients' rows, by scores that they sum (first order, EFTNAS section 3.1)
    importance: Literal["magnitude", "clients"] = "clients"
    importance_rows: int = Field(32, ge=1)  # of each client that is asked
    seed: int = Field(0, ge=0)

    @field_validator("tiers")
    @classmethod
    def _tiers(cls, value: tuple[TierSpec, ...]) -> tuple[TierSpec, ...]:
        names = [tier.name for tier in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"tier {twice!r} is given twice; give each a name of its own")
        return value

    @field_validator("task")
    @classmethod
    def _task(cls, value: TaskSpec) -> TaskSpec:
        if value.kind_name not in _LABELLED and not value.is_written:
            raise ValueError(
                f"kind: {value.kind_name} cannot be trained in federation; "
                f"can be: {', '.join(_LABELLED + WRITTEN)}"
            )
        return value

    @model_validator(mode="after")
    def _for_the_phase(self) -> FederatedRecipe:
        for tier in self.tiers:
            target = Target.parse(tier.target)
            if (target.phase == "encode") == self.task.is_written:
                has = "prefill or decode" if self.task.is_written else "encode"
                raise ValueError(
                    f"tiers: {tier.name}: phase={target.phase}, a task of kind "
                    f"{self.task.kind_name} has phase={has}"
                )
            if tier.budget is not None:
                Budget.parse(tier.budget).check_phase(target)
        if self.task.is_written and self.train != "adapters":
            raise ValueError(f"train: {self.train} is for encoders; language models train adapters")
        if self.train == "prompt":
            if self.task.kind_name != "classification":
                raise ValueError("train: prompt is for tasks of kind classification")
            for name in ("nested", "reach"):
                if getattr(self.local, name):
                    raise ValueError(
                        f"local.{name}: a prompt is trained by each client's own subnetwork; "
                        "set it to 0"
                    )
        return self

    @model_validator(mode="after")
    def _enough(self) -> FederatedRecipe:
        if self.clients.least > self.clients.count:
            raise ValueError(
                f"clients.least: {self.clients.least} answers, there are {self.clients.count} "
                "clients; ask for fewer"
            )
        asked = self.asked(self.clients.count)
        if self.clients.least > asked:
            raise ValueError(
                f"clients.least: {self.clients.least} answers, a round asks {asked} clients; "
                "ask for fewer, or raise clients.share"
            )
        krum = self.aggregation
        if krum.rule == "krum" and asked < krum.for_krum:
            raise ValueError(
                f"aggregation.malicious: krum needs {krum.for_krum} clients a round to "
                f"stand {krum.malicious}, {asked} are asked"
            )
        return self

    @model_validator(mode="after")
    def _phases(self) -> FederatedRecipe:
        spec = self.continual
        if spec is not None and spec.phases > self.rounds:
            raise ValueError(
                f"continual.phases: {spec.phases} phases in {self.rounds} rounds; give more rounds"
            )
        if spec is not None and spec.by == "classes" and self.task.kind_name != "classification":
            raise ValueError("continual.by: classes is for tasks of kind classification")
        if spec is not None and spec.by == "clients" and spec.phases > self.clients.count:
            raise ValueError(
                f"continual.phases: {spec.phases} phases of {self.clients.count} clients; give "
                "more clients"
            )
        return self

    @model_validator(mode="after")
    def _nothing_leaks(self) -> FederatedRecipe:
        if self.privacy is None:
            return self
        for setting, value, needed in (
            ("importance", self.importance, "magnitude"),
            ("aggregation.rule", self.aggregation.rule, "mean"),
            ("aggregation.weigh", self.aggregation.weigh, "clients"),
            ("evaluation.clients", self.evaluation.clients, False),
        ):
            if value != needed:
                said = str(needed).lower()
                raise ValueError(
                    f"{setting}: {str(value).lower()} would tell of clients' rows, or weigh them, "
                    f"outside what privacy counts; with privacy it must be {said}"
                )
        if self.labels is None and self.task.kind_name in ("classification", "tokens"):
            raise ValueError(
                "labels: with privacy clients do not report theirs; give the names here"
            )
        return self

    @model_validator(mode="after")
    def _own_models(self) -> FederatedRecipe:
        if self.search is not None and self.train == "prompt":
            raise ValueError("search: a prompt was learned for its tier's structure; leave it out")
        if self.search is not None and not self.evaluation.clients:
            raise ValueError(
                "search: clients judge the candidates, which evaluation.clients: false forbids"
            )
        if self.personal is not None and self.personal.kind != "trained" and self.train != "all":
            raise ValueError(
                f"personal.kind: {self.personal.kind} is for train: all; with train: {self.train} "
                "clients go on training that; choose trained"
            )
        return self

    @model_validator(mode="after")
    def _sums_only(self) -> FederatedRecipe:
        if self.secure is None:
            return self
        if self.aggregation.rule != "mean":
            raise ValueError(
                f"aggregation.rule: {self.aggregation.rule} looks at single updates, which secure "
                "hides; choose mean"
            )
        if self.aggregation.largest_norm is not None:
            raise ValueError(
                "aggregation.largest_norm: is of single updates, which secure hides; leave it out"
            )
        asked = self.asked(self.clients.count)
        if asked < self.secure.least:
            raise ValueError(
                f"secure.least: {self.secure.least} clients of a tier in a sum, a round asks "
                f"{asked} in all; ask more"
            )
        return self

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < max(2, len(value)):
            raise ValueError("give two or more different names")
        return value

    def asked(self, clients: int) -> int:
        """How many of so many clients take part in a round."""
        return max(1, math.ceil(self.clients.share * clients - 1e-9))

    @property
    def method(self) -> Method:
        """What clients train."""
        from hwnas.federated.methods import Method

        adapters = self.adapters if self.train == "adapters" else None
        prompt = self.prompt if self.train == "prompt" else 0
        return Method(self.local.freeze_embeddings, adapters, prompt)

    def steps_at(self, tier: str) -> int:
        """Local steps of a tier's clients in a round."""
        given = next((one.steps for one in self.tiers if one.name == tier), None)
        return given or self.local.steps

    @property
    def reach(self) -> float:
        """Of the later rounds, in which clients train the largest subnetwork that they can hold."""
        given = self.local.reach
        return given if given is not None else float(self.local.nested > 0)

    def seed_of(self, *what: object) -> int:
        """A seed of its own for something, such as a client's work in a round."""
        return zlib.crc32("/".join(map(str, (self.seed, *what))).encode()) % 2**31

    def rate_at(self, number: int) -> float:
        """The clients' learning rate in round `number`, from 1."""
        if not self.local.decay:
            return self.local.rate
        return self.local.rate * (1 - 0.9 * (number - 1) / self.rounds)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a client's training batch, padding included."""
        return self.length * self.local.batch

    @property
    def length(self) -> int:
        """Tokens at which texts are cut: by default where the longest target's sequences end."""
        longest = max(Target.parse(tier.target).seq for tier in self.tiers)
        return self.task.max_length or (_MOST_WRITTEN if self.task.is_written else longest)


def load_federated(path: Path) -> FederatedRecipe:
    """Read and validate a federated recipe: a file, or the shipped one of this name.

    Raises:
        UserError: the file is missing, is not YAML, or a key or value is wrong; names it.
    """
    value = read_recipe(path, shipped_recipes(SHIPPED))
    return validate(FederatedRecipe, value, where=str(path))


def with_changes(
    recipe: FederatedRecipe, *, clients: int | None = None, seed: int | None = None
) -> FederatedRecipe:
    """The recipe with options of the command line in place of its own, validated again.

    Raises:
        UserError: they do not go with the rest.
    """
    value = recipe.model_dump(mode="json")
    if clients is not None:
        value["clients"]["count"] = clients
    if seed is not None:
        value["seed"] = seed
    return validate(FederatedRecipe, value, where="options")
