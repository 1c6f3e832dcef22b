"""Data sets that come from a W&B Artifact: `data.path=wandb:entity/project/name:v4`.

The driver's side downloads them, before a worker prepares, to where `downloaded` finds them.
"""

from __future__ import annotations

import re
from pathlib import Path

from trials.cached import cache_dir
from trials.contract import InputError

ARTIFACT = "wandb:"
_PART = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
REFERENCE = re.compile(rf"{ARTIFACT}({_PART})/({_PART})/({_PART}):({_PART})")


def artifact_parts(reference: str, key: str) -> tuple[str, str, str, str]:
    """Entity, project, name and version or alias. Raises InputError for what cannot be one."""
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise InputError(
            f"{key}={reference} is not a W&B Artifact. Type {key}=wandb:entity/project/name:v4, "
            "as its page there says (:latest for the newest)."
        )
    return found[1], found[2], found[3], found[4]


def artifact_folder(reference: str, key: str) -> Path:
    """Where an Artifact's files belong on this machine, there or not."""
    return cache_dir().joinpath("wandb", *artifact_parts(reference, key))


def downloaded(reference: str, key: str) -> Path:
    """The folder with an Artifact's files. Raises InputError where they are not there."""
    folder = artifact_folder(reference, key)
    if not folder.is_dir():
        raise InputError(
            f"{key}={reference}: it is not on this machine (in {folder}). "
            f"Type python -m sweep.tracking --fetch {reference}"
        )
    return folder
