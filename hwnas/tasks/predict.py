"""A model's answers for a whole split.

Works with transformers' models and with Optimum's for ONNX Runtime and OpenVINO, which take
torch tensors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.anatomy.heads import writes
from hwnas.progress import bar
from hwnas.tasks.language import next_tokens

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from datasets import Dataset

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OF_TOKENS = 3  # axes of an output that has an answer for each token


def predict(
    model: Any, encoded: Dataset, batch_size: int = 64, progress: str | None = None
) -> npt.NDArray[np.float32]:
    """The answers `(n, outputs)` of every row, in the order of `encoded`.

    The logits of each row, or, where the model answers each token, of every token that is no
    padding, one row's after the other's; start and end logits side by side. A model without a head
    answers with the mean of its last states, of length 1; a language model with what it says of
    every next token (`language.next_tokens`).

    Rows of like length share a batch, padded to its longest, so that little is computed for
    padding. A torch model runs in evaluation mode and is left in the mode it was in.

    Args:
        model: of transformers or Optimum.
        encoded: rows as `Kind.encode` makes them.
        batch_size: rows at a time.
        progress: the name of a progress bar; without it, none is shown.
    """
    import torch

    names = [name for name in _INPUTS if name in encoded.column_names]
    columns: dict[str, list[list[int]]] = encoded.select_columns(names).with_format(None)[:]
    ids = columns["input_ids"]
    pad = getattr(model.config, "pad_token_id", None) or 0
    order = np.argsort([-len(row) for row in ids], kind="stable")
    device = torch.device(getattr(model, "device", "cpu"))
    generating = writes(model)
    training = getattr(model, "training", False)
    if training:
        model.eval()
    answers: list[Any] = [None] * len(ids)
    try:
        with torch.inference_mode(), bar(progress, len(ids)) if progress else nullcontext() as step:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = {
                    name: _pad([column[i] for i in rows], pad if name == "input_ids" else 0)
                    for name, column in columns.items()
                }
                if generating:
                    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None].expand(
                        len(rows), -1
                    )
                output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
                if generating:
                    answer = next_tokens(torch.as_tensor(output.logits), batch["input_ids"])
                else:
                    answer = answer_of(output, batch["attention_mask"].to(device))
                values = answer.float().cpu().numpy()
                for value, row in zip(values, rows, strict=True):
                    answers[row] = (
                        value[: len(ids[row])] if values.ndim == _OF_TOKENS else value[None]
                    )
                if step is not None:
                    step(len(rows))
    finally:
        if training:
            model.train()
    if not answers:
        return np.empty((0, model.config.num_labels), dtype=np.float32)
    return np.concatenate(answers).astype(np.float32, copy=False)


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
