"""How well one can tell from a model which rows it was trained on.

Whoever has the model and a row asks how sure the model is of the row's label: it is surer of what
it has seen (Yeom et al. 2018, section 3.2). The attack knows the best threshold, so what is found
is the most that this attack can do; a stronger one may do more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from hwnas.models import on_gpu
from hwnas.tasks.predict import predict

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Membership:
    """What the attack can tell.

    Attributes:
        advantage: rows of the training set that are found less others that are taken for such, in
            shares, at the best threshold; 0: nothing.
        auc: the chance that of a row of each kind the right one is the surer; 0.5: nothing.
    """

    advantage: float
    auc: float


def attack(members: np.ndarray, others: np.ndarray) -> Membership:
    """By the losses of rows that were trained on, and of rows that were not.

    Args:
        members, others: one number a row.
    """
    rank_sum = stats.mannwhitneyu(others, members, alternative="greater").statistic
    farthest = stats.ks_2samp(others, members, alternative="less").statistic
    return Membership(float(farthest), float(rank_sum) / (len(members) * len(others)))


def losses(model: PreTrainedModel, rows: Dataset) -> np.ndarray:
    """Of every row's label, by a classifier of texts.

    Args:
        rows: encoded, with labels.
    """
    logits = predict(on_gpu(model), rows).astype(np.float64)
    labels = np.asarray(rows["labels"][:])
    highest = logits.max(axis=1, keepdims=True)
    all_of_them = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
    return np.asarray(all_of_them - logits[np.arange(len(labels)), labels])
