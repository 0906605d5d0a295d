"""Artifacts are written whole or not at all, and a full disk is told in one line."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from hwnas.errors import HwnasError, UserError
from hwnas.files import (
    check_writable,
    copy_missing,
    filling,
    replacing,
    validate,
    write_text,
)

EXPORT = ("--target", "openvino:cpu:threads=1,batch=1,seq=16")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 900 kB, which a model's folder fits in, and its ONNX export does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small BERT of half a megabyte, with a tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    from hwnas.export import save_model

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(3000))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=64)
    save_model(BertForSequenceClassification(config), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path, model: Path) -> None:
    out = small_disk / "new" / "out"
    command = [sys.executable, "-m", "hwnas", "export", str(model), "--out", str(out), *EXPORT]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        f"hwnas: {out / 'onnx'}: cannot be written (No space left on device); nothing is kept of it"
    )
    assert "Traceback" not in ended.stderr
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(small_disk: Path) -> None:
    kept = small_disk / "kept.json"
    write_text(kept, "old")
    with pytest.raises(UserError, match=r"kept\.json: cannot be written \(No space left"):
        write_text(kept, "new" * 10**6)
    assert kept.read_text() == "old"
    assert list(small_disk.iterdir()) == [kept]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (MemoryError(), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (RuntimeError("I/O error: File too large (os error 27)"), "File too large"),
    ],
)
def test_what_was_lacking_is_named(tmp_path: Path, error: Exception, said: str) -> None:
    with pytest.raises(UserError, match=said), replacing(tmp_path / "a" / "b" / "out"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seven"), replacing(tmp_path / "out"):
        raise ValueError("seven")


def test_errors_name_the_place_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(HwnasError) as caught, replacing(tmp_path / "out") as partial:
        raise HwnasError(f"{partial / 'onnx'}: is bad")
    assert str(caught.value) == f"{tmp_path / 'out' / 'onnx'}: is bad"


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_filled_with_all_or_nothing(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        write_text(out / "mine", "mine")
    with pytest.raises(ValueError, match="stop"), filling(out) as partial:
        write_text(partial / "one", "1")
        raise ValueError("stop")
    assert out.exists() == there
    with filling(out) as partial:
        write_text(partial / "one", "1")
        write_text(partial / "two" / "three", "3")
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert found == {"one", "two/three", *(["mine"] if there else [])}


def test_what_is_missing_is_copied_and_nothing_else(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "new" / "folder"
    copy_missing(source, folder)
    assert not folder.parent.exists()
    write_text(source / "model" / "weights", "theirs")
    write_text(source / "note", "theirs")
    write_text(source / ".note.partial-1", "half")
    write_text(folder / "note", "ours")
    copy_missing(source, folder)
    assert (folder / "note").read_text() == "ours"
    assert (folder / "model" / "weights").read_text() == "theirs"
    assert sorted(entry.name for entry in folder.iterdir()) == ["model", "note"]


def test_where_a_file_cannot_be_written_is_said_before_it_is_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "table.json")
    with pytest.raises(UserError, match="is a folder; name a file"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder"):
        check_writable(tmp_path / "file" / "table.json")
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_text(tmp_path, "table")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    budget: str = ""


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    plain: Inner = Inner()
    maybe: Inner | None = None
    several: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"plain": {"buget": ""}}, "plain.buget"),
        ({"maybe": {"buget": ""}}, "maybe.buget"),
        ({"several": [{}, {"buget": ""}]}, "several.1.buget"),
        ({"named": {"budget": {"buget": ""}}}, "named.budget.buget"),
    ],
)
def test_the_nearest_key_is_named_wherever_it_stands(value: Any, path: str) -> None:
    with pytest.raises(UserError, match=rf"^here: {path}: unknown key; did you mean 'budget'\?"):
        validate(Outer, value, where="here")
