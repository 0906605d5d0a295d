"""Writing a dense model as folders that load without hwnas: safetensors, ONNX and OpenVINO.

The conversions are Optimum's. What is added here: nothing half-written is ever seen, the caller's
model is left as it was (a copy on the CPU is exported), the exporters are quiet, and each folder is
whole, with a config that needs no remote code (ONNX, OpenVINO) or brings its own (safetensors), and
a tokenizer that cuts at the model's longest input.

Optimum's own validation of the ONNX file is left out: it compares random inputs of one shape;
`hwnas.export.compare` takes real ones of many lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.anatomy.heads import auto_name, generates, task_of
from hwnas.errors import UserError
from hwnas.export.decoders import export_configs, restate_heads
from hwnas.export.folders import FORMATS, check_format, quiet
from hwnas.files import replacing
from hwnas.progress import bar
from hwnas.telemetry import no_telemetry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECORD = "export.json"  # what `hwnas.export.verify` writes beside the folders

Writer = Callable[["PreTrainedModel", Path], None]


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    formats: Sequence[str] = FORMATS,
) -> dict[str, Path]:
    """Write `out/model`, `out/onnx` and `out/openvino`, or those of `formats`; say where each is.

    Each folder replaces an older one at once, when it is whole. A record of an earlier
    verification is removed first, since it spoke of the older folders.

    Raises:
        UserError: an unknown format, or a model for no task that hwnas knows.
    """
    if not formats:
        raise UserError(f"no export format chosen; known: {', '.join(FORMATS)}")
    writers = {"model": save_model, "onnx": export_onnx, "openvino": export_openvino}
    names = [check_format(name) for name in formats]
    task_of(type(model))
    (out / RECORD).unlink(missing_ok=True)
    with bar(f"export {out.name}", total=len(names)) as advance:
        for name in names:
            writers[name](model, tokenizer, out / name)
            advance(1.0)
    return {name: out / name for name in names}


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the safetensors folder `out`, for `AutoModelFor….from_pretrained`.

    A class that transformers does not have (layers of different widths) comes with its file of
    code, and loads with `trust_remote_code=True` and without hwnas.

    Raises:
        UserError: the model is for no task that hwnas knows.
    """
    _write(_save_safetensors, model, tokenizer, out)


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the ONNX folder `out`, for `ORTModelFor….from_pretrained`.

    Raises:
        UserError: the model is for no task that hwnas knows.
    """
    _write(_convert_to_onnx, model, tokenizer, out)


def export_openvino(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the OpenVINO folder `out`, for `OVModelFor….from_pretrained`.

    With OpenVINO Tokenizers installed, and a tokenizer that they know, the tokenizer is written as
    a model of OpenVINO's as well: a server then takes text, and needs no transformers. A language
    model keeps the keys and values of the tokens before in states of its own.

    Raises:
        UserError: the model is for no task that hwnas knows.
    """
    _write(_convert_to_openvino, model, tokenizer, out, _convert_tokenizer)


def _write(
    writer: Writer,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    convert: Callable[[PreTrainedTokenizerBase, Path], None] | None = None,
) -> None:
    """Write a model's folder by `writer`, and its tokenizer, also as `convert` does."""
    task_of(type(model))
    with replacing(out) as partial, quiet():
        partial.mkdir()
        exported = _plain_copy(model)
        writer(exported, partial)
        saved = _tokenizer_for(exported, tokenizer)
        saved.save_pretrained(partial)
        if convert is not None:
            convert(saved, partial)


def _convert_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if find_spec("openvino_tokenizers") is None:
        return
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoConfig

    names = ["openvino_tokenizer.xml"]
    if generates(AutoConfig.from_pretrained(folder)):
        names.append("openvino_detokenizer.xml")
    while names:
        back = len(names) > 1
        try:
            with no_telemetry():
                # Optimum's own conversion does not cut: the model would read beyond its positions
                found = convert_tokenizer(tokenizer, with_detokenizer=back, truncation=True)
        except Exception:  # whatever it raises over kinds of tokenizers that it does not know
            names.pop()
            continue
        for name, model in zip(names, found if back else (found,), strict=True):
            openvino.save_model(model, folder / name)
        return


def _save_safetensors(model: PreTrainedModel | Any, folder: Path) -> None:
    if type(model) is not _transformers_class(model):
        # what `register_for_auto_class` does to the whole class, here for the copy alone
        model._auto_class = auto_name(task_of(type(model)))
    model.save_pretrained(folder)
    # safetensors writes for the owner alone; a server often runs as somebody else
    mode = (folder / "config.json").stat().st_mode
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)


def _convert_to_onnx(model: PreTrainedModel, folder: Path) -> None:
    from optimum.exporters.onnx import onnx_export_from_model

    task = _exporters_task(model)
    _pass_for_transformers(model)
    own = export_configs(model, "onnx")
    onnx_export_from_model(model, folder, task=task, do_validation=False, **own)
    if generates(model.config):
        restate_heads(folder)


def _convert_to_openvino(model: PreTrainedModel, folder: Path) -> None:
    from optimum.exporters.openvino import export_from_model

    task = _exporters_task(model)
    _pass_for_transformers(model)
    with no_telemetry():
        export_from_model(
            model,
            folder,
            task=task,
            preprocessors=[],
            stateful=generates(model.config),
            **export_configs(model, "openvino"),
        )


def _exporters_task(model: PreTrainedModel) -> str:
    """What Optimum calls the task; a language model's graph takes and gives its cache."""
    return task_of(type(model)) + ("-with-past" if generates(model.config) else "")


def _plain_copy(model: PreTrainedModel | Any) -> PreTrainedModel:
    """A copy on the CPU in evaluation mode, whose config names a class that transformers has.

    A copy, because the exporters set the config and the mode of what they are given.
    """
    exported: Any = copy.deepcopy(model).cpu().eval()
    config = exported.config
    config.architectures = [_transformers_class(model).__name__]
    config._name_or_path = ""  # else the ONNX exporter saves the tokenizer that it finds there
    if hasattr(config, "auto_map"):
        del config.auto_map
    return exported  # type: ignore[no-any-return]


def _pass_for_transformers(model: PreTrainedModel | Any) -> None:
    """Give the copy a class that Optimum takes: it asks in which package the class was written."""
    base = _transformers_class(model)
    if type(model) is not base:
        model.__class__ = type(base.__name__, (type(model),), {"__module__": base.__module__})


def _transformers_class(model: PreTrainedModel) -> type:
    """The class of transformers itself that the model is or is derived from."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("transformers.models."))


def _tokenizer_for(
    model: PreTrainedModel | Any, tokenizer: PreTrainedTokenizerBase | Any
) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that cuts at the model's longest input, and pads when asked to.

    A tokenizer file may hold other settings (that of all-MiniLM pads everything to 128 tokens) or
    those of the last call, and readers of the file alone would obey them.
    """
    saved: Any = copy.deepcopy(tokenizer)
    longest = getattr(model.config, "max_position_embeddings", saved.model_max_length)
    saved.model_max_length = min(saved.model_max_length, longest)
    saved.init_kwargs.pop("max_length", None)
    if saved.is_fast:
        saved.backend_tokenizer.enable_truncation(saved.model_max_length)
        saved.backend_tokenizer.no_padding()
    return saved  # type: ignore[no-any-return]
