"""Scoring models: logits of every row, and what they are worth.

Works with transformers' models and with Optimum's for ONNX Runtime and OpenVINO, which take
torch tensors too.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hwnas.progress import bar

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from datasets import Dataset

    Floats = npt.NDArray[np.floating[Any]]
    Ints = npt.NDArray[np.integer[Any]]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def predict(
    model: Any, encoded: Dataset, batch_size: int = 64, progress: str | None = None
) -> npt.NDArray[np.float32]:
    """The logits `(n, classes)` of every row, in the order of `encoded`.

    Rows of like length share a batch, padded to its longest, so that little is computed for
    padding. A torch model runs in evaluation mode and is left in the mode it was in.

    Args:
        model: a classifier of transformers or Optimum.
        encoded: rows as `data.encode` makes them.
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
    training = getattr(model, "training", False)
    if training:
        model.eval()
    logits: npt.NDArray[np.float32] | None = None
    try:
        with torch.inference_mode(), bar(progress, len(ids)) if progress else nullcontext() as step:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = {
                    name: _pad([column[i] for i in rows], pad if name == "input_ids" else 0)
                    for name, column in columns.items()
                }
                output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
                values = torch.as_tensor(output.logits).float().cpu().numpy()
                if logits is None:
                    logits = np.empty((len(order), values.shape[1]), dtype=np.float32)
                logits[rows] = values
                if step is not None:
                    step(len(rows))
    finally:
        if training:
            model.train()
    if logits is None:
        return np.empty((0, model.config.num_labels), dtype=np.float32)
    return logits


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """The rows as one tensor `(rows, longest)`, filled with `value` on the right."""
    import torch

    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def score(metric: str, logits: Floats, labels: Ints | list[int]) -> float:
    """The metric in per cent (Matthews' correlation: times 100); NaN if a logit is not finite.

    Args:
        metric: `accuracy`, `f1` (of class 1), `f1_macro` or `matthews` (`data.Metric`).
        logits: `(n, classes)`.
        labels: `(n,)`, the true classes.
    """
    from sklearn import metrics

    if not np.isfinite(logits).all():
        return math.nan
    truth, guess = np.asarray(labels), logits.argmax(axis=-1)
    if metric == "accuracy":
        value = np.mean(truth == guess)
    elif metric == "matthews":
        value = metrics.matthews_corrcoef(truth, guess)
    elif metric == "f1":
        value = metrics.f1_score(truth, guess, pos_label=1, zero_division=0)
    elif metric == "f1_macro":
        classes = range(logits.shape[1])
        value = metrics.f1_score(truth, guess, labels=classes, average="macro", zero_division=0)
    else:
        raise ValueError(f"unknown metric {metric!r}")
    return 100 * float(value)


def _log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    from scipy.special import log_softmax

    return cast("npt.NDArray[np.float64]", log_softmax(logits.astype(np.float64), axis=-1))


def cross_entropy(logits: Floats, labels: Ints | list[int]) -> float:
    """The mean of -log p(true class), in nats; `logits` `(n, classes)`, `labels` `(n,)`."""
    truth = np.asarray(labels)
    return float(-_log_softmax(logits)[np.arange(len(truth)), truth].mean())


def divergence(teacher_logits: Floats, logits: Floats) -> float:
    """The mean Kullback-Leibler divergence KL(teacher || model), in nats; both `(n, classes)`."""
    teacher, student = _log_softmax(teacher_logits), _log_softmax(logits)
    return float((np.exp(teacher) * (teacher - student)).sum(axis=-1).mean())
