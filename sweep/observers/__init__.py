"""Who watches a sweep. Every step is shown to every observer; a failing one costs no trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sweep.config import SweepConfig
from sweep.secrets import masked
from sweep.store import TrialRecord
from sweep.store.runs import Used
from sweep.streams import tell
from trials.contract import Report, Setup, TrialConfig, TrialResult, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """The study is open: what it is, what the worker found, and what earlier runs left."""

    config: SweepConfig
    study_uuid: str
    setup: Setup
    first_rung: int  # tick at which the pruner first decides
    past: Sequence[TrialRecord]  # trials of earlier runs, finished or to be continued
    used: Used = Used()  # by earlier runs
    devices: int = 1  # of this run


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """The run is over: with all trials of the study, or for a reason."""

    complete: bool
    reason: str
    records: Sequence[TrialRecord]
    more: str | None = None  # what to type besides, to go on: n_trials=24
    used: Used | None = None  # by all runs


class Observer(Protocol):
    """Sees a sweep; called in the driver's process, must return quickly."""

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Long work before the first trial; `total` 0 when unknown."""

    def opened(self, opened: Opened) -> None:
        """Once, before the first trial of this run."""

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """A worker took a trial; `params` are the searched values by name ("lora.r")."""

    def reported(self, report: Report, verdict: Verdict) -> None:
        """A trial reached a tick and got this answer."""

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """A trial ended, and the storage has it."""

    def closed(self, closed: Closed) -> None:
        """Once, at the end of this run, even after an error or Ctrl-C."""


class Observers:
    """All observers as one. One that raises is reported in a line, once, and sees nothing more.

    After an OSError it is kept, for a disk may have room again. One that is dropped has its method
    `stop` called, if it has one, to give back a terminal or a process.
    """

    def __init__(
        self, observers: Sequence[Observer], note: Callable[[str], None] | None = None
    ) -> None:
        self._observers = list(observers)
        self._said: set[tuple[int, int | None]] = set()
        self._note = note or tell

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """See `Observer`."""
        self._show(lambda observer: observer.progress(worker, what, done, total))

    def opened(self, opened: Opened) -> None:
        """See `Observer`."""
        self._show(lambda observer: observer.opened(opened))

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """See `Observer`."""
        self._show(lambda observer: observer.started(trial, params, worker))

    def reported(self, report: Report, verdict: Verdict) -> None:
        """See `Observer`."""
        self._show(lambda observer: observer.reported(report, verdict))

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """See `Observer`."""
        self._show(lambda observer: observer.finished(trial, result))

    def closed(self, closed: Closed) -> None:
        """See `Observer`."""
        self._show(lambda observer: observer.closed(closed))

    def note(self, text: str) -> None:
        """A line for the user that is no event: a worker started anew, an observer dropped."""
        try:
            self._note(masked(text))
        except Exception:  # the console itself is broken
            self._note = tell
            self._note(masked(text))

    def stop(self) -> None:
        """Nobody waits for the end of what they do."""
        for observer in self._observers:
            stop(observer)

    def _show(self, step: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                step(observer)
            except OSError as error:  # a full disk, a folder that is gone: it may come back
                if (what := (id(observer), error.errno)) not in self._said:
                    self._said.add(what)  # though each time for another file
                    self.note(f"{type(observer).__name__} failed for now: {error}")
            except Exception as error:
                self._observers.remove(observer)
                stop(observer)
                why = f"{type(error).__name__}: {error}"
                self.note(f"{type(observer).__name__} failed and is left out: {why}")


def build_observers(config: SweepConfig) -> Observers:
    """The observers of a sweep. The terminal says its first line now; nothing is written yet."""
    from sweep.observers.console import build_console
    from sweep.observers.dashboard import Dashboard
    from sweep.observers.files import Files
    from sweep.observers.log import Log
    from sweep.observers.report import ReportPage

    console, log = build_console(config), Log()

    def note(text: str) -> None:
        console.note(text)
        with suppress(OSError):  # a full disk; the terminal has said it
            log.note(text)

    observers: list[Observer] = [Files(), log, console, ReportPage(note), Dashboard(note)]
    if config.tracking.names:
        from sweep.tracking.observer import Tracking

        # after the leaderboard: their end may take long
        observers += [Tracking(name, note) for name in config.tracking.names]
    return Observers(observers, note=note)


def stop(observer: Observer) -> None:
    """Has an observer give back what it holds, a terminal or a process; it never raises."""
    try:
        getattr(observer, "stop", lambda: None)()
    except Exception:
        pass  # it is reported already
