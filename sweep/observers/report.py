"""The report at the end of a run, in the study's folder; its path is the last thing said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sweep.observers import Closed, Opened
from sweep.results.wording import here
from trials.contract import Report, TrialConfig, TrialResult, Verdict


class ReportPage:
    """Writes `results/<study>/report.html` when a run is over, whichever way it ended."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._opened: Opened | None = None

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Nothing to write yet."""

    def opened(self, opened: Opened) -> None:
        """There is a study to report on."""
        self._opened = opened

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """The database has it."""

    def reported(self, report: Report, verdict: Verdict) -> None:
        """The database has it."""

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """The database has it."""

    def closed(self, closed: Closed) -> None:
        """The page, from the database alone, as `python -m sweep.report` writes it."""
        if self._opened is None:
            return
        from sweep.report.studies import write_reports  # a second that only this moment needs

        config = self._opened.config
        names = [config.study]
        for page in write_reports(names, config.storage, config.results_dir, over=True):
            self._note(f"report    {here(page)}")
