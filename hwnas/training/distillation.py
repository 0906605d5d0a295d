"""Distillation: the loss, and the teacher's answers computed once for all students.

Students of one run see the same training examples, so the teacher answers each of them once;
its logits travel with the example as the column `teacher_logits`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from hwnas.files import replacing

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

TEACHER_LOGITS = "teacher_logits"


def distillation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor,
    weight: float,
    temperature: float,
) -> torch.Tensor:
    """`weight` x KL from the teacher (softened, Hinton et al. 2015) + the rest x cross-entropy.

    Args:
        logits, teacher_logits: `(batch, classes)`.
        labels: `(batch,)`.
    """
    hard = F.cross_entropy(logits, labels)
    soft = F.kl_div(
        F.log_softmax(logits / temperature, dim=-1),
        F.log_softmax(teacher_logits / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return weight * temperature**2 * soft + (1 - weight) * hard


def save_logits(path: Path, **logits: np.ndarray) -> None:
    """Write arrays of logits, each `(rows, classes)`, as safetensors."""
    from safetensors.numpy import save_file

    with replacing(path) as partial:
        save_file({name: np.ascontiguousarray(value) for name, value in logits.items()}, partial)


def load_logits(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_logits` wrote."""
    from safetensors.numpy import load_file

    return dict(load_file(path))


def teacher_answers(teacher: PreTrainedModel, examples: Dataset) -> np.ndarray:
    """The teacher's logits on `examples`, `(rows, classes)`."""
    from hwnas.training.evaluate import predict

    return predict(teacher, examples)


def with_teacher(examples: Dataset, logits: np.ndarray) -> Dataset:
    """`examples` with the teacher's logits as the column `teacher_logits`."""
    return examples.add_column(TEACHER_LOGITS, list(logits.astype(np.float32)))
