"""Processes by their host, their number there, and when they started."""

from __future__ import annotations

import socket
import sys

import psutil  # type: ignore[import-untyped]

SAME_S = 0.5  # between two readings of when one process started


def started(pid: int) -> float:
    """When a process started; on Linux since the boot, so that no clock set anew changes it."""
    at: float = psutil.Process(pid).create_time()
    return at - psutil.boot_time() if sys.platform == "linux" else at


def lives(host: str, pid: int, since: float) -> bool | None:
    """Whether the process that started then still lives; None: it is of another host.

    One that has ended counts as dead even if nobody has asked how, as in containers without init.
    """
    if host != socket.gethostname():
        return None
    try:
        same = abs(started(pid) - since) < SAME_S  # the number may be another's by now
        return same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
