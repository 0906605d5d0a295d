"""Questions with a few answers to choose from, by which of them a language model finds likeliest.

The protocol of lm-evaluation-harness: the prompt is followed by each answer in turn, and the sum of
its tokens' log-likelihoods is its score (`accuracy`), or that sum for each byte of the answer
(`accuracy_norm`). What is learned is the right answer after the prompt, or, beside it, which of the
answers is the right one: the cross-entropy of the same scores that it is judged by, of all answers
in one pass.

Rows are read in three forms:

- columns of texts and one of choices: a list, or `{"text": […], "label": […]}` as ARC and
  OpenBookQA have them on the hub; the label is the right one's index, letter or text;
- one instruction with numbered answers, as LLM-Adapters has them (Hu et al. 2023): "… question: …
  Answer1: … Answer2: … Answer format: answer1/answer2"; numbers become the answers' texts;
- a text in classes, with what to say for each in the recipe's `choices`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hwnas.errors import UserError
from hwnas.tasks.classification import cross_entropy, divergence, softened
from hwnas.tasks.encoding import check_length, in_chunks
from hwnas.tasks.prompts import asked, default_template, fill
from hwnas.tasks.rows import Columns, Row, text_of
from hwnas.tasks.written import (
    BEGINNING,
    IGNORED,
    Joined,
    Places,
    WrittenTask,
    cut,
    joined_ids,
    wide,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Floats

_CHUNK = 1024  # questions tokenized at a time
_FORMAT = "Answer format:"
_NO_CHOICE = -1e4  # score of a choice that a question does not have
_LEAD = re.compile(r"^Please [^:]*:\s*")  # "Please choose the correct answer to the question: "


@dataclass(frozen=True)
class Choice(WrittenTask):
    """See the module; a `Kind`.

    Attributes:
        choices: name of a class -> what is said for it; empty where each row has its own.
        template: of the prompt, see `prompts`; empty: the usual one.
        chat: the prompt is a chat's first message.
        learn: "answer": the right one alone; "choices": which one it is, too.
        ends: what is learned ends with the right answer, so that a model which is asked says no
            more than that; the end is no part of a choice's score.
        per_byte: choices are judged by their bytes, so losses compare them likewise, times the mean
            size of a question's choices.
    """

    metrics: tuple[str, ...] = ("accuracy", "accuracy_norm")
    columns: tuple[tuple[str, ...], str] = (("question", "choices"), "answer")
    logits: bool = True  # as good as: scores of choices, which a temperature may divide
    choices: tuple[tuple[str, str], ...] = ()
    template: str = ""
    chat: bool = False
    learn: str = "answer"
    ends: bool = True
    per_byte: bool = False

    def parse(self, record: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, Any]:
        """The prompt and the choices, as texts; the index of the right one."""
        if self.choices:
            names = [name for name, _ in self.choices]
            offered = [said for _, said in self.choices]
            right = _index(record.get(columns.label), names, columns.label, where)
            asking = {name: text_of(record, name, where) for name in columns.texts}
        elif len(columns.texts) == 1:
            (name,) = columns.texts
            question, names, offered = _instruction(text_of(record, name, where), name, where)
            right = _index(record.get(columns.label), names, columns.label, where)
            asking = {name: question}
        else:
            *asked_by, given = columns.texts
            names, offered = _offered(record.get(given), given, where)
            right = _index(record.get(columns.label), [*names], columns.label, where, offered)
            asking = {name: text_of(record, name, where) for name in asked_by}
        prompt = fill(self.template or default_template(list(asking)), asking)
        return (prompt, *offered), right

    def identity(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def label_names(self, rows: Sequence[Row], source: str, metric: str, column: str) -> list[str]:
        return []

    def split(self, rows: Sequence[Row], labels: Sequence[str]) -> Dataset:
        from datasets import Dataset

        return Dataset.from_dict(
            {
                "text": [row.texts[0] for row in rows],
                "choices": [list(row.texts[1:]) for row in rows],
                "label": [row.label for row in rows],
                "id": [row.id for row in rows],
            }
        )

    def encode(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """One row a question, that branches into its choices."""
        offered = zip(split["choices"], split["label"], strict=True)
        return self._encoded(split, tokenizer, max_length, list(offered))

    def encode_training(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """One row a question: with the right choice only, or with all, the right one first."""
        offered = []
        for choices, right in zip(split["choices"], split["label"], strict=True):
            others = [*choices[:right], *choices[right + 1 :]] if self.learn == "choices" else []
            offered.append(([choices[right], *others], 0))
        return self._encoded(split, tokenizer, max_length, offered, ends=self.ends)

    def _encoded(
        self,
        split: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        most: int,
        offered: Sequence[tuple[Sequence[str], int]],
        *,
        ends: bool = False,
    ) -> Dataset:
        """Rows of questions with what each offers, and which of it is right.

        Args:
            ends: whether the first of them ends what is said.
        """
        from datasets import Dataset

        check_length(tokenizer, most)
        end = tokenizer.eos_token_id if ends else None

        def encode(start: int, stop: int) -> Dataset:
            given = [asked(tokenizer, text, chat=self.chat) for text in split[start:stop]["text"]]
            part = offered[start:stop]
            begun = [text for text, (some, _) in zip(given, part, strict=True) for _ in some]
            said = self._continued(given, [some for some, _ in part])
            read = iter(joined_ids(tokenizer, begun, said))
            rows: list[dict[str, Any]] = []
            for some, right in part:
                row = _row([next(read) for _ in some], most, end)
                if len(some) == 1:
                    del row["branch"], row["closing"]
                else:
                    row |= {"answer": right, "bytes": [len(one.encode()) for one in some]}
                rows.append(row)
            return Dataset.from_list(rows)

        return in_chunks(len(split), _CHUNK, encode)

    def _continued(self, given: Sequence[str], offered: Sequence[Sequence[str]]) -> list[str]:
        """Every choice as it follows its prompt."""
        found = []
        for text, choices in zip(given, offered, strict=True):
            space = "" if self.chat or text[-1:].isspace() else " "
            found += [space + one for one in choices]
        return found

    def hard_loss(self, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of the right answer's tokens, and of which answer is right if that is learned, nats."""
        from torch.nn import functional as F

        if "branch" not in inputs:
            return super().hard_loss(outputs, inputs)
        said = _Choices.of(outputs.logits, inputs)
        scores = self._compared(said.scores, inputs)
        right = F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=inputs["branch"].dtype))
        return right - said.tokens[said.which == 0].mean()

    def soft_loss(
        self, outputs: Any, teacher: Any, inputs: Mapping[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        """By token, and by choice if that is learned."""
        by_token = super().soft_loss(outputs, teacher, inputs, temperature)
        if "branch" not in inputs:
            return by_token
        scores, wanted = (
            self._compared(_Choices.of(said.logits, inputs).scores, inputs)
            for said in (outputs, teacher)
        )
        return by_token + softened(scores, wanted, temperature)

    def size(self, inputs: Mapping[str, torch.Tensor]) -> int | torch.Tensor:
        """Rows where the choices are compared; what is said of tokens is then a mean of means."""
        return len(inputs["input_ids"]) if "branch" in inputs else super().size(inputs)

    def _compared(self, scores: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores of choices `(batch, choices)` as they are compared; see `per_byte`."""
        if not self.per_byte:
            return scores
        sizes = inputs["bytes"][:, : scores.shape[1]].to(scores)
        offered = sizes > 0
        mean = sizes.sum(1, keepdim=True) / offered.sum(1, keepdim=True)
        return (scores * mean / sizes.clamp_min(1)).where(offered, scores)

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        """Cross-entropy of the right choice among those of its question, nats."""
        return cross_entropy(self._logits(answers, encoded), encoded["answer"])

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        """The mean KL from the teacher's distribution over each question's choices, nats."""
        return divergence(self._logits(teacher, encoded), self._logits(answers, encoded))

    def _logits(self, answers: Floats, encoded: Dataset) -> npt.NDArray[np.float64]:
        """Scores of choices `(questions, most choices)` as losses compare them."""
        scores = self._scores(answers, encoded)
        if self.per_byte:
            for row, sizes in zip(scores, encoded["bytes"], strict=True):
                row[: len(sizes)] *= np.mean(sizes) / sizes
        return scores

    def score(self, metric: str, answers: Floats, encoded: Dataset) -> float:
        """The share of questions whose right choice has the highest score, times 100."""
        if not np.isfinite(answers).all():
            return math.nan
        scores = self._scores(answers, encoded)
        if metric == "accuracy_norm":
            for row, sizes in zip(scores, encoded["bytes"], strict=True):
                row[: len(sizes)] /= sizes
        return 100 * float(np.mean(scores.argmax(1) == np.asarray(encoded["answer"])))

    @staticmethod
    def _scores(answers: Floats, encoded: Dataset) -> npt.NDArray[np.float64]:
        """The log-likelihood of every choice, `(questions, most choices)`."""
        lengths = np.asarray(encoded["length"])
        branch = np.concatenate([np.asarray(row) for row in encoded["branch"]])
        question = np.repeat(np.arange(len(lengths)), lengths)
        of_choice = branch >= 0
        scores = np.full((len(lengths), int(branch.max()) + 1), _NO_CHOICE)
        scores[question[of_choice], branch[of_choice]] = 0.0
        places = question[of_choice], branch[of_choice]
        np.add.at(scores, places, answers[of_choice, 0].astype(np.float64))
        return scores


class _Choices(NamedTuple):
    """What a model says of a batch of questions with all their choices.

    Attributes:
        scores: log-likelihoods, `(batch, choices)`.
        tokens: log-likelihoods of the tokens that count, `(n,)`.
        which: choice each of them is of, likewise.
    """

    scores: torch.Tensor
    tokens: torch.Tensor
    which: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> _Choices:
        """By logits `(n, vocabulary)` of the tokens that count."""
        branch = inputs["branch"]
        rows, at, _ = Places.of(inputs["labels"], branch)
        which = branch[rows, at]
        said = wide(logits).log_softmax(-1).gather(-1, inputs["labels"][rows, at, None])[:, 0]
        scores = said.new_zeros(len(branch), int(which.max()) + 1)
        none = scores.index_put((rows, which), said.new_ones(())) == 0
        scored = said.masked_fill(inputs["closing"][rows, at] > 0, 0.0)
        found = scores.index_put((rows, which), scored, accumulate=True)
        return cls(found.masked_fill(none, _NO_CHOICE), said, which)


def _row(read: Sequence[Joined], most: int, end: int | None) -> dict[str, Any]:
    """A prompt with continuations, as token ids, labels and branches.

    Args:
        end: the token that is to be said after the first; None: nothing.

    Returns:
        With `closing`, 1 where that token is.
    """
    continued = [one.continuation for one in read]
    if end is not None:
        continued[0] = [*continued[0], end]
    continued = [one[: most - 1] for one in continued]
    # how the beginning is read does not depend on what follows but for its last letters
    kept = cut(read[-1].beginning, most - max(map(len, continued)))
    ids, labels, branch = [*kept], [IGNORED] * len(kept), [BEGINNING] * len(kept)
    closing = [0] * len(kept)
    for number, own in enumerate(continued):
        ids += own
        labels += own
        branch += [number] * len(own)
        ended = number == 0 and len(own) > len(read[0].continuation)
        closing += [0] * (len(own) - ended) + [1] * ended
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": labels,
        "branch": branch,
        "closing": closing,
        "length": len(ids),
    }


def _offered(value: Any, column: str, where: str) -> tuple[list[str], list[str]]:
    """What rows of the hub or a file offer: names of the choices, and their texts."""
    texts, names = value, None
    if isinstance(value, Mapping):
        texts, names = value.get("text"), value.get("label")
    if (
        not isinstance(texts, Sequence)
        or isinstance(texts, str)
        or len(texts) < 2
        or not all(isinstance(text, str) and text.strip() for text in texts)
    ):
        raise UserError(f"{where}: column {column!r} holds {value!r}, expected a list of choices")
    letters = [chr(ord("A") + i) for i in range(len(texts))]
    return [str(name) for name in names or letters], list(texts)


def _index(
    value: Any, names: Sequence[str], column: str, where: str, texts: Sequence[str] = ()
) -> int:
    """Which of the choices is the right one: its index, its name or its text says it."""
    if value is None or value == "":
        raise UserError(f"{where}: no answer in column {column!r}; remove the row or fill it")
    if isinstance(value, bool):
        value = str(value).lower()
    number = int(value) if isinstance(value, int) or str(value).isdecimal() else -1
    if str(value) in names:
        return list(names).index(str(value))
    # a number that is no text counts, even where the choices are numbers
    if str(value) in texts and not (isinstance(value, int) and 0 <= number < len(texts)):
        return list(texts).index(str(value))
    if texts and 0 <= number < len(texts):
        return number
    raise UserError(f"{where}: answer {value!r} is none of: {', '.join(texts or names)}")


def _instruction(text: str, column: str, where: str) -> tuple[str, list[str], list[str]]:
    """Question, names and texts of the answers in an instruction as LLM-Adapters has them."""
    body, found, stated = text.rpartition(_FORMAT)
    names = [name.strip() for name in stated.strip().split("/")]
    if not found or len(names) < 2 or not all(names):
        raise UserError(
            f"{where}: column {column!r} has no '{_FORMAT} answer1/answer2'; "
            "give task.text a column of choices too, or task.choices"
        )
    question = _LEAD.sub("", body).strip()
    marks = [re.search(rf"\b{re.escape(name)}:\s*", question, re.IGNORECASE) for name in names]
    if all(marks):
        spans = [mark.span() for mark in marks if mark]
        ends = [start for start, _ in spans[1:]] + [len(question)]
        texts = [question[start:end].strip() for (_, start), end in zip(spans, ends, strict=True)]
        if all(texts):
            return question[: spans[0][0]].strip(), names, texts
    return question, names, names
