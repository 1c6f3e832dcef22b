"""The host's memory as this process may have it: the limit of a container or a job counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Files:
    """What a version of Linux's control groups calls things."""

    limit: str
    used: str
    cache: str  # in memory.stat: of `used` what is given back when it is needed


FILES = (
    Files("memory.max", "memory.current", "inactive_file"),
    Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def total_bytes() -> int:
    """All that there is, or the least limit."""
    limits = [limit for limit, _ in _limits()]
    return int(min([psutil.virtual_memory().total, *limits]))


def free_bytes() -> int:
    """What is still to be had."""
    left = [limit - used for limit, used in _limits()]
    return int(max(0, min([psutil.virtual_memory().available, *left])))


def _limits() -> Iterator[tuple[int, int]]:
    """Of each control group that this process is in: what it may hold, and what it holds."""
    for folder in _folders():
        for files in FILES:
            with suppress(OSError, ValueError, KeyError):  # not this version, or without a limit
                lines = (folder / "memory.stat").read_text().splitlines()
                cache = int(dict(line.split() for line in lines)[files.cache])
                limit, used = (int((folder / name).read_text())
                               for name in (files.limit, files.used))
                yield limit, used - cache


def _folders() -> Iterator[Path]:
    """From the innermost group out; within a container its own is the root."""
    try:
        lines = GROUP.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, told = line.partition(":")
        kinds, _, path = told.partition(":")
        if not kinds or "memory" in kinds.split(","):
            root = GROUPS / ("memory" if kinds else "")
            inner = root / path.lstrip("/")
            yield from (each for each in (inner, *inner.parents) if each.is_relative_to(root))
