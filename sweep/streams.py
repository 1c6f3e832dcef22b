"""Standard output and error that may be closed, full or gone: no reason to lose a trial.

Only the standard library, so that the command line can use it before anything is loaded.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, Any


class Steady:
    """A stream whose first failure is told once on standard error; what follows is dropped.

    `stream` null: the process has none (`>&-`), which is a failure of its own. `told` is what that
    means; without it this is a page, whose reader may have seen enough and is told nothing.
    """

    def __init__(self, stream: IO[str] | None, told: str | None = None) -> None:
        self._stream, self._told, self._lost = stream, told, False
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # one without block characters shows "?"
        if stream is None:
            self._lose("it is closed")

    def write(self, text: str) -> int:
        """As a text stream's, but it never fails."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """As a text stream's, but it never fails."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether somebody sees it at once."""
        with contextlib.suppress(ValueError):
            return not self._lost and self._stream is not None and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method: str, *arguments: str) -> None:
        if self._lost:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:
            self._lose(getattr(error, "strerror", None) or str(error), error)

    def _lose(self, why: str, error: Exception | None = None) -> None:
        self._lost = True
        if self._stream is not None and self._stream is sys.stdout:
            _silence(self._stream)
        enough = self._told is None and isinstance(error, BrokenPipeError)
        if not enough:
            told = self._told or "what it should have got is not whole"
            tell(f"Standard output cannot be written to ({why}); {told}.")


def hold() -> None:
    """Puts nothing where a standard stream is closed, or the next pipe would take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def goodbye() -> str:
    """The last line of a run that is cut short, behind what shows the cursor that a table hid."""
    shown = "\x1b[?25h" if os.isatty(2) else ""
    return f"{shown}sweep: interrupted; the same command goes on"


def tell(text: str) -> None:
    """A line on standard error, if there is one."""
    if sys.stderr is None:
        return  # print() would take standard output instead
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _silence(sys.stderr)


def _silence(stream: IO[str]) -> None:
    """Sends what the stream still holds nowhere: Python flushes it at the end, and would fail."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
