"""Optuna's dashboard: notes and artifacts, written beside the sweep by a thread of the driver's.

What is shown is read from our tables, so an event says only which trial has ended, and what a
killed driver left undone the next one does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

from sweep.observers import Closed, Opened
from sweep.secrets import masked
from sweep.store.database import words
from sweep.study.guard import database_error, passing
from trials.contract import Report, TrialConfig, TrialResult, Verdict

CLOSE_TIMEOUT_S = 30.0  # for what is still to be written at the end
PAUSE_S = 1.0  # before a database that could not be used is tried again
Step = Callable[[], None]


class Dashboard:
    """Tells a thread what to write; every method but `closed` returns at once."""

    def __init__(
        self, note: Callable[[str], None], close_timeout_s: float = CLOSE_TIMEOUT_S
    ) -> None:
        self._note, self._close_timeout_s = note, close_timeout_s
        self._steps: SimpleQueue[int | None] = SimpleQueue()  # trials; None: the end
        self._thread: threading.Thread | None = None
        self._closing = self._stopped = False

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Nothing is written before the study is open."""

    def opened(self, opened: Opened) -> None:
        """Starts the thread, which first does what an earlier run left undone."""
        self._thread = threading.Thread(target=self._run, args=(opened,), daemon=True)
        self._thread.start()

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """The dashboard shows this by itself."""

    def reported(self, report: Report, verdict: Verdict) -> None:
        """The dashboard shows this by itself."""

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """The trial's page is due."""
        self._steps.put(trial.number)

    def closed(self, closed: Closed) -> None:
        """Waits for what is left, but not for long: the next run does the rest."""
        self._closing = True
        self._steps.put(None)
        if self._thread is None:
            return
        try:
            self._thread.join(self._close_timeout_s)
        except KeyboardInterrupt:  # a user who does not want to wait
            pass
        if self._thread.is_alive():
            self.stop()
            self._note("Not all notes of the dashboard are written; the same command does it.")

    def stop(self) -> None:
        """Leaves the rest undone."""
        self._stopped = True
        self._steps.put(None)

    def _run(self, opened: Opened) -> None:
        """Whatever a database that was away has missed is found anew: it may all be done twice."""
        while not self._stopped:
            last = self._closing
            try:
                self._write(opened)
                return
            except Exception as error:
                if last or not passing(error):
                    known = database_error(error)
                    said = words(known) if known else f"{type(error).__name__}: {error}"
                    why = masked(said.splitlines()[0])
                    self._note(f"The dashboard's notes and artifacts are left out: {why}")
                    return
            time.sleep(PAUSE_S)
            if self._closing:
                self._steps.put(None)  # the one that there was may have been taken

    def _write(self, opened: Opened) -> None:
        from sweep.dashboard.pages import Pages

        pages = Pages(opened.config, opened.setup, opened.study_uuid)
        try:
            pages.catch_up()
            while (number := self._steps.get()) is not None and not self._stopped:
                pages.trial(number)
            if not self._stopped:
                pages.study()
        finally:
            pages.close()
