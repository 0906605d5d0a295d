"""Questions with a few answers to choose from, by which of them a language model finds likeliest.

The protocol of lm-evaluation-harness: the prompt is followed by each answer in turn, and the sum of
its tokens' log-likelihoods is its score (`accuracy`), or that sum for each byte of the answer
(`accuracy_norm`). What is learned is the right answer, after the prompt.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import UserError
from hwnas.tasks.classification import cross_entropy, divergence
from hwnas.tasks.encoding import check_length, in_chunks
from hwnas.tasks.prompts import asked, default_template, fill
from hwnas.tasks.rows import Columns, Row, text_of
from hwnas.tasks.written import BEGINNING, IGNORED, Joined, WrittenTask, cut, joined_ids

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hwnas.tasks.kinds import Floats

_CHUNK = 1024  # questions tokenized at a time
_FORMAT = "Answer format:"
_LEAD = re.compile(r"^Please [^:]*:\s*")  # "Please choose the correct answer to the question: "


@dataclass(frozen=True)
class Choice(WrittenTask):
    """See the module; a `Kind`.

    Attributes:
        choices: name of a class -> what is said for it; empty where each row has its own.
        template: of the prompt, see `prompts`; empty: the usual one.
        chat: the prompt is a chat's first message, and the right answer ends the reply.
    """

    metrics: tuple[str, ...] = ("accuracy", "accuracy_norm")
    columns: tuple[tuple[str, ...], str] = (("question", "choices"), "answer")
    logits: bool = True  # as good as: scores of choices, which a temperature may divide
    choices: tuple[tuple[str, str], ...] = ()
    template: str = ""
    chat: bool = False

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
        return self._encoded(split, tokenizer, max_length, every=True)

    def encode_training(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """One row a question, with the right choice only."""
        return self._encoded(split, tokenizer, max_length, every=False)

    def _encoded(
        self, split: Dataset, tokenizer: PreTrainedTokenizerBase, most: int, *, every: bool
    ) -> Dataset:
        from datasets import Dataset

        check_length(tokenizer, most)

        def encode(start: int, end: int) -> Dataset:
            part = split[start:end]
            given = [asked(tokenizer, prompt, chat=self.chat) for prompt in part["text"]]
            offered = [
                choices if every else [choices[right]]
                for choices, right in zip(part["choices"], part["label"], strict=True)
            ]
            begun = [text for text, some in zip(given, offered, strict=True) for _ in some]
            read = iter(joined_ids(tokenizer, begun, self._continued(given, offered)))
            rows: list[dict[str, Any]] = []
            for some, right in zip(offered, part["label"], strict=True):
                ends = self.chat and not every
                row = _row(
                    [next(read) for _ in some], most, tokenizer.eos_token_id if ends else None
                )
                if every:
                    row |= {"answer": right, "bytes": [len(one.encode()) for one in some]}
                else:
                    del row["branch"]
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

    def loss(self, answers: Floats, encoded: Dataset) -> float:
        """Cross-entropy of the right choice among those of its question, nats."""
        scores = self._scores(answers, encoded)
        return cross_entropy(scores, encoded["answer"])

    def divergence(self, teacher: Floats, answers: Floats, encoded: Dataset) -> float:
        """The mean KL from the teacher's distribution over each question's choices, nats."""
        return divergence(self._scores(teacher, encoded), self._scores(answers, encoded))

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
        """The log-likelihood of every choice, `(questions, most choices)`; -1e4 for none."""
        lengths = np.asarray(encoded["length"])
        branch = np.concatenate([np.asarray(row) for row in encoded["branch"]])
        question = np.repeat(np.arange(len(lengths)), lengths)
        of_choice = branch >= 0
        scores = np.full((len(lengths), int(branch.max()) + 1), -1e4)
        scores[question[of_choice], branch[of_choice]] = 0.0
        places = question[of_choice], branch[of_choice]
        np.add.at(scores, places, answers[of_choice, 0].astype(np.float64))
        return scores


def _row(read: Sequence[Joined], most: int, end: int | None) -> dict[str, Any]:
    """A prompt with continuations, as token ids, labels and branches.

    Args:
        end: the token that is to be said after a continuation; None: nothing.
    """
    ending = [] if end is None else [end]
    continued = [[*one.continuation, *ending][: most - 1] for one in read]
    # how the beginning is read does not depend on what follows but for its last letters
    kept = cut(read[-1].beginning, most - max(map(len, continued)))
    ids, labels, branch = [*kept], [IGNORED] * len(kept), [BEGINNING] * len(kept)
    for number, own in enumerate(continued):
        ids += own
        labels += own
        branch += [number] * len(own)
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": labels,
        "branch": branch,
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
    for known in (names, texts):
        if str(value) in known:
            return list(known).index(str(value))
    number = int(value) if isinstance(value, int) or str(value).isdecimal() else -1
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
