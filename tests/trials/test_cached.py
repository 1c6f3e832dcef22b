"""The user's cache: where it is, and what else is kept there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trials.cached import keep_compiled

NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No place is named yet for what is compiled, and none stays named."""
    monkeypatch.setenv("QLORA_SWEEP_CACHE", str(tmp_path / "cache"))
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_what_is_compiled_is_kept_in_the_cache(tmp_path: Path) -> None:
    keep_compiled()
    places = [Path(os.environ[name]) for name in NAMES]
    assert all(place.is_dir() and tmp_path / "cache" in place.parents for place in places)
    assert places[0] != places[1]


def test_a_place_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/fast/disk")
    keep_compiled()
    assert os.environ["TRITON_CACHE_DIR"] == "/fast/disk"


def test_a_cache_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    keep_compiled()
    assert not set(NAMES) & set(os.environ)
