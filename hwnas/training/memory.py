"""A teacher's answers to training rows, kept where students see the same rows again and again.

A forward pass of the teacher takes as long as a whole training step of a student of a third of its
size (MiniLM on SST-2: steps take 0.83 of the time without it at full size, 0.69 at a fifth).
Finalists see every row several times, so each row is answered once, together with rows of
like length, always the same ones: what the teacher says does not depend on when it is asked, and an
interrupted training resumes to the same weights. Logits are kept as they are, states and
projections in bfloat16, which moves a state by a thousandth of its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils.generic import ModelOutput

from hwnas.anatomy.heads import writes
from hwnas.training.batches import ROW, collator, model_columns
from hwnas.training.observing import Observed, observe

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOGETHER = 32  # rows that are answered in one pass
_MOST_BYTES = 2**31
_OFTEN = 2  # times that each row is seen, from which on it is worth it
_ANSWERS = ("logits", "start_logits", "end_logits", "last_hidden_state")  # by which students learn
_AXES_OF_TOKENS = 3  # of logits that are of each token
_STATE, _PROJECTION = _INSIDE = "state ", "projection "


class Memory:
    """Answers of a teacher to rows of `examples`, each found when it is first needed.

    Attributes:
        examples: encoded rows, with their number in the column `ROW`.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Dataset,
        *,
        states: bool,
        relations: bool,
    ) -> None:
        """See the module.

        Args:
            teacher: in eval mode, on the CPU.
            examples: encoded rows with their `length`, padded on the right.
            states: whether hidden states are asked for.
            relations: likewise the last block's queries, keys and values.
        """
        self._teacher = teacher
        self._states, self._relations = states, relations
        self._rows = model_columns(examples)
        self._collate = collator(tokenizer, self._rows)
        self._lengths = np.asarray(examples["length"])
        order = np.argsort(self._lengths, kind="stable")
        self._groups = [order[at : at + _TOGETHER] for at in range(0, len(order), _TOGETHER)]
        self._group_of = np.empty(len(order), dtype=np.int64)
        for number, group in enumerate(self._groups):
            self._group_of[group] = number
        # of each row, what there is of it by name, without padding
        self._known: dict[int, dict[str, torch.Tensor]] = {}
        self._of_tokens: set[str] = set()  # names of what has a part for each token
        self.examples: Dataset = examples.add_column(ROW, list(range(len(examples))))

    @classmethod
    def if_worth_it(
        cls,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Dataset,
        *,
        seen: int,
        states: bool,
        relations: bool,
    ) -> Memory | None:
        """A memory for trainings that see so many rows in all; None where it would not pay.

        It does not on a GPU, for few passes over the rows, or for more than 2 GiB; a language
        model's logits, of a whole vocabulary for each token, are always more.
        """
        if torch.cuda.is_available() or tokenizer.padding_side != "right" or writes(teacher):
            return None
        config = teacher.config
        each = states * config.num_hidden_layers + 3 * relations + 1
        size = 2 * sum(examples["length"]) * each * config.hidden_size
        if seen < _OFTEN * len(examples) or size > _MOST_BYTES:
            return None
        return cls(teacher, tokenizer, examples, states=states, relations=relations)

    def answers(self, rows: Sequence[int], seq: int) -> Observed:
        """What the teacher says to a batch of these rows, padded to `seq` tokens with zeros."""
        for number in sorted({int(self._group_of[row]) for row in rows if row not in self._known}):
            self._answer(self._groups[number])
        found = [self._known[row] for row in rows]
        batch = {name: self._batch(name, [row[name] for row in found], seq) for name in found[0]}
        return Observed(
            ModelOutput({name: x for name, x in batch.items() if not name.startswith(_INSIDE)}),
            [x for name, x in batch.items() if name.startswith(_STATE)],
            [x for name, x in batch.items() if name.startswith(_PROJECTION)],
        )

    @torch.no_grad()
    def _answer(self, group: npt.NDArray[np.int64]) -> None:
        inputs = dict(self._collate([self._rows[int(row)] for row in group]))
        outputs, states, projections = observe(
            self._teacher,
            self._teacher,
            inputs,
            states=self._states,
            relations=self._relations,
        )
        found = {name: outputs[name] for name in _ANSWERS if outputs.get(name) is not None}
        self._of_tokens |= {
            name for name, x in found.items() if name != "logits" or x.dim() == _AXES_OF_TOKENS
        }
        inside = {f"{_STATE}{i}": x.bfloat16() for i, x in enumerate(states)}
        inside |= {f"{_PROJECTION}{i}": x.bfloat16() for i, x in enumerate(projections)}
        self._of_tokens |= inside.keys()
        for at, row in enumerate(group):
            length = int(self._lengths[row])
            self._known[int(row)] = {
                name: (x[at, :length] if name in self._of_tokens else x[at]).clone()
                for name, x in (found | inside).items()
            }

    def _batch(self, name: str, rows: Sequence[torch.Tensor], seq: int) -> torch.Tensor:
        """One tensor of all rows."""
        if name not in self._of_tokens:
            return torch.stack(list(rows))
        batch = torch.zeros(len(rows), seq, *rows[0].shape[1:], dtype=self._teacher.dtype)
        for row, tokens in zip(batch, rows, strict=True):
            row[: len(tokens)] = tokens
        return batch
