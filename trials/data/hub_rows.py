"""Reads rows of a data set on the hub, pinned to a commit; none of its code is ever run."""

from __future__ import annotations

from typing import Any

from trials.contract import DataConfig, InputError
from trials.data.rows import Row, Source
from trials.hub import hub_reason, in_short
from trials.quiet import quiet

ANSWER_S = 10  # how long the hub may take to name a commit


def find_on_hub(data: DataConfig, path: str, split: str, key: str) -> Source:
    """The source of a hub data set's split. Raises InputError where the hub does not give it."""
    own = key == "data.path"
    revision = _commit(path, data.revision if own else None, key)
    name = data.name if own else None
    return Source(
        lambda: _rows(path, name, split, revision, key),
        f"hub {path} {name} {split} {revision}",
        f"{key}={path} ({split})",
        path,
        revision,
    )


def _commit(path: str, revision: str | None, key: str) -> str:
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(path, revision=revision, timeout=ANSWER_S).sha
    except Exception as error:
        commit = revision or _cached_commit(path)
        if commit is None:
            reason = hub_reason(error, revision)
            raise InputError(f"{key}={path}: no such file or folder here, and as a hub data set: "
                             f"{reason}") from error
    assert commit is not None  # the hub names a commit for whatever it knows
    return commit


def _cached_commit(path: str) -> str | None:
    """The commit that `main` was when this data set was last fetched."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(path, repo_type="dataset", local_files_only=True)
    except Exception:
        return None
    return folder.replace("\\", "/").rsplit("/", 1)[-1]


def _rows(path: str, name: str | None, split: str, revision: str, key: str) -> list[Row]:
    import datasets

    with quiet():
        datasets.disable_progress_bars()
        try:
            rows: Any = datasets.load_dataset(path, name, split=split, revision=revision)
        except Exception as error:
            raise InputError(_reason(error, path, split, key)) from error
    listed: list[Row] = rows.to_list()
    if not listed:
        raise InputError(f"{key}={path}: its split {split!r} is empty.")
    return listed


def _reason(error: Exception, path: str, split: str, key: str) -> str:
    """The library names the splits and configurations that there are; what to type is ours."""
    text = in_short(error)
    if "scripts are no longer supported" in text:
        hint = "It needs code of its own, which is never run here; export it to JSONL or Parquet."
    elif "split" in text.lower():
        hint = "Type data.split=..."
    elif "config" in text.lower():
        hint = "Type data.name=..."
    else:
        hint = "Check the name and the network, or name a local file."
    return f"{key}={path} ({split}): {text} {hint}"
