"""Whether an exported folder computes what the torch model computes.

The inputs are encoded rows of the task, or random ones where there is no task, of many lengths, so
that padding, masks and dynamic shapes are part of what is compared.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.anatomy.heads import writes
from hwnas.errors import HwnasError
from hwnas.export.folders import find_format, load_exported

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = 1e-3  # of a logit; float32 kernels of different runtimes differ by about 1e-6
_BATCH = 16
# of a language model: texts that are continued, tokens read of each, tokens that come
_PROMPTS, _PROMPT, _CONTINUED = 6, 96, 8


def parity(
    model: PreTrainedModel, folder: Path, encoded: Dataset, threads: int | None = None
) -> float:
    """The largest absolute difference of a logit between `model` and `folder`, on `encoded`.

    A differing number of labels counts as infinite; a logit that is not a number makes it NaN.
    A language model continues a few of the texts, so that its cache is part of what is compared.

    Args:
        model: the dense torch model that was exported.
        folder: an exported folder of any format.
        encoded: rows as `Kind.encode` makes them.
        threads: for the folder's runtime.

    Raises:
        UserError: there is no such folder, or no exported model in it.
    """
    from hwnas.tasks.predict import predict

    if writes(model):
        exported = load_exported(folder, threads, exact=True)
        return _parity_of_continuations(model, exported, encoded)
    found = predict(load_exported(folder, threads), encoded, batch_size=_BATCH)
    wanted = predict(model, encoded, batch_size=_BATCH)
    if found.shape != wanted.shape:
        return math.inf
    return float(np.abs(found - wanted).max(initial=0.0))


def _parity_of_continuations(model: Any, exported: Any, encoded: Dataset) -> float:
    """The largest difference of a logit where the exported model continues prompts greedily."""
    import torch

    worst = 0.0
    every = encoded["input_ids"]
    longest = getattr(model.config, "max_position_embeddings", None) or _PROMPT + _CONTINUED
    most = max(1, min(_PROMPT, longest - _CONTINUED))
    for at in np.linspace(0, len(every) - 1, min(_PROMPTS, len(every))).astype(int):
        prompt = torch.tensor([every[int(at)][:most]])
        with torch.inference_mode():
            written = exported.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=_CONTINUED,
                max_new_tokens=_CONTINUED,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
            found = torch.stack([torch.as_tensor(step)[0] for step in written.logits]).float()
            wanted = model(written.sequences).logits[0, prompt.shape[1] - 1 : -1].float()
        if found.shape != wanted.shape:
            return math.inf
        difference = float((found - wanted).abs().max())
        worst = difference if math.isnan(difference) else max(worst, difference)
        if math.isnan(worst):
            return worst
    return worst


def check_parity(
    model: PreTrainedModel,
    folder: Path,
    encoded: Dataset,
    threads: int | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """`parity`, which must not exceed `tolerance`.

    Raises:
        HwnasError: it does (the message names the format and the difference), or there are no rows.
        UserError: there is no such folder, or no exported model in it.
    """
    if len(encoded) == 0:
        raise HwnasError(f"{folder}: no rows to compare it with torch on")
    difference = parity(model, folder, encoded, threads)
    if not difference <= tolerance:  # NaN too
        raise HwnasError(
            f"{folder}: the {find_format(folder)} export's logits differ from torch's by "
            f"{difference:.2g} on {len(encoded)} inputs, more than {tolerance:g}; "
            "do not use it, and report this as a bug"
        )
    return difference


def random_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = 32, longest: int = 128
) -> Dataset:
    """Rows of random tokens, of 1 to `longest` tokens (at most what the model reads)."""
    from datasets import Dataset

    rng = np.random.default_rng(0)
    most = min(longest, getattr(model.config, "max_position_embeddings", longest))
    ids = [
        rng.integers(0, model.config.vocab_size, size).tolist()
        for size in np.linspace(1, most, count).astype(int)
    ]
    columns = {
        "input_ids": ids,
        "attention_mask": [[1] * len(row) for row in ids],
        "token_type_ids": [[0] * len(row) for row in ids],
    }
    taken = set(tokenizer.model_input_names)
    return Dataset.from_dict({name: rows for name, rows in columns.items() if name in taken})
