"""The driver's side of a tracker: an observer that only says which trial has changed.

A tracker's client can block for minutes, raise or be killed; here it can do none of that to the
sweep, because all of it happens in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from sweep.config import SweepConfig
from sweep.observers import Closed, Opened
from sweep.results.summary import DEFAULT_STORAGE, quoted, typed
from sweep.tracking import NAMES
from sweep.tracking.feed import Feed
from trials.contract import Report, TrialConfig, TrialResult, Verdict

CLOSE_TIMEOUT_S = 30.0  # for what is still to be written or uploaded at the end


def command(config: SweepConfig) -> str:
    """What to type to bring the trackers of a study up to date."""
    storage = typed(config.storage)
    where = "" if storage == DEFAULT_STORAGE else f" --storage {quoted(storage)}"
    return f"python -m sweep.tracking {quoted(config.study)}{where}"


class Tracking:
    """Shows the sweep to one tracker. `tracking.close_timeout_s` bounds its end, in seconds."""

    def __init__(self, tracker: str, note: Callable[[str], None]) -> None:
        self._tracker, self._name = tracker, NAMES[tracker]
        self._user, self._said = note, set[str]()
        self._opened: Opened | None = None
        self._feed: Feed | None = None
        self._unsent = False

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Nothing to show before there is a study."""

    def opened(self, opened: Opened) -> None:
        """Starts the process."""
        self._opened = opened
        self._start()

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """A trial begins, or goes on in a later attempt."""
        self._changed(trial.number)

    def reported(self, report: Report, verdict: Verdict) -> None:
        """A trial has a curve and a tick more."""
        self._changed(report.trial)

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """A trial has its result."""
        self._changed(trial.number)

    def closed(self, closed: Closed) -> None:
        """Waits for what is still on its way, but not for long."""
        if self._opened is None:
            return
        if self._feed is None or self._feed.broken:
            # Once more, for what it missed; after a breakdown with less that can go wrong.
            self._start(**({"mode": "offline"} if self._feed else {}))
        assert self._feed is not None
        self._feed.put({"closed": True})
        limit = self._opened.config.tracking.options.get("close_timeout_s")
        began = time.monotonic()
        done = self._feed.close(CLOSE_TIMEOUT_S if limit is None else limit)
        waited = f"{time.monotonic() - began:.0f} s"
        if not done:
            self._note(f"{self._name} was not done after {waited} and was ended. {self._later}")
        elif self._unsent:
            self._note(f"{self._name} has not got everything. {self._later}")

    def stop(self) -> None:
        """Ends the process without waiting for it."""
        if self._feed is not None:
            self._feed.stop()

    def _start(self, **options: Any) -> None:
        assert self._opened is not None
        config = self._opened.config
        log = config.study_dir / "logs" / f"{self._tracker}.log"
        self._feed = Feed("sweep.tracking.process", self._name, log, self._note, self._answered)
        self._feed.put({
            "tracker": self._tracker, "storage": config.storage, "uuid": self._opened.study_uuid,
            "folder": str(config.study_dir), "options": {**config.tracking.options, **options},
        })  # fmt: skip

    def _changed(self, number: int) -> None:
        if self._feed is not None:
            self._feed.put({"trial": number})

    @property
    def _later(self) -> str:
        assert self._opened is not None
        return f"To write the rest at any time: {command(self._opened.config)}"

    def _answered(self, answer: Mapping[str, Any]) -> None:
        self._unsent = self._unsent or "unsent" in answer
        if "view" in answer:
            self._note(f"{self._name}: {answer['view']}")
        if "note" in answer:
            self._note(str(answer["note"]))

    def _note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._user(text)
