"""What the events of a sweep add up to: a record of each trial, who runs what, the time left.

Built from the events alone, so that it costs no database query while trials run.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.budget import told
from sweep.observers import Opened
from sweep.results import leaderboard
from sweep.results.leaderboard import UNCOUNTED
from sweep.store import TrialRecord
from trials.contract import Report, TrialConfig, TrialResult, Verdict


@dataclass(slots=True)
class Tally:
    """The sweep so far. `records` holds every trial, those of earlier runs included."""

    opened: Opened
    now: Callable[[], float] = time.time
    records: dict[int, TrialRecord] = field(default_factory=dict)
    running: dict[int, str] = field(default_factory=dict)  # number -> "worker/slot"
    since: dict[int, float] = field(default_factory=dict)  # number -> taken at, this attempt
    ticks: int = 0  # of a complete trial
    outcomes: Counter[str] = field(default_factory=Counter)
    timed_s: float = 0.0  # of the trials that tell how long one takes
    best: TrialRecord | None = None
    latest: TrialRecord | None = None  # that ended for a reason
    began: float = 0.0
    most_at_once: int = 1

    def __post_init__(self) -> None:
        self.began = self.now()
        self.ticks = int(self.opened.config.values.get("budget.ticks") or 0)
        for record in self.opened.past:
            self._keep(record)

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> TrialRecord:
        """A worker took a trial; ticks told in an earlier attempt stay known."""
        record = self.records.get(trial.number) or _fresh(trial, params, self.now())
        record = dataclasses.replace(
            record, attempt=trial.attempt, outcome="running", reason=None, worker=worker
        )
        self._keep(record)
        self.running[trial.number] = worker
        self.since[trial.number] = self.now()
        self.ticks = trial.budget.ticks
        self.most_at_once = max(self.most_at_once, len(self.running))
        return record

    def reported(self, report: Report, verdict: Verdict) -> TrialRecord:
        """A trial reached a tick."""
        old = self.records[report.trial]
        losses = (*old.losses[: report.tick - 1], report.eval_loss)
        worker = report.worker or old.worker
        record = dataclasses.replace(
            old,
            losses=losses,
            first_rung_loss=self._first_rung(losses),
            eval_loss=report.eval_loss,
            eval_accuracy=report.eval_accuracy,
            ticks=report.tick,
            examples=report.examples,
            tokens=report.tokens,
            seconds=report.seconds,
            eval_seconds=report.eval_seconds,
            sample_seconds=report.sample_seconds,
            memory_bytes=max(old.memory_bytes, report.memory_bytes),
            utilisation=report.utilisation if report.utilisation is not None else old.utilisation,
            worker=worker,
        )
        self.running[report.trial] = f"{worker}/{report.slot}" if report.slot else worker
        self._keep(record)
        return record

    def finished(self, trial: TrialConfig, result: TrialResult) -> TrialRecord:
        """A trial ended."""
        old = self.records.get(trial.number) or _fresh(trial, {}, self.now())
        record = dataclasses.replace(
            old,
            outcome=result.outcome.value,
            reason=result.reason,
            eval_loss=result.eval_loss if result.eval_loss is not None else old.eval_loss,
            eval_accuracy=(
                result.eval_accuracy if result.eval_accuracy is not None else old.eval_accuracy
            ),
            ticks=max(result.ticks, old.ticks),
            examples=max(result.examples, old.examples),
            tokens=max(result.tokens, old.tokens),
            seconds=max(result.seconds, old.seconds),
            eval_seconds=max(result.eval_seconds, old.eval_seconds),
            sample_seconds=max(result.sample_seconds, old.sample_seconds),
            memory_bytes=max(result.memory_bytes, old.memory_bytes),
            trainable_parameters=result.trainable_parameters,
            adapter=result.adapter,
            worker=result.worker or old.worker,
            finished_at=self.now(),
        )
        self.latest = record if record.reason else self.latest
        self.running.pop(trial.number, None)
        self.since.pop(trial.number, None)
        self._keep(record)
        return record

    @property
    def total(self) -> int:
        """Trials that the study is to have."""
        return self.opened.config.limits.n_trials

    @property
    def done(self) -> int:
        """Trials that count towards the total."""
        return sum(n for outcome, n in self.outcomes.items() if outcome not in UNCOUNTED)

    def budgets(self) -> list[str]:
        """How much of each budget is used, and the cost where there is a price."""
        opened, limits = self.opened, self.opened.config.limits
        seconds = max(0.0, self.now() - self.began)
        used = opened.used.later(seconds, opened.devices, limits.price_per_hour)
        return told(limits, used)

    def remaining_s(self) -> float | None:
        """About how long the rest takes, from the trials so far and how many run at once."""
        typical = self._typical_s()
        if typical is None:
            return None
        waiting = max(0, self.total - self.done - len(self.running))
        now = self.now()
        started = [max(0.0, typical - (now - since)) for since in self.since.values()]
        rest = (waiting * typical + sum(started)) / self.most_at_once
        return max(rest, max(started, default=0.0)) if not waiting else rest

    def leader(self) -> TrialRecord | None:
        """The best complete trial, or, until there is one, the running one with the lowest loss."""
        if self.best is not None:
            return self.best
        seen = [self.records[number] for number in self.running]
        return min((r for r in seen if r.losses), key=lambda r: r.losses[-1], default=None)

    def _typical_s(self) -> float | None:
        timed = sum(self.outcomes[outcome] for outcome in _TIMED)
        if timed:
            return self.timed_s / timed
        seen = [self.records[number] for number in self.running]  # guess: all run to their end
        guesses = [r.seconds / r.ticks * self.ticks for r in seen if r.ticks]
        return sum(guesses) / len(guesses) if guesses else None

    def _first_rung(self, losses: tuple[float, ...]) -> float | None:
        rung = self.opened.first_rung
        return losses[rung - 1] if 0 < rung <= len(losses) else None

    def _keep(self, record: TrialRecord) -> None:
        if (old := self.records.get(record.number)) is not None:
            self._count(old, -1)
        self.records[record.number] = record
        self._count(record, +1)
        if leaderboard.finished_well(record) and self._better(record):
            self.best = record

    def _count(self, record: TrialRecord, times: int) -> None:
        self.outcomes[record.outcome] += times
        if record.outcome in _TIMED:
            self.timed_s += times * record.seconds

    def _better(self, record: TrialRecord) -> bool:
        best = self.best
        return best is None or (record.eval_loss or 0.0) < (best.eval_loss or 0.0)


_TIMED = ("complete", "pruned")


def _fresh(trial: TrialConfig, params: Mapping[str, Any], now: float) -> TrialRecord:
    return TrialRecord(
        number=trial.number,
        attempt=trial.attempt,
        outcome="running",
        reason=None,
        params=dict(params),
        eval_loss=None,
        eval_accuracy=None,
        first_rung_loss=None,
        ticks=0,
        losses=(),
        examples=0,
        tokens=0,
        seconds=0.0,
        eval_seconds=0.0,
        sample_seconds=0.0,
        memory_bytes=0,
        trainable_parameters=0,
        utilisation=None,
        adapter=None,
        worker="",
        started_at=now,
        finished_at=None,
    )
