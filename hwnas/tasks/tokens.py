"""A class for each word of a sentence: names, parts of speech, and the like.

A word's first token carries its label and its answer. F1 is of whole entities, by the tags' B- and
I- (seqeval, as CoNLL-2003 is evaluated).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.tasks.classification import cross_entropy, divergence, ordered, softened
from hwnas.tasks.encoding import check_length, in_chunks, input_names
from hwnas.tasks.rows import Columns, Row

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Floats

_IGNORED = -100  # the label of a token that is not a word's first
_CHUNK = 1024


@dataclass(frozen=True)
class Tokens:
    """See the module; a `Kind`."""

    task: str = "token-classification"
    metrics: tuple[str, ...] = ("f1", "accuracy")
    columns: tuple[tuple[str, ...], str] = (("tokens",), "ner_tags")
    logits: bool = True

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        words, tags = record.get(columns.texts[0]), record.get(columns.label)
        for name, value in ((columns.texts[0], words), (columns.label, tags)):
            if not isinstance(value, list) or not all(isinstance(v, (str, int)) for v in value):
                raise UserError(
                    f"{where}: column {name!r} holds {str(value)[:40]!r}, expected a list of words"
                )
        assert isinstance(words, list) and isinstance(tags, list)
        if len(words) != len(tags) or not words:
            raise UserError(
                f"{where}: {len(words)} words in column {columns.texts[0]!r}, {len(tags)} labels "
                f"in column {columns.label!r}; there must be one for each"
            )
        return tuple(map(str, words)), tuple(map(str, tags))

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def label_names(self, rows: Sequence[Row], source: str, metric: str, column: str) -> list[str]:
        names = {tag for row in rows for tag in row.label}
        if len(names) < 2:
            raise UserError(f"{source}: all words of train have the same label in {column!r}")
        if metric == "f1" and not any(name.startswith("B-") for name in names):
            raise UserError(
                f"{source}: metric f1 is of entities, but no label in column {column!r} begins "
                "with B-; use accuracy"
            )
        return ordered(names)

    def split(self, rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
        from datasets import ClassLabel, Dataset, List

        index = {label: i for i, label in enumerate(labels)}
        split = Dataset.from_dict(
            {
                "words": [list(row.texts) for row in rows],
                "label": [[index[tag] for tag in row.label] for row in rows],
                "id": [row.id for row in rows],
            }
        )
        return split.cast_column("label", List(ClassLabel(names=list(labels))))

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """Sentences; words beyond `max_length` tokens are cut off, and not judged."""
        from datasets import Dataset

        check_length(tokenizer, max_length)

        def encode(start: int, end: int) -> Dataset:
            part = split[start:end]
            encoded: Any = tokenizer(
                part["words"],
                is_split_into_words=True,
                truncation=True,
                max_length=max_length,
                padding=False,
            )
            columns = {name: encoded[name] for name in input_names(tokenizer)}
            columns["labels"] = [
                _first_tokens(encoded.word_ids(i), labels) for i, labels in enumerate(part["label"])
            ]
            columns["words"] = part["label"]
            columns["length"] = [len(ids) for ids in encoded["input_ids"]]
            return Dataset.from_dict(columns).cast_column("words", split.features["label"])

        return in_chunks(len(split), _CHUNK, encode)

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(
            outputs.logits.flatten(0, 1), inputs["labels"].flatten(), ignore_index=_IGNORED
        )

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        words = inputs["labels"] != _IGNORED
        return softened(outputs.logits[words], teacher.logits[words], temperature)

    def size(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (inputs["labels"] != _IGNORED).sum()

    def probe(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.hard_loss(outputs, inputs)

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        labels = _flat_labels(encoded)
        words = labels != _IGNORED
        return cross_entropy(answers[words], labels[words])

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        words = _flat_labels(encoded) != _IGNORED
        return divergence(teacher[words], answers[words])

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        if not np.isfinite(answers).all():
            return math.nan
        labels = _flat_labels(encoded)
        words = labels != _IGNORED
        guesses = answers.argmax(axis=-1)
        if metric == "accuracy":
            return 100 * float(np.mean(guesses[words] == labels[words]))
        from seqeval.metrics import f1_score

        names: list[str] = encoded.features["words"].feature.names
        ends = np.cumsum(encoded["length"])[:-1]
        kept = np.split(words, ends)
        by_sentence = [
            [
                [names[i] for i in row[keep]]
                for row, keep in zip(np.split(values, ends), kept, strict=True)
            ]
            for values in (labels, guesses)
        ]
        return 100 * float(f1_score(*by_sentence, zero_division=0))


def _first_tokens(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """Each word's label at its first token."""
    before: int | None = None
    found = []
    for word in word_ids:
        found.append(_IGNORED if word is None or word == before else labels[word])
        before = word
    return found


def _flat_labels(encoded: Dataset) -> Any:
    """The labels of all tokens, one sentence after the other."""
    return np.concatenate([np.asarray(row) for row in encoded["labels"]])
