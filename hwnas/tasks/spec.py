"""The recipe's description of a task, and what is known of public data sets by their names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hwnas.tasks.kinds import KINDS, WRITTEN, Kind, kind_named
from hwnas.tasks.prompts import check_template
from hwnas.tasks.rows import Columns

KindName = Literal[
    "classification",
    "regression",
    "spans",
    "tokens",
    "embedding",
    "choice",
    "instruction",
    "language",
]
assert KindName.__args__ == KINDS + WRITTEN  # type: ignore[attr-defined]

_TEXTS = {
    "spans": (2, 2),
    "tokens": (1, 1),
    "embedding": (1, 1),
    "language": (1, 1),
    "choice": (1, 9),
    "instruction": (1, 9),
}  # columns of texts, at least, most


class Known(NamedTuple):
    """A public data set whose columns need not be given."""

    kind: KindName
    texts: tuple[str, ...]
    label: str
    metric: str
    # its splits for train and test: published results are on the labelled held-out part, so that
    # is never looked at before the summary, and validation is cut from train
    splits: tuple[str, str] = ("train", "validation")


def _glue(
    texts: str, metric: str, kind: KindName = "classification", test: str = "validation"
) -> Known:
    return Known(kind, tuple(texts.split()), "label", metric, ("train", test))


# the nine tasks with the official metrics; where there are two, their mean, as GLUE takes it
_GLUE = {
    "cola": _glue("sentence", "matthews"),
    "sst2": _glue("sentence", "accuracy"),
    "mrpc": _glue("sentence1 sentence2", "accuracy_f1"),
    "stsb": _glue("sentence1 sentence2", "pearson_spearman", "regression"),
    "qqp": _glue("question1 question2", "accuracy_f1"),
    "mnli": _glue("premise hypothesis", "accuracy", test="validation_matched"),
    "qnli": _glue("question sentence", "accuracy"),
    "rte": _glue("sentence1 sentence2", "accuracy"),
    "wnli": _glue("sentence1 sentence2", "accuracy"),
}
_SQUAD = Known("spans", ("question", "context"), "answers", "f1")
_CONLL = Known("tokens", ("tokens",), "ner_tags", "f1", ("train", "test"))
_ARC = Known("choice", ("question", "choices"), "answerKey", "accuracy", ("train", "test"))
_OPENBOOKQA = _ARC._replace(texts=("question_stem", "choices"))
_GSM8K = Known("instruction", ("question",), "answer", "token_accuracy", ("train", "test"))
_KNOWN = {
    "squad": _SQUAD,
    "squad_v2": _SQUAD,
    "conll2003": _CONLL,
    "ai2_arc": _ARC,
    "openbookqa": _OPENBOOKQA,
    "gsm8k": _GSM8K,
}


def known(data: str, subset: str | None) -> Known | None:
    """What is known of a hub data set (`nyu-mll/glue` or `glue`), if anything."""
    name = data.rpartition("/")[2]
    if name == "glue":
        return _GLUE.get(subset or "")
    return _KNOWN.get(name)


def _kind_name(spec: Mapping[str, Any]) -> KindName:
    """The kind that a spec states, or that is known of its data."""
    stated: KindName | None = spec.get("kind")
    found = known(str(spec.get("data")), spec.get("subset"))
    return stated or (found.kind if found else "classification")


def _text(value: Any) -> Any:
    """A number or a truth as it is written in rows."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class TaskSpec(BaseModel):
    """A task: where its rows are, of which kind they are, and what counts.

    What is not given is what is known of the data set, or else usual for the kind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field("demo:tweets", min_length=1)  # demo:tweets, a CSV/TSV/JSONL file, a hub name
    validation: str | None = None  # a file; without it, a tenth of the data
    test: str | None = None  # likewise
    # which configuration of a hub dataset
    subset: str | None = Field(None, validate_default=True)
    kind: KindName | None = None
    text: str | list[str] | None = None  # one column, or the two of a pair
    label: str | None = None
    metric: str | None = None
    # tokens; longer texts are cut. By default the target's seq, or 128 where there is no target
    max_length: int | None = Field(None, ge=4)
    null_threshold: float = (
        0.0  # of spans: by which "no answer" must be better than the best answer
    )
    # of choice, where rows are texts in classes: class -> what is said for it, or a list of both
    choices: dict[str, str] | None = None
    # of choice: the right one is learned alone, or which one it is, too
    learn: Literal["answer", "choices"] = "answer"
    ends: bool = True  # likewise: whether models learn to say nothing after the answer
    # of choice and instruction: the prompt, with {column} for each column of text
    template: str | None = None
    chat: bool = False  # likewise: whether it is said as a chat, by the model's chat template

    @field_validator("subset")
    @classmethod
    def _of_glue(cls, value: str | None, info: ValidationInfo) -> str | None:
        if str(info.data.get("data")).rpartition("/")[2] == "glue" and value not in _GLUE:
            raise ValueError(f"{value!r} is not one of GLUE's tasks: {', '.join(_GLUE)}")
        return value

    @field_validator("text")
    @classmethod
    def _number_of_columns(
        cls, value: str | list[str] | None, info: ValidationInfo
    ) -> str | list[str] | None:
        kind = _kind_name(info.data)
        least, most = _TEXTS.get(kind, (1, 2))
        given = len(value) if isinstance(value, list) else 1
        if value is not None and not least <= given <= most:
            wanted = {
                (1, 2): "one or two columns",
                (1, 1): "one column",
                (1, 9): "one to nine columns",
            }.get((least, most), "two columns")
            raise ValueError(f"expected {wanted} for a task of kind {kind}, got {given}")
        return value

    @field_validator("choices", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, list):
            value = {name: name for name in value}
        # YAML reads `0: bad` and `yes: good` as a number and a truth, rows have them as text
        return {_text(k): _text(v) for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("choices")
    @classmethod
    def _of_classes(
        cls, value: dict[str, str] | None, info: ValidationInfo
    ) -> dict[str, str] | None:
        if value is not None and _kind_name(info.data) != "choice":
            raise ValueError("is for tasks of kind choice; leave it out")
        if value is not None and (len(value) < 2 or len(set(value.values())) < len(value)):
            raise ValueError(f"{value}: give two or more different choices")
        return value

    @field_validator("learn", "ends")
    @classmethod
    def _of_choices(cls, value: str | bool, info: ValidationInfo) -> str | bool:
        usual = cls.model_fields[str(info.field_name)].default
        if value != usual and _kind_name(info.data) != "choice":
            raise ValueError("is for tasks of kind choice; leave it out")
        return value

    @field_validator("template")
    @classmethod
    def _of_columns(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind, text = _kind_name(info.data), info.data.get("text")
        if value is None:
            return None
        if kind not in ("choice", "instruction"):
            raise ValueError(f"is for tasks of kind choice or instruction, not {kind}")
        columns = list(kind_named(kind).columns[0]) if text is None else text
        columns = [columns] if isinstance(columns, str) else columns
        if kind == "choice" and not info.data.get("choices") and len(columns) > 1:
            columns = columns[:-1]  # the last one holds the choices
        check_template(value, columns)
        return value

    @field_validator("chat")
    @classmethod
    def _of_prompts(cls, value: bool, info: ValidationInfo) -> bool:
        if value and _kind_name(info.data) not in ("choice", "instruction"):
            raise ValueError("is for tasks of kind choice or instruction; leave it out")
        return value

    @field_validator("metric")
    @classmethod
    def _of_the_kind(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = _kind_name(info.data)
        metrics = kind_named(kind).metrics
        if value is not None and value not in metrics:
            raise ValueError(
                f"{value!r} is not for tasks of kind {kind}; use one of: {', '.join(metrics)}"
            )
        return value

    @property
    def known(self) -> Known | None:
        return known(self.data, self.subset)

    @property
    def kind_name(self) -> KindName:
        return _kind_name(vars(self))

    @cached_property
    def task_kind(self) -> Kind:
        settings: dict[str, Any] = {}
        if self.kind_name == "spans":
            settings["null_threshold"] = self.null_threshold
        if self.kind_name in ("choice", "instruction"):
            settings |= {"template": self.template or "", "chat": self.chat}
        if self.kind_name == "choice":
            settings |= {
                "choices": tuple((self.choices or {}).items()),
                "learn": self.learn,
                "ends": self.ends,
                "per_byte": self.metric == "accuracy_norm",
            }
        return kind_named(self.kind_name, **settings)

    @property
    def is_written(self) -> bool:
        """Whether the task is one of language models."""
        return self.kind_name in WRITTEN

    @property
    def usual_metric(self) -> str:
        """The metric: what is given, known, or usual."""
        if self.metric is not None:
            return self.metric
        fits = self.known is not None and self.known.kind == self.kind_name
        return self.known.metric if fits and self.known else self.task_kind.metrics[0]

    @property
    def columns(self) -> Columns:
        """Where texts and label stand."""
        texts, label = self.task_kind.columns
        if self.known is not None:
            texts, label = self.known.texts, self.known.label if label else ""
        if self.text is not None:
            texts = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        return Columns(texts, self.label if self.label is not None and label else label)
