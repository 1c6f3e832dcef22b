"""A driver that watches an engine over a window of steady training.

The engine is driven as a sweep drives it: trials are handed out, reports are answered. Once every
trial that is live has reported often enough, in every process of the case, the window opens; when
it closes, all trials are stopped. A trial's rate is that between its first and its last report in
the window, less the time that the engine says it evaluated (its share is told too); every step
brought a loss and a gradient norm back from the device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.benchmarks.case import Case, Measured, Pace, trial
from trials.contract import (
    CONTINUE,
    CurvePoint,
    Outcome,
    Report,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
)

MOST_FAILURES = 3  # trials that end by themselves, before the case is given up
STOP = Verdict(stop=True, reason="the window has closed", outcome=Outcome.STOPPED)


@dataclass
class Mark:
    """A trial at one of its reports; all counted from its start."""

    at: float
    steps: int
    tokens: int
    eval_seconds: float


class Watch:
    """A driver that hands out endless trials and stops all of them when its window closes."""

    def __init__(
        self, case: Case, supply: Iterator[TrialConfig], together: Callable[[], bool],
        closed: Callable[[], None],
    ) -> None:
        """`together` says once this process is warm, and asks whether all others are."""
        self.case, self._supply, self._together, self._closed = case, supply, together, closed
        self.opened: Callable[[], None] = lambda: None  # called when the window opens
        self.capacity = 1
        self.setup: Setup | None = None
        self.live: dict[int, TrialConfig] = {}
        self.marks: dict[int, list[Mark]] = {}
        self.points: list[CurvePoint] = []  # of the window
        self.failures: list[str] = []
        self.opened_at = self.closed_at = float("inf")
        self._began = time.monotonic()
        self.warm_s = self.prepared_s = 0.0
        self.reserved_bytes = self.allocated_bytes = 0
        self._handed = 0

    # --- the driver's side of the contract ---------------------------------------------------

    def progress(self, what: str, done: int, total: int) -> None:
        """To the log."""
        print(f"{self._now():6.1f} s  {what} {done}/{total}", flush=True)

    def note(self, text: str) -> None:
        """To the log."""
        print(f"{self._now():6.1f} s  {text}", flush=True)

    def alive(self, trial: int, attempt: int) -> Verdict:
        """Between two reports."""
        return self._verdict()

    def prepared(self, setup: Setup) -> None:
        """Keeps what the worker found."""
        self.setup, self.prepared_s = setup, self._now()
        self.capacity = min(setup.capacity, self.case.trials or setup.capacity)
        print(f"{self.prepared_s:6.1f} s  prepared: capacity {setup.capacity}", flush=True)

    def next_trial(self) -> TrialConfig | Turn:
        """One more, up to as many at once as the case asks for."""
        over = time.monotonic() > self.closed_at or len(self.failures) >= MOST_FAILURES
        if over or (self.case.trials is not None and self._handed >= self.case.trials):
            return Turn.DONE
        assert self.setup is not None
        given = replace(next(self._supply), model=self.setup.model, data=self.setup.data)
        self.live[given.number], self._handed = given, self._handed + 1
        return given

    def report(self, report: Report) -> Verdict:
        """Marks where the trial is, and opens and closes the window."""
        now = time.monotonic()
        marks = self.marks.setdefault(report.trial, [])
        steps = len(report.history) + (marks[-1].steps if marks else 0)
        marks.append(Mark(now, steps, report.tokens, report.eval_seconds))
        if self.opened_at <= now <= self.closed_at:
            self.points += report.history
        if now < self.opened_at and self._warm() and self._together():
            self._open(now)
        elif now < self.closed_at and self._full(now):
            self._close(now)
        return self._verdict()

    def finish(self, result: TrialResult) -> None:
        """Notes a trial that did not come to its end by our will."""
        del self.live[result.trial]
        print(f"{self._now():6.1f} s  trial {result.trial}: {result.outcome.value} "
              f"{result.reason or ''}", flush=True)
        if result.outcome not in (Outcome.STOPPED, Outcome.COMPLETE):
            self.failures.append(result.reason or result.outcome.value)

    # --- the window --------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _warm(self) -> bool:
        warm = [n for n in self.live if len(self.marks.get(n, ())) >= self.case.warm]
        return len(warm) >= max(1, self.capacity - len(self.failures))

    def _open(self, now: float) -> None:
        self.opened_at, self.warm_s = now, self._now()
        print(f"{self.warm_s:6.1f} s  the window opens: {len(self.live)} trials", flush=True)
        if self.case.on_cuda:
            from torch import cuda

            self.reserved_bytes = cuda.max_memory_reserved(self.case.device)
            cuda.reset_peak_memory_stats(self.case.device)
        self.opened()

    def _verdict(self) -> Verdict:
        """Of several processes each trains on, for the others' sake, until it is ended."""
        over = time.monotonic() >= self.closed_at and self.case.processes == 1
        return STOP if over else CONTINUE

    def _full(self, now: float) -> bool:
        if now < self.opened_at + self.case.window_s:
            return False
        seated = [number for number in self.live if number in self.marks]  # one may be asked ahead
        return all(len(self.within(number)) > 1 for number in seated)

    def _close(self, now: float) -> None:
        self.closed_at = now
        print(f"{self._now():6.1f} s  the window closes", flush=True)
        if self.case.on_cuda:
            from torch import cuda

            self.allocated_bytes = cuda.max_memory_allocated(self.case.device)
            most = cuda.max_memory_reserved(self.case.device)
            self.reserved_bytes = max(self.reserved_bytes, most)
        self._closed()

    def within(self, number: int) -> list[Mark]:
        """A trial's marks in the window."""
        marks = self.marks.get(number, [])
        return [mark for mark in marks if self.opened_at <= mark.at <= self.closed_at]

    def measured(self, idle: float | None) -> Measured:
        """What the window showed."""
        if self.closed_at == float("inf"):
            why = self.failures[0] if self.failures else "the trials ended too early"
            return Measured(reason=why)
        assert self.setup is not None
        spans = [(number, marks) for number in self.marks if len(marks := self.within(number)) > 1]
        norms = [point.grad_norm for point in self.points]
        return Measured(
            device=self.setup.device.name,
            capacity=self.setup.capacity,
            paces=tuple(_pace(trial(self.case, number), marks) for number, marks in spans),
            steps=sum(marks[-1].steps - marks[0].steps for _, marks in spans),
            evaluation=statistics.fmean(map(_evaluation, [marks for _, marks in spans])),
            grad_norm=statistics.fmean(norms), least_grad_norm=min(norms),
            loss=statistics.fmean(point.train_loss for point in self.points),
            reserved_bytes=self.reserved_bytes, allocated_bytes=self.allocated_bytes,
            idle=idle, prepared_s=self.prepared_s, warm_s=self.warm_s,
        )


def _pace(config: TrialConfig, marks: list[Mark]) -> Pace:
    """Over the time in which the trial was trained, not evaluated."""
    first, last = marks[0], marks[-1]
    trained = (last.at - first.at) * (1 - _evaluation(marks))
    return Pace(
        r=config.lora.r, batch_size=config.train.batch_size,
        steps_per_s=(last.steps - first.steps) / trained,
        tokens_per_s=(last.tokens - first.tokens) / trained,
    )


def _evaluation(marks: list[Mark]) -> float:
    """Share of the time between the first and the last of these marks."""
    return (marks[-1].eval_seconds - marks[0].eval_seconds) / (marks[-1].at - marks[0].at)
