"""`results/<study>/logs/sweep.log`: what a terminal without a live table would have said, kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import IO, Any

from sweep.observers import Closed, Opened
from sweep.observers.console import PlainConsole, log_file
from trials.contract import Report, TrialConfig, TrialResult, Verdict


class Log:
    """Plain lines in a file, added to by each run of the study; any thread may note one."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._lines: PlainConsole | None = None
        self._writing = threading.RLock()  # a note comes at any time, also as the file is closed

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Nothing is written before the study is open."""

    def opened(self, opened: Opened) -> None:
        """Opens the file."""
        path = log_file(opened.config)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._lines = PlainConsole(opened.config, self._file)
        self._lines.opened(opened)

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """See `PlainConsole`, here and below."""
        if self._lines:
            self._lines.started(trial, params, worker)

    def reported(self, report: Report, verdict: Verdict) -> None:
        """A tick and its loss."""
        if self._lines:
            self._lines.reported(report, verdict)

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """A trial's outcome."""
        if self._lines:
            self._lines.finished(trial, result)

    def closed(self, closed: Closed) -> None:
        """The leaderboard, and the end of the file."""
        if self._lines:
            self._lines.closed(closed)
        self.stop()

    def note(self, text: str) -> None:
        """A line that is no event; after the end of the file nobody reads it."""
        with self._writing:
            if self._lines:
                self._lines.note(text)

    def stop(self) -> None:
        """Closes the file."""
        with self._writing:
            self._lines = None
            if self._file is not None:
                self._file.close()
