"""A model's answers for a whole split.

Works with transformers' models and with Optimum's for ONNX Runtime and OpenVINO, which take
torch tensors too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.anatomy.heads import writes
from hwnas.progress import bar
from hwnas.tasks.written import Line, answers_of, branches, likelihoods, lines, padded, say

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from datasets import Dataset

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OF_WRITTEN = ("input_ids", "attention_mask", "labels", "branch")
_OF_TOKENS = 3  # axes of an output that has an answer for each token


def outputs_of(model: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What a model of torch says to a batch with labels, as its kind's losses take it."""
    if writes(model):
        return say(model, model, inputs)
    return model(**{name: value for name, value in inputs.items() if name in _INPUTS})


def predict(
    model: Any, encoded: Dataset, batch_size: int = 64, progress: str | None = None
) -> npt.NDArray[np.float32]:
    """The answers `(n, outputs)` of every row, in the order of `encoded`.

    The logits of each row, or, where the model answers each token, of every token that is no
    padding, one row's after the other's; start and end logits side by side. A model without a head
    answers with the mean of its last states, of length 1; a language model with what it says of
    every token that counts (`written`).

    Rows of like length share a batch, padded to its longest, so that little is computed for
    padding. A torch model runs in evaluation mode and is left in the mode it was in.

    Args:
        model: of transformers or Optimum.
        encoded: rows as `Kind.encode` makes them.
        batch_size: rows at a time.
        progress: the name of a progress bar; without it, none is shown.
    """
    import torch

    if writes(model):
        return _predict_written(model, encoded, batch_size, progress)
    names = [name for name in _INPUTS if name in encoded.column_names]
    columns: dict[str, list[list[int]]] = encoded.select_columns(names).with_format(None)[:]
    ids = columns["input_ids"]
    pad = getattr(model.config, "pad_token_id", None) or 0
    device = torch.device(getattr(model, "device", "cpu"))
    answers: list[Any] = [None] * len(ids)
    with _looking(model), _bar(progress, len(ids)) as advance:
        for rows in _alike(ids, batch_size):
            batch = {
                name: _pad([column[i] for i in rows], pad if name == "input_ids" else 0)
                for name, column in columns.items()
            }
            output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
            values = answer_of(output, batch["attention_mask"].to(device)).float().cpu().numpy()
            for value, row in zip(values, rows, strict=True):
                answers[row] = value[: len(ids[row])] if values.ndim == _OF_TOKENS else value[None]
            advance(len(rows))
    if not answers:
        return np.empty((0, model.config.num_labels), dtype=np.float32)
    return np.concatenate(answers).astype(np.float32, copy=False)


def _predict_written(
    model: Any, encoded: Dataset, batch_size: int, progress: str | None
) -> npt.NDArray[np.float32]:
    """What a language model says of every token that counts, `(tokens, 2)`; see `written`."""
    import torch

    names = [name for name in _OF_WRITTEN if name in encoded.column_names]
    if "branch" in names and hasattr(model, "continuations"):
        return _predict_continued(model, encoded, progress)
    columns: dict[str, list[list[int]]] = encoded.select_columns(names).with_format(None)[:]
    columns.setdefault("labels", columns["input_ids"])
    whole = [Line(i, list(range(len(row)))) for i, row in enumerate(columns["input_ids"])]
    parts = whole
    if "branch" in columns and not branches(model):
        parts = list(lines(columns.pop("branch")))
    device = torch.device(getattr(model, "device", "cpu"))
    answers = [np.zeros((len(row), 2), dtype=np.float32) for row in columns["input_ids"]]
    with _looking(model), _bar(progress, len(parts)) as advance:
        for group in _alike([part.at for part in parts], batch_size):
            taken = [parts[i] for i in group]
            batch = padded(
                [
                    {n: [c[part.row][t] for t in part.at] for n, c in columns.items()}
                    for part in taken
                ],
                0,
            )
            found = answers_of(model, {name: x.to(device) for name, x in batch.items()}).numpy()
            for part, said in zip(taken, found, strict=True):
                # of a beginning, each of its lines says the same: nothing
                answers[part.row][part.at] = said[: len(part.at)]
            advance(len(taken))
    return np.concatenate(answers) if answers else np.empty((0, 2), dtype=np.float32)


def _predict_continued(
    model: Any, encoded: Dataset, progress: str | None
) -> npt.NDArray[np.float32]:
    """The same of rows that branch, by a model that goes on from one beginning several times."""
    import torch

    every = encoded.select_columns(["input_ids", "branch"]).with_format(None)
    answers = []
    with _bar(progress, len(every)) as advance:
        for row in every:
            ids, branch = np.asarray(row["input_ids"]), np.asarray(row["branch"])
            found = np.zeros((len(ids), 2), dtype=np.float32)
            own = [np.flatnonzero(branch == number) for number in range(int(branch.max()) + 1)]
            said = model.continuations(list(ids[branch < 0]), [list(ids[at]) for at in own])
            for at, later in zip(own, said.later, strict=True):
                logits = np.concatenate([said.first[None], later[: len(at) - 1]])
                tokens = torch.from_numpy(ids[at])
                found[at] = likelihoods(torch.from_numpy(logits), tokens).numpy()
            answers.append(found)
            advance(1)
    return np.concatenate(answers) if answers else np.empty((0, 2), dtype=np.float32)


def _alike(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[npt.NDArray[np.intp]]:
    """Numbers of rows of like length, a batch of them at a time, the longest first."""
    order = np.argsort([-len(row) for row in rows], kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@contextmanager
def _looking(model: Any) -> Iterator[None]:
    """A model of torch in evaluation mode, and without gradients."""
    import torch

    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()


@contextmanager
def _bar(progress: str | None, rows: int) -> Iterator[Callable[[float], object]]:
    """A progress bar, if it has a name."""
    if progress is None:
        yield lambda _: None
    else:
        with bar(progress, rows) as advance:
            yield advance


def answer_of(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """What a batch's output says: `(batch, outputs)`, or `(batch, seq, outputs)` of each token.

    Args:
        output: of a model of transformers or Optimum.
        mask: `(batch, seq)`, 0 where a token is padding.
    """
    import torch

    if getattr(output, "start_logits", None) is not None:
        both = (torch.as_tensor(output.start_logits), torch.as_tensor(output.end_logits))
        return torch.stack(both, dim=-1)
    if getattr(output, "logits", None) is not None:
        return torch.as_tensor(output.logits)
    return pooled(torch.as_tensor(output.last_hidden_state), mask)


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean `(batch, hidden)` of the states of tokens that are no padding, of length 1."""
    from torch.nn import functional as F

    real = mask.to(states.dtype)[..., None]
    return F.normalize((states * real).sum(1) / real.sum(1), dim=-1)


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """The rows as one tensor `(rows, longest)`, filled with `value` on the right."""
    import torch

    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
