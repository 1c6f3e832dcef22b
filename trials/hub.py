"""The model hub: a pinned snapshot with its progress, and its errors in words."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]  # what, done, total (0 when unknown)
# Subfolders ("original/", "onnx/") hold other formats; Mistral's consolidated weights are a copy.
ELSEWHERE = ("*/*", "consolidated*")


def snapshot(
    name: str, revision: str | None, patterns: tuple[str, ...], progress: Progress
) -> Path:
    """The folder of a model's files at a commit, downloaded unless the user's cache has them.

    Raises what the hub's client raises; `hub_reason` puts it in words.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(
        name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ELSEWHERE),
        tqdm_class=_bar(progress),
    ))


def hub_reason(error: Exception, revision: str | None) -> str:
    """What went wrong at the hub and what to type, for any error that its client raises."""
    from huggingface_hub import errors

    login = "log in with `hf auth login` (or set HF_TOKEN)"
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated. Accept its terms on its page at the hub, then {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}. Leave the revision out to take the newest."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub knows no such name. Check the spelling; if it is private, {login}."
    return (
        "it is not in this machine's cache and the hub did not answer. Check the network and "
        f"HF_HUB_OFFLINE, or name something local. The client said: {in_short(error)}"
    )


def in_short(error: Exception) -> str:
    """A library's message on one line, of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."


def _bar(progress: Progress) -> Any:
    """A tqdm class that draws nothing and passes the bytes on."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def display(self, *args: Any, **options: Any) -> None:
            # Of the client's several bars, the one of bytes that are on disk.
            if self.unit == "B" and "econstruct" in (self.desc or "") and self.total:
                progress("downloading the base", int(self.n), int(self.total))

    return Bar
