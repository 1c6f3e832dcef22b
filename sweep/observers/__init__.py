"""Who watches a sweep. Every step is shown to every observer; a failing one costs no trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sweep.config import SweepConfig
from sweep.store import TrialRecord
from trials.contract import Report, Setup, TrialConfig, TrialResult, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """The study is open: what it is, what the worker found, and what earlier runs left."""

    config: SweepConfig
    study_uuid: str
    setup: Setup
    first_rung: int  # tick at which the pruner first decides
    past: Sequence[TrialRecord]  # trials of earlier runs, finished or to be continued


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """The run is over: with all trials of the study, or for a reason."""

    complete: bool
    reason: str
    records: Sequence[TrialRecord]


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
