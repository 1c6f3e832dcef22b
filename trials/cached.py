"""The user's cache directory: all in it may be made again, so what cannot be kept is no error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def cache_dir() -> Path:
    """The directory; QLORA_SWEEP_CACHE names another one."""
    if named := os.environ.get("QLORA_SWEEP_CACHE"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("qlora-sweep"))


def keep(place: Path, write: Callable[[Path], object]) -> None:
    """Has a file of the cache written aside, and renames it: it appears complete or not at all."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as aside:  # gone if the disk is full
            written = Path(aside) / place.name
            write(written)
            written.replace(place)


def keep_compiled() -> None:
    """Has what is compiled for a device kept here, but for what the user has a place for.

    torch's own place is gone when the machine restarts, and whether Triton's kernels go there too
    depends on what was already kept: kernels compiled once would be looked for in another place.
    """
    place = cache_dir() / "compiled"
    for name, folder in (("TORCHINDUCTOR_CACHE_DIR", "torch"), ("TRITON_CACHE_DIR", "triton")):
        with suppress(OSError):
            (place / folder).mkdir(parents=True, exist_ok=True)
            if os.access(place / folder, os.W_OK):
                os.environ.setdefault(name, str(place / folder))
