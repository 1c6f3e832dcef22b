"""A base's files are read once, and again when they have changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from trials.base import digests
from trials.base.digests import digest

OLD = 1_700_000_000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file that was last changed long ago."""
    monkeypatch.setenv("QLORA_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 3)
    return written(tmp_path / "weights", b"abc")


def written(path: Path, contents: bytes, at: float = OLD) -> Path:
    path.write_bytes(contents)
    os.utime(path, (at, at))
    return path


def sha(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def test_a_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest(file)
    monkeypatch.setattr(digests, "_read", None)
    assert digest(file) == first == sha(b"abc")


@pytest.mark.parametrize("contents", [b"abd", b"abcd", b"ab"])
def test_a_changed_one_is_read_again(file: Path, contents: bytes) -> None:
    digest(file)
    assert digest(written(file, contents)) == sha(contents)  # even at the same time of change
    file.unlink()
    assert digest(written(file, b"abe")) == sha(b"abe")


def test_one_that_may_still_change_is_not_remembered(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"new")
    assert digest(file) == sha(b"new")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_memory_is_none(file: Path, tmp_path: Path) -> None:
    digest(file)
    (remembered,) = (tmp_path / "cache" / "digests").iterdir()
    remembered.write_text("")  # as a crash of the machine may leave it
    assert digest(file) == sha(b"abc") == remembered.read_text()


def test_without_a_cache_it_is_read_each_time(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert digest(file) == digest(file) == sha(b"abc")
