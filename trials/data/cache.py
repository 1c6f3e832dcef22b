"""Tokenised data on disk, in the user's cache directory: never pickled.

A file that cannot be read is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trials.cached import cache_dir, keep

Arrays = dict[str, NDArray[Any]]


def key(**parts: Any) -> str:
    """A name for what follows from these parts (JSON values)."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(name: str) -> tuple[dict[str, Any], Arrays] | None:
    """The facts and arrays stored under a name; None if there are none or they are damaged."""
    try:
        with _file(name).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {field: stored[field] for field in stored.files}
        return json.loads(arrays.pop("facts").tobytes()), arrays
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None


def save(name: str, facts: dict[str, Any], arrays: Arrays) -> None:
    """Stores facts (JSON values) and arrays; a directory that cannot be written is no error."""
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    keep(_file(name), lambda place: np.savez(place, facts=text, **arrays))  # type: ignore[arg-type]


def _file(name: str) -> Path:
    return cache_dir() / "tokenised" / f"{name}.npz"
