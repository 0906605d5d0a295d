"""Reading and writing artifacts so that no reader ever sees half of one.

Every artifact is written beside its destination and renamed onto it; a killed process
leaves a ``*.partial-…`` neighbour that the next writer removes.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hwnas.errors import HwnasError, UserError

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model", bound=BaseModel)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def check_writable(path: Path) -> None:
    """Find out whether a file can be written, before what is to be in it is made.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise UserError(f"{path}: {folder} is no folder; choose another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot write in {folder}; choose another --out")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, file or folder, which is renamed onto it at the end.

    If the body raises, the temporary is removed and `path` stays as it was.

    Raises:
        UserError: the folder of `path` cannot be written, or disk or memory did not suffice.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.partial-*"):
            _remove(stale)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot write here ({error.strerror}); choose another --out"
        ) from error
    partial = _partial_name(path)
    try:
        yield partial
        if partial.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.partial-old")
            path.rename(old)
            partial.rename(path)
            _remove(old)
        elif path.is_dir() and not partial.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        else:
            partial.replace(path)
    except HwnasError as error:
        # of what was being written, the reader knows where it was to be
        raise type(error)(str(error).replace(str(partial), str(path))) from error
    except Exception as error:
        if (lack := _lack(error, path.parent)) is not None:
            raise UserError(f"{path}: cannot be written ({lack}); nothing is kept of it") from error
        raise
    finally:
        if partial.exists():
            _remove(partial)
        if not path.exists():
            _remove_empty(missing)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose entries are moved into `folder` at the end, all or none.

    None of them may be in `folder` already.

    Raises:
        UserError: as `replacing`.
    """
    if not folder.exists():
        with replacing(folder) as partial:
            yield partial
        return
    with replacing(folder / ".filling") as partial:
        yield partial
        for entry in sorted(partial.iterdir()):
            entry.rename(folder / entry.name)
    _remove(folder / ".filling")


def copy_missing(source: Path, folder: Path) -> None:
    """Copy what `source` holds and `folder` does not, each entry whole or not at all.

    Raises:
        UserError: as `replacing`.
    """
    for entry in sorted(source.glob("[!.]*")):
        if not (folder / entry.name).exists():
            with replacing(folder / entry.name) as partial:
                (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, partial)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_LEAST_FREE = 2**16  # bytes, below which a failed write is taken to have failed for that


def _lack(error: Exception, folder: Path) -> str | None:
    """What a body that failed lacked, if it was disk or memory; the libraries say it variously."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        return os.strerror(error.errno)
    for number in _FULL:
        if f"(os error {number})" in text:  # as Rust's libraries have it
            return os.strerror(number)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "not enough memory" in text:
        return "out of memory"
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        return os.strerror(errno.ENOSPC)
    return None


def _remove_empty(folders: list[Path]) -> None:
    """Remove these folders, each within the next one, as far as there is nothing in them."""
    for folder in folders:
        if not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON-able value or a pydantic model to `path` atomically."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


class _GivenTwiceError(Exception):
    """A key stands twice in one JSON object, and one of the values would be lost."""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _GivenTwiceError(repr(key))
        found[key] = value
    return found


def read_json(path: Path) -> Any:
    """Read JSON from `path`.

    Raises:
        UserError: the file is missing, is not JSON, or gives a key twice.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
    except _GivenTwiceError as error:
        raise UserError(f"{path}: {error} is given twice; give it once") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a JSON file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON, line {error.lineno}: {error.msg}") from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def read_model(path: Path, kind: type[Model], *, strict: bool = False) -> Model:
    """Read `path` and validate it as the pydantic model `kind`.

    Args:
        strict: take no text for a number, nor a number for text.

    Raises:
        UserError: naming the file and the path of the offending field.
    """
    return validate(kind, read_json(path), where=str(path), strict=strict)


def validate(kind: type[Model], value: Any, where: str, *, strict: bool = False) -> Model:
    """Validate `value` as `kind`; a failure names `where` and the field's path in one line.

    Raises:
        UserError: `value` does not fit.
    """
    try:
        if strict:  # the strict rules for JSON allow a list where the model has a tuple
            return kind.model_validate_json(json.dumps(value), strict=True)
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        more = error.error_count() - 1
        rest = f" (and {more} more)" if more else ""
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = _unknown_key(kind, first["loc"])
        elif first["type"] == "literal_error":
            message = f"{first['input']!r} is unknown: {message[0].lower()}{message[1:]}"
        if field:
            message = f"{field}: {message}"
        raise UserError(f"{where}: {message}{rest}") from None


def _unknown_key(kind: type[BaseModel], path: tuple[int | str, ...]) -> str:
    """What to say of a key that the model at that path does not have."""
    *parts, key = path
    models, among = [kind], False
    for part in parts:
        if among:  # a number or a key, of one among many
            among = False
            continue
        found = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if found:  # else it is the tag of a union
            models = [model for annotation in found for model in _models_in(annotation)]
            among = any(map(_holds_many, found))
    known = list(dict.fromkeys(name for model in models for name in model.model_fields))
    alike = difflib.get_close_matches(str(key), known, n=1)
    if alike:
        return f"unknown key; did you mean {alike[0]!r}?"
    return f"unknown key; known are {', '.join(known)}" if known else "unknown key"


def _holds_many(annotation: Any) -> bool:
    """Whether a field holds a list or a dict of what its annotation names, if anything."""
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, (list, tuple, dict)):
        return True
    return any(_holds_many(part) for part in get_args(annotation))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's annotation names: `X`, `X | None`, `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
