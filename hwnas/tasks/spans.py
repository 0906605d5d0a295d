"""Questions whose answer is a span of a context, or none (SQuAD 1.1 and 2.0).

A context longer than the model reads is cut into windows that overlap; each window is one encoded
row. Of all windows the best pair of start and end is the answer, unless "no answer" (both at the
first token) scores better by more than `null_threshold`. Exact match and F1 are the official
evaluation's (Rajpurkar et al. 2016 and 2018): of the normalised text, best over the true answers.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.tasks.classification import log_softmax
from hwnas.tasks.encoding import check_length, in_chunks, input_names
from hwnas.tasks.rows import Columns, Row, text_of

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Floats

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHUNK = 256  # questions tokenized at a time
_NO_TOKEN = -1e9  # a logit that no softmax sees


@dataclass(frozen=True)
class Spans:
    """See the module; a `Kind`."""

    task: str = "question-answering"
    metrics: tuple[str, ...] = ("f1", "exact_match")
    columns: tuple[tuple[str, ...], str] = (("question", "context"), "answers")
    logits: bool = True
    stride: float = 1 / 3  # of a window, that it shares with the next one
    n_best: int = 20  # starts, and ends, of each window that are looked at
    longest: int = 30  # tokens of an answer
    null_threshold: float = 0.0  # by which "no answer" must be better than the best answer

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        question, context = (text_of(record, name, where) for name in columns.texts)
        answers = record.get(columns.label)
        wrong = UserError(
            f"{where}: column {columns.label!r} holds {str(answers)[:40]!r}, expected "
            '{"text": [...], "answer_start": [...]}'
        )
        if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
            raise wrong
        texts, starts = answers["text"], answers["answer_start"]
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise wrong
        for text, start in zip(texts, starts, strict=True):
            if not isinstance(text, str) or not isinstance(start, int):
                raise wrong
            if context[start : start + len(text)] != text:
                raise UserError(
                    f"{where}: the answer {text[:40]!r} does not stand at character {start} of "
                    f"column {columns.texts[1]!r}"
                )
        return (question, context), tuple(zip(texts, starts, strict=True))

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        return texts[1:]  # two questions of one context must not stand in two splits

    def label_names(self, rows: Sequence[Row], source: str, metric: str, column: str) -> list[str]:
        if not any(row.label for row in rows):
            raise UserError(f"{source}: no row of train has an answer in column {column!r}")
        return []

    def split(self, rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
        from datasets import Dataset

        return Dataset.from_dict(
            {
                "question": [row.texts[0] for row in rows],
                "context": [row.texts[1] for row in rows],
                "answers": [[text for text, _ in row.label] for row in rows],
                "starts": [[start for _, start in row.label] for row in rows],
                "id": [row.id for row in rows],
            }
        )

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """Windows, with the positions of the answer (0 and 0 where a window has none)."""
        from datasets import Dataset

        check_length(tokenizer, max_length)

        def encode(first: int, end: int) -> Dataset:
            windows = list(self._windows(split[first:end], first, tokenizer, max_length))
            return Dataset.from_dict({n: [w[n] for w in windows] for n in windows[0]})

        return in_chunks(len(split), _CHUNK, encode)

    def _windows(
        self, part: Mapping[str, Any], first: int, tokenizer: Any, max_length: int
    ) -> Iterator[dict[str, Any]]:
        """The windows of some rows, of which the first is row `first` of the split."""
        for row, ids in zip(part["id"], tokenizer(part["question"])["input_ids"], strict=True):
            if len(ids) > max_length / 2:
                raise UserError(
                    f"question of row {row}: {len(ids)} tokens, more than half of max_length "
                    f"{max_length}; raise max_length or remove the row"
                )
        encoded = tokenizer(
            part["question"],
            part["context"],
            truncation="only_second",
            max_length=max_length,
            stride=int(self.stride * max_length),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=False,
        )
        for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
            inside = [part_of == 1 for part_of in encoded.sequence_ids(window)]
            offsets = encoded["offset_mapping"][window]
            begins = [b if ok else -1 for (b, _), ok in zip(offsets, inside, strict=True)]
            ends = [e if ok else -1 for (_, e), ok in zip(offsets, inside, strict=True)]
            answers = list(zip(part["answers"][row], part["starts"][row], strict=True))
            start, end = _positions(begins, ends, answers[0] if answers else None)
            ids = encoded["input_ids"][window]
            yield {
                **{name: encoded[name][window] for name in input_names(tokenizer)},
                "start_positions": start,
                "end_positions": end,
                "length": len(ids),
                "row": first + row,
                "begins": begins,
                "ends": ends,
                "context": part["context"][row],
                "truths": part["answers"][row],
            }

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from torch.nn import functional as F

        start, end = self._logits(outputs, inputs)
        wanted = inputs["start_positions"], inputs["end_positions"]
        return (F.cross_entropy(start, wanted[0]) + F.cross_entropy(end, wanted[1])) / 2

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        from hwnas.tasks.classification import softened

        pairs = zip(self._logits(outputs, inputs), self._logits(teacher, inputs), strict=True)
        start, end = (softened(mine, theirs, temperature) for mine, theirs in pairs)
        return (start + end) / 2

    def _logits(
        self, outputs: Any, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits `(batch, seq)`; padding is out of the question."""
        padding = inputs["attention_mask"] == 0
        start, end = (
            logits.masked_fill(padding, _NO_TOKEN)
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        return start, end

    def size(self, inputs: Mapping[str, torch.Tensor]) -> int:
        return len(inputs["input_ids"])

    def probe(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.hard_loss(outputs, inputs)

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        columns = encoded.select_columns(["start_positions", "end_positions"])[:]
        wanted = zip(columns["start_positions"], columns["end_positions"], strict=True)
        losses = [
            -(chances[start, 0] + chances[end, 1]) / 2
            for chances, (start, end) in zip(_chances(answers, encoded), wanted, strict=True)
        ]
        return float(np.mean(losses))

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        pairs = zip(_chances(teacher, encoded), _chances(answers, encoded), strict=True)
        return float(np.mean([(np.exp(t) * (t - m)).sum(0).mean() for t, m in pairs]))

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        if not np.isfinite(answers).all():
            return math.nan
        judge = _f1 if metric == "f1" else _exact
        found = self.texts(answers, encoded)
        truths = {row["row"]: row["truths"] for row in encoded.select_columns(["row", "truths"])}
        return 100 * float(
            np.mean(
                [
                    max(judge(text, truth) for truth in truths[row] or [""])
                    for row, text in found.items()
                ]
            )
        )

    def texts(self, answers: Floats, encoded: Dataset) -> dict[int, str]:
        """The answer to each row of the split; "" is no answer."""
        best: dict[int, tuple[float, str]] = {}
        null: dict[int, float] = {}
        columns = encoded.select_columns(["row", "begins", "ends", "context"])
        for window, logits in zip(columns, _windows(answers, encoded), strict=True):
            row: int = window["row"]
            null[row] = min(null.get(row, math.inf), float(logits[0].sum()))
            for score, first, last in self._candidates(logits, window["begins"]):
                if score > best.get(row, (-math.inf, ""))[0]:
                    begin, end = window["begins"][first], window["ends"][last]
                    best[row] = score, window["context"][begin:end]
        can_be_none = any(not truths for truths in encoded["truths"])
        return {
            row: ""
            if row not in best or (can_be_none and null[row] - best[row][0] > self.null_threshold)
            else best[row][1]
            for row in null
        }

    def _candidates(
        self, logits: Floats, begins: Sequence[int]
    ) -> Iterator[tuple[float, int, int]]:
        """Score, first and last token of the spans of the best starts and ends of a window."""
        inside = np.asarray(begins) >= 0
        start, end = np.where(inside[:, None], logits, -np.inf).T
        for first in np.argsort(-start, kind="stable")[: self.n_best]:
            for last in np.argsort(-end, kind="stable")[: self.n_best]:
                if inside[first] and inside[last] and 0 <= last - first < self.longest:
                    yield float(start[first] + end[last]), int(first), int(last)


def normalised(text: str) -> str:
    """As the official evaluation compares answers: no case, punctuation, articles, extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _exact(answer: str, truth: str) -> float:
    return float(normalised(answer) == normalised(truth))


def _f1(answer: str, truth: str) -> float:
    mine, theirs = normalised(answer).split(), normalised(truth).split()
    if not mine or not theirs:
        return float(mine == theirs)
    common = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * common / (len(mine) + len(theirs))


def _positions(
    begins: Sequence[int], ends: Sequence[int], answer: tuple[str, int] | None
) -> tuple[int, int]:
    """First and last token of an answer that lies wholly in a window, else 0 and 0."""
    if answer is None:
        return 0, 0
    text, begin = answer
    end = begin + len(text)
    inside = [i for i, (b, e) in enumerate(zip(begins, ends, strict=True)) if b < end and e > begin]
    known = [i for i, b in enumerate(begins) if b >= 0]
    if not inside or begins[known[0]] > begin or ends[known[-1]] < end:
        return 0, 0
    return inside[0], inside[-1]


def _windows(answers: Floats, encoded: Dataset) -> list[Floats]:
    """The answers `(tokens, 2)` window by window."""
    return np.split(answers, np.cumsum(encoded["length"])[:-1])


def _chances(answers: Floats, encoded: Dataset) -> Iterator[Floats]:
    """The logarithms of the chances of each token to be start and end, window by window."""
    for window in _windows(answers, encoded):
        yield log_softmax(window.T).T
