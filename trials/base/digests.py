"""A large file's SHA-256, remembered in the user's cache for as long as the file stays as it is.

Reading the weights of a large base takes many seconds, and every worker wants to know them.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from trials.cached import cache_dir, keep

LARGE = 2**26  # bytes
DIGEST = re.compile("[0-9a-f]{64}")
SETTLED_S = 2.0  # since its last change: within a file system's grain a second one does not show


def digest(path: Path) -> str:
    """The hex digest of a file's contents."""
    before = path.stat()
    if before.st_size < LARGE:
        return _read(path)
    known = _known(path, before)
    with suppress(OSError, UnicodeDecodeError):
        if DIGEST.fullmatch(found := known.read_text(encoding="ascii")):
            return found
    made = _read(path)
    if _known(path, path.stat()) == known and time.time() - before.st_mtime > SETTLED_S:
        keep(known, lambda place: place.write_text(made, encoding="ascii"))
    return made


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known(path: Path, now: os.stat_result) -> Path:
    """Where its digest is kept: another file, or a changed one, has another place."""
    facts = (path.resolve(), now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    name = hashlib.sha256(repr(tuple(map(str, facts))).encode()).hexdigest()
    return cache_dir() / "digests" / name
