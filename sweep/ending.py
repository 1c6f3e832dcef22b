"""How a run of a sweep ends: the exit codes, and why no more trials are handed out."""

from __future__ import annotations

from dataclasses import dataclass

COMPLETE = 0
FAILED = 1
BAD_INPUT = 2
BUDGET = 3
INTERRUPTED = 130  # as shells say it


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """An exit code and its reason; `more` is what to type besides, to go on."""

    code: int
    reason: str
    more: str | None = None  # n_trials=24
