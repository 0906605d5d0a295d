"""Scoring any folder (dense, ONNX or OpenVINO) on a file of labelled rows, every row of it.

The kind of task is the model's own. Assumes that the file names the classes as the model does: as
strings, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from hwnas.errors import UserError
from hwnas.tasks.instruction import Instruction
from hwnas.tasks.kinds import WRITTEN, Kind, kind_named
from hwnas.tasks.rows import Columns, Parse, read_file
from hwnas.tasks.written import WrittenTask

if TYPE_CHECKING:
    from datasets import Dataset

_MOST = 128  # tokens of a text, where nothing else is said
_MOST_WRITTEN = 256  # likewise of a language model's

_KINDS = {
    "text-classification": "classification",
    "question-answering": "spans",
    "token-classification": "tokens",
    "feature-extraction": "embedding",
    "text-generation": "language",
}


class Evaluation(BaseModel):
    """A folder's score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    data: str
    rows: int
    metric: str
    value: float  # per cent
    loss: float
    metrics: dict[str, float]  # all that are defined for the task


def evaluate_folder(
    model: Path,
    data: Path,
    text: Sequence[str] | None = None,
    label: str | None = None,
    metric: str | None = None,
    max_length: int | None = None,
    against: str | None = None,
    kind: str | None = None,
) -> Evaluation:
    """Score `model` on every row of `data`.

    Args:
        text, label: the columns; by default the usual ones of the kind of task.
        kind: of task, for language models; by default plain text.
        metric: by default the usual one.
        max_length: tokens; longer texts are cut. By default 128, or as many as the model reads.
        against: of embeddings, the model whose they should be.

    Raises:
        UserError: an unknown metric, a folder or file that cannot be read, or a label that the
            model does not know.
    """
    from hwnas.export import load_exported
    from hwnas.models import load_tokenizer
    from hwnas.tasks.generation import EXACT_MATCH, score_written
    from hwnas.tasks.predict import predict

    loaded = load_exported(model, scoring=True)
    reading = Reading.of(loaded.config, str(model), text, label, metric, max_length, against, kind)
    rows = reading.rows(data)
    tokenizer = load_tokenizer(model)
    encoded = reading.encode(rows, tokenizer)
    answers = predict(loaded, encoded, progress="evaluate")
    of_task = reading.kind
    metrics = {
        name: of_task.score(name, answers, encoded)
        for name in reading.metrics
        if name != EXACT_MATCH
    }
    if reading.metric == EXACT_MATCH:
        assert isinstance(of_task, Instruction)
        split = of_task.split(rows, reading.names)
        most = reading.longest(tokenizer)
        metrics[EXACT_MATCH] = score_written(of_task, load_exported(model), tokenizer, split, most)
    return Evaluation(
        model=str(model),
        data=str(data),
        rows=len(rows),
        metric=reading.metric,
        value=metrics[reading.metric],
        loss=of_task.loss(answers, encoded),
        metrics=metrics,
    )


@dataclass(frozen=True)
class Reading:
    """How files of labelled rows are read for one model, and by what its answers are judged."""

    kind: Kind
    names: list[str]  # of the classes
    columns: Columns
    metric: str
    max_length: int | None
    against: str | None

    @classmethod
    def of(
        cls,
        config: Any,
        where: str,
        text: Sequence[str] | None = None,
        label: str | None = None,
        metric: str | None = None,
        max_length: int | None = None,
        against: str | None = None,
        kind_name: str | None = None,
    ) -> Reading:
        """For a model of this config.

        Args:
            where: the model's name, for messages.
            text, label, metric, max_length, against, kind_name: see `evaluate_folder`.

        Raises:
            UserError: an unknown metric, or text columns that the kind of task has not.
        """
        kind = _named_kind(kind_name, config, where) if kind_name else kind_of(config, where)
        names = _class_names(config, kind)
        chosen = metric or next(m for m in kind.metrics if _fits(m, kind, names))
        _check_metric(chosen, kind, names, where)
        columns = Columns(tuple(text or kind.columns[0]), label or kind.columns[1])
        most = max(2, len(kind.columns[0])) if kind.task == "text-classification" else None
        if isinstance(kind, WrittenTask):
            most = len(columns.texts) if kind.columns[1] else 1
        if len(columns.texts) > (most or len(kind.columns[0])):
            raise UserError(
                f"text columns {', '.join(columns.texts)}: "
                + ("give one, or the two of a pair" if most else f"give {len(kind.columns[0])}")
            )
        return cls(kind, names, columns, chosen, max_length, against)

    @property
    def metrics(self) -> list[str]:
        """All that are defined for the model's classes."""
        return [m for m in self.kind.metrics if _fits(m, self.kind, self.names)]

    def rows(self, data: Path) -> list[Any]:
        """Every row of a file.

        Raises:
            UserError: it cannot be read, or a label is none of the model's.
        """
        return read_file(data, self.columns, _known_only(self.kind.parse, self.names))

    def longest(self, tokenizer: Any) -> int:
        """Tokens of a row at most."""
        usual = _MOST_WRITTEN if isinstance(self.kind, WrittenTask) else _MOST
        return self.max_length or int(min(usual, tokenizer.model_max_length))

    def encode(self, rows: list[Any], tokenizer: Any) -> Dataset:
        """Rows as a model's tokenizer reads them.

        Raises:
            UserError: they are of embeddings, and `against` is not given.
        """
        split = self.kind.split(rows, self.names)
        most = self.longest(tokenizer)
        encoded = self.kind.encode(split, tokenizer, most)
        if self.kind.task == "feature-extraction":
            return _with_teacher(encoded, self.kind, split, most, self.against)
        return encoded


def _named_kind(name: str, config: Any, where: str) -> Kind:
    """One of a language model's kinds of task.

    Raises:
        UserError: it is none, or the model is none.
    """
    of_model = kind_of(config, where)
    if name not in WRITTEN or not isinstance(of_model, WrittenTask):
        known = WRITTEN if isinstance(of_model, WrittenTask) else ()
        has = f"; it has {', '.join(known)}" if known else "; leave it out"
        raise UserError(f"--kind {name}: is not for models like {where}{has}")
    return kind_named(name)


def kind_of(config: Any, where: str) -> Kind:
    """The kind of task that a model with this config is for.

    Raises:
        UserError: none that hwnas can score.
    """
    from hwnas.anatomy.heads import task_of

    task = task_of((config.architectures or [""])[0])
    if task not in _KINDS:
        raise UserError(f"{where}: is for {task}, which has no score here")
    if config.problem_type == "regression" and task == "text-classification":
        return kind_named("regression")
    return kind_named(_KINDS[task])


def _class_names(config: Any, kind: Kind) -> list[str]:
    """Of the classes that the model tells apart; none where there are no classes."""
    if isinstance(kind, WrittenTask):
        return []
    if kind.task == "token-classification" or "accuracy" in kind.metrics:
        return [config.id2label[i] for i in range(config.num_labels)]
    return []


def _check_metric(metric: str, kind: Kind, names: Sequence[str], where: str) -> None:
    from hwnas.tasks.classification import check_classes

    if metric not in kind.metrics:
        raise UserError(f"metric {metric!r}: unknown; known: {', '.join(kind.metrics)}")
    if kind.task == "text-classification":
        check_classes(metric, len(names), where)
    elif not _fits(metric, kind, names):
        raise UserError(f"metric {metric}: is of entities, B-… and I-…, and {where} has none")


def _fits(metric: str, kind: Kind, names: Sequence[str]) -> bool:
    """Whether a metric is defined for these classes."""
    if kind.task == "token-classification":
        return metric != "f1" or any(name.startswith("B-") for name in names)
    return metric not in ("f1", "accuracy_f1") or len(names) == 2 or not names


def _known_only(parse: Parse, names: Sequence[str]) -> Parse:
    """`parse` that refuses labels which are not among these names, if there are any."""

    def parse_known(record: Any, columns: Columns, where: str) -> tuple[Any, Any]:
        texts, label = parse(record, columns, where)
        for name in (label if isinstance(label, tuple) else (label,)) if names else ():
            if name not in names:
                raise UserError(f"{where}: label {name!r} is not one of: {', '.join(names)}")
        return texts, label

    return parse_known


def _with_teacher(
    encoded: Dataset, kind: Kind, split: Dataset, max_length: int, against: str | None
) -> Dataset:
    """The rows with the embeddings of the model that `against` names, which it reads for itself."""
    from hwnas.models import load_model
    from hwnas.tasks.embedding import with_teacher
    from hwnas.tasks.predict import predict

    if against is None:
        raise UserError("embeddings are scored against another model's: name it with --against")
    teacher, tokenizer = load_model(against, task="feature-extraction")
    return with_teacher(encoded, predict(teacher, kind.encode(split, tokenizer, max_length)))
