"""The driver bound to one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trials.contract import Report, Setup, TrialConfig, TrialResult, Turn, Verdict

if TYPE_CHECKING:
    from sweep.driver import SweepDriver


class Connection:
    """What `trials.contract.Driver` says, in this worker's name."""

    def __init__(self, driver: SweepDriver, worker: str) -> None:
        self._driver, self._worker = driver, worker

    def progress(self, what: str, done: int, total: int) -> None:
        self._driver.progress(self._worker, what, done, total)

    def prepared(self, setup: Setup) -> None:
        self._driver.prepared(self._worker, setup)

    def next_trial(self) -> TrialConfig | Turn:
        return self._driver.next_trial(self._worker)

    def report(self, report: Report) -> Verdict:
        return self._driver.report(self._worker, report)

    def finish(self, result: TrialResult) -> None:
        self._driver.finish(self._worker, result)
