"""Where a base comes from: pinned, complete, and in safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bases import load, silent

from trials.base import load_base
from trials.contract import InputError, ModelConfig


def test_a_hub_name_is_pinned_to_its_commit(
    monkeypatch: pytest.MonkeyPatch, demo_copy: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = demo_copy.rename(demo_copy.parent / commit)
    said: list[tuple[str, int, int]] = []

    def download(name: str, *, revision: str | None, tqdm_class: Any, **options: Any) -> str:
        bar = tqdm_class(desc="Reconstructing", unit="B", total=10)
        bar.update(10)
        bar.refresh()
        assert name == "some/base" and revision in (None, commit)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    base = load_base(ModelConfig(name="some/base"), "cpu", lambda *step: said.append(step))
    assert (base.config.name, base.config.revision) == ("some/base", commit)
    assert ("downloading the base", 10, 10) in said
    assert load_base(base.config, "cpu", silent).config == base.config


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "gated.*hf auth login"),
        ("RepositoryNotFoundError", "no such name"),
        ("RevisionNotFoundError", "no revision"),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    from huggingface_hub import errors

    refusal = getattr(errors, error)

    def refuse(*args: Any, **options: Any) -> str:
        raise refusal.__new__(refusal)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(InputError, match=message):
        load(name="some/base")
