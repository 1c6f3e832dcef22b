"""What answers workers, and that bound to one worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sweep.ending import Ending
from trials.contract import Driver, Report, Setup, TrialConfig, TrialResult, Turn, Verdict


class Answering(Protocol):
    """What executors and workers may ask: the sweep's driver, or a dry run's."""

    devices: int  # held by the run
    workers: int  # that share the trials
    most_behind: int  # changes that may wait until `catch_up`

    @property
    def ending(self) -> Ending | None:
        """Why no more trials are handed out; null while they are."""

    @property
    def is_open(self) -> bool:
        """Whether a worker has prepared."""

    @property
    def note(self) -> Callable[[str], None]:
        """Says a line to the user."""

    def connect(self, worker: str) -> Driver:
        """What this worker talks to."""

    def holds_trials(self, worker: str) -> bool:
        """Whether a worker owes results."""

    def lost(self, worker: str, reason: str, *, memory: bool = False) -> None:
        """A worker is gone; `memory`: the host had none left for it."""

    def gave_up(self, worker: str, why: str) -> None:
        """A worker is gone for good; others go on."""

    def beat(self) -> None:
        """Called often, also while no worker says anything."""

    def catch_up(self) -> bool:
        """Called while nobody waits for an answer; False: there was nothing left to do."""

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """See `trials.contract.Driver`, here and below."""

    def alive(self, worker: str, number: int, attempt: int) -> Verdict:
        """Between two ticks."""

    def prepared(self, worker: str, setup: Setup) -> None:
        """A worker is ready."""

    def next_trial(self, worker: str) -> TrialConfig | Turn:
        """A worker asks for work."""

    def report(self, worker: str, report: Report) -> Verdict:
        """A tick."""

    def finish(self, worker: str, result: TrialResult) -> None:
        """A trial's end."""


class Connection:
    """What `trials.contract.Driver` says, in this worker's name."""

    def __init__(self, driver: Answering, worker: str) -> None:
        self._driver, self._worker = driver, worker

    def progress(self, what: str, done: int, total: int) -> None:
        self._driver.progress(self._worker, what, done, total)

    def note(self, text: str) -> None:
        self._driver.note(f"{self._worker}: {text}")

    def alive(self, trial: int, attempt: int) -> Verdict:
        return self._driver.alive(self._worker, trial, attempt)

    def prepared(self, setup: Setup) -> None:
        self._driver.prepared(self._worker, setup)

    def next_trial(self) -> TrialConfig | Turn:
        return self._driver.next_trial(self._worker)

    def report(self, report: Report) -> Verdict:
        return self._driver.report(self._worker, report)

    def finish(self, result: TrialResult) -> None:
        self._driver.finish(self._worker, result)
