"""The simulated engine's faults: "kind@trial:tick" or "kind@trial:tick:attempt" (from 0)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import NoReturn

from trials.contract import InputError

FATAL = ("crash", "segfault", "exit", "hang")  # take the worker down
FAULTS = ("crash", "exit", "segfault", "hang", "oom", "nan", "exception")


def planned(faults: Iterable[str], trial: int, tick: int, attempt: int) -> str | None:
    """The kind of fault that comes here, or null."""
    for fault in faults:
        kind, _, where = fault.partition("@")
        place = tuple(int(part) for part in where.split(":"))
        if (trial, tick, attempt)[: len(place)] == place:
            return kind
    return None


def take_down(kind: str) -> NoReturn:
    """What the memory killer, a native crash, a sudden exit and a hung kernel look like."""
    sys.stdout.flush()
    while kind == "hang":
        time.sleep(3600)
    if kind != "exit":
        os.kill(os.getpid(), signal.SIGKILL if kind == "crash" else signal.SIGSEGV)
    os._exit(3)


def check(fault: str) -> None:
    """Raises `InputError` for what is no fault."""
    kind, _, where = fault.partition("@")
    parts = where.split(":")
    if kind not in FAULTS or len(parts) not in (2, 3) or not all(p.isdigit() for p in parts):
        raise InputError(
            f"engine.faults: {fault!r} is not kind@trial:tick[:attempt]. "
            f"Kinds: {', '.join(FAULTS)}."
        )
