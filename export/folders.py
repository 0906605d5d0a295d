"""Exported folders: the three formats, where each keeps its model, how large it is, how it runs.

One format is one runtime's: `model/` (safetensors) is torch's, `onnx/` ONNX Runtime's, `openvino/`
OpenVINO's. A folder is recognised by the model file in it, so it may be renamed and moved.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwnas.anatomy.heads import exported_ending, generates, task_of
from hwnas.errors import HwnasError, UserError
from hwnas.export.decoders import PlainDecoder, StatefulDecoder, of_optimum
from hwnas.files import read_json
from hwnas.latency.target import Target

RUNTIMES = {"model": "torch", "onnx": "onnxruntime", "openvino": "openvino"}  # of each format
FORMATS = tuple(RUNTIMES)

SERVING = "serving.json"  # in a folder that is computed in another precision than fp32

MODEL_FILES = {
    "model": "model.safetensors",
    "onnx": "model.onnx",
    "openvino": "openvino_model.xml",
}


def check_format(name: str) -> str:
    """`name`, if it is a format.

    Raises:
        UserError: it is none; the message lists them.
    """
    if name not in RUNTIMES:
        raise UserError(f"unknown export format {name!r}; known: {', '.join(FORMATS)}")
    return name


def format_for(runtime: str) -> str:
    """The format that `runtime` serves."""
    return next(name for name, served_by in RUNTIMES.items() if served_by == runtime)


def served_folder(target: Target) -> str:
    """The name of the folder that a target serves: its runtime's format, at its precision."""
    name = format_for(target.runtime)
    return name if target.precision == "fp32" else f"{name}-{target.precision}"


def find_format(folder: Path) -> str:
    """The format of an exported folder.

    Raises:
        UserError: there is no such folder, or no exported model in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; export the model first")
    for name, file in MODEL_FILES.items():
        if (folder / file).is_file():
            if not (folder / "config.json").is_file():
                raise UserError(f"{folder}: has {file} but no config.json; export the model again")
            return name
    raise UserError(
        f"{folder}: no exported model in it (none of {', '.join(MODEL_FILES.values())})"
    )


def computed_in(folder: Path) -> str:
    """The precision that an exported folder is to be computed in: fp32 unless it says bf16.

    Raises:
        UserError: its `serving.json` is damaged.
    """
    file = folder / SERVING
    return str(read_json(file).get("precision", "fp32")) if file.is_file() else "fp32"


def folder_size_mb(folder: Path) -> float:
    """The size of everything in the folder: model, config and tokenizer, in 10^6 bytes.

    Raises:
        UserError: there is no such folder, or no exported model in it.
    """
    find_format(folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of Optimum and the exporters, below errors, from the terminal."""
    loggers = [logging.getLogger(n) for n in ("optimum", "transformers", "openvino", "nncf")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Whatever a runtime raises over a folder's files becomes a `UserError` that names it."""
    try:
        yield
    except HwnasError:
        raise
    except Exception as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = said[-1] if said else type(error).__name__
        raise UserError(f"{folder}: cannot be loaded ({why}); export the model again") from error


def load_exported(
    folder: Path, threads: int | None = None, *, exact: bool = False, scoring: bool = False
) -> Any:
    """Load the folder as a user of transformers or Optimum would, a model to call on a batch.

    OpenVINO computes in float32, as it does when it is timed, also on processors where it would
    choose bfloat16 by itself; a folder that was exported for bf16 is computed in that.

    Args:
        folder: of any format.
        threads: bounds ONNX Runtime's and OpenVINO's; torch's are the process's own.
        exact: keep keys and values in float32 too; OpenVINO by itself keeps them in 8 bits, which
            is how it is timed and serves.
        scoring: only to be scored: a language model is then had in its runtime alone, which
            computes once what several answers share (`decoders`).

    Raises:
        UserError: there is no such folder, no exported model in it, or its files are damaged.
    """
    name = find_format(folder)
    if name == "model":
        from hwnas.models import load

        return load(folder, shrinkable=False)
    with reading(folder):
        if name == "onnx":
            return _load_onnx(folder, threads, scoring)
        return _load_openvino(folder, threads, exact, scoring)


def _load_onnx(folder: Path, threads: int | None, scoring: bool) -> Any:
    import onnxruntime
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    if generates(config) and (scoring or not of_optimum(config)):
        return PlainDecoder(folder / MODEL_FILES["onnx"], config, threads)
    from optimum import onnxruntime as optimum

    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    model_class = getattr(optimum, f"ORT{_ending(folder)}")
    return model_class.from_pretrained(
        str(folder),
        provider="CPUExecutionProvider",
        session_options=options,
        local_files_only=True,
        export=False,
    )


def _load_openvino(folder: Path, threads: int | None, exact: bool, scoring: bool) -> Any:
    from transformers import AutoConfig

    hint = "bf16" if computed_in(folder) == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    if exact:
        settings["KV_CACHE_PRECISION"] = "f32"
    config = AutoConfig.from_pretrained(folder)
    if scoring and generates(config):
        return StatefulDecoder(folder / MODEL_FILES["openvino"], config, settings)
    from optimum import intel

    with quiet():  # Optimum looks for a local folder in the hub's cache, and warns
        model_class = getattr(intel, f"OV{_ending(folder)}")
        return model_class.from_pretrained(
            str(folder), device="CPU", ov_config=settings, local_files_only=True, export=False
        )


def _ending(folder: Path) -> str:
    """What the name of Optimum's class for the folder's model ends in."""
    config = folder / "config.json"
    architecture = (read_json(config).get("architectures") or [""])[0]
    try:
        ending = exported_ending(task_of(architecture))
    except UserError as error:
        raise UserError(f"{config}: {error}") from None
    return f"Model{ending}"
