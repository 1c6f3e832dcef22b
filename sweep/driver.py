"""The sweep's one decision maker: what a worker may ask of it, and all that touches the study.

A plain object that does no I/O to workers; only its process writes the database. `tell` is the
commit of a trial: what comes before it (our tables, then attributes) may be repeated, so a driver
that dies at any moment leaves a study that the next one continues.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

from sweep.config import SweepConfig
from sweep.config.checks import check_batches
from sweep.connection import Connection
from sweep.ending import BUDGET, COMPLETE, FAILED, Ending
from sweep.observers import Closed, Observer, Opened
from sweep.study import OpenStudy, identity, open_study
from sweep.study.ledger import Ledger, Live
from sweep.study.proposals import Proposals
from trials.contract import (
    CONTINUE,
    Driver,
    Outcome,
    Report,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
)

MOST_DEATHS = 2  # of workers under one trial, before it is failed


class SweepDriver:
    """Answers workers at once; `connect` gives each its own view.

    `clock` gives seconds that never run backwards.
    """

    def __init__(
        self,
        config: SweepConfig,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.ending: Ending | None = None
        self._observer = observer
        self.note: Callable[[str], None] = getattr(observer, "note", print)
        self._clock = clock
        self._opened_at = clock()
        self._setup: Setup | None = None
        self._open: OpenStudy | None = None
        self._ledger = Ledger()

    # --- the executor's side -----------------------------------------------------------------

    def connect(self, worker: str) -> Driver:
        """The driver as this worker sees it."""
        return Connection(self, worker)

    @property
    def is_open(self) -> bool:
        """Whether there is a study, because a worker has prepared."""
        return self._open is not None

    def holds_trials(self, worker: str) -> bool:
        """Whether a worker owes results."""
        return bool(self._ledger.held_by(worker))

    def stop(self, code: int, reason: str) -> None:
        """No new trials, and running ones stop at their next report. The first reason counts."""
        self.ending = self.ending or Ending(code=code, reason=reason)

    def lost(self, worker: str, reason: str) -> None:
        """A worker is gone: its trials go to others; one that took two workers down has failed."""
        for live in self._ledger.held_by(worker):
            live.deaths += 1
            live.died_at = max(live.curve.losses, default=0)
            if live.stopped and live.stopped.outcome is not Outcome.STOPPED:
                self._end(live, live.cut_short(live.stopped.outcome, live.stopped.reason))
            elif live.deaths >= MOST_DEATHS and not self.ending:
                again = f"took its worker down {live.deaths} times; the last time: {reason}"
                self._end(live, live.cut_short(Outcome.FAILED, again))
            else:
                live.worker = None
                self._next_attempt(live)
                then = "stays to be continued" if self.ending else "starts again"
                self.note(f"{worker} ended ({reason}); trial {live.config.number} {then}")

    def beat(self) -> None:
        """Gives the lock a sign of life and notes the time used; cheap, call it often."""
        if self._open and self._open.lock.beat():
            self._open.store.spent(self._open.uuid, self.seconds)
        self._check_wall_clock()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that the study has used over all runs."""
        earlier = self._open.seconds if self._open else 0.0
        return earlier + self._clock() - self._opened_at

    def close(self) -> Ending:
        """Ends this run: notes the time, shows the result, lets the next driver in."""
        ending = self._final()
        records = []
        if self._open:
            self._open.store.spent(self._open.uuid, self.seconds)
            self._open.store.leave(self._open.uuid, ending.reason)
            records = self._open.store.trials(self._open.uuid)
        try:
            done = ending.code == COMPLETE
            self._observer.closed(Closed(complete=done, reason=ending.reason, records=records))
        finally:
            if self._open:
                self._open.close()
                self._open = None
        return ending

    # --- a worker's side ---------------------------------------------------------------------

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """See `trials.contract.Driver`, here and below."""
        self.beat()
        if not self.holds_trials(worker):
            self._observer.progress(worker, what, done, total)

    def prepared(self, worker: str, setup: Setup) -> None:
        """The first worker's setup opens the study; each later one must have found the same."""
        if self._setup is not None:
            identity.refuse_other_setup(self._setup, setup)
            return
        check_batches(self.config, setup.data_facts.train_examples)
        self._open = open_study(self.config, setup)
        self._setup = setup
        self._opened_at = self._clock()
        self._proposals = Proposals(self.config, setup, self._open, self._ledger)
        uncommitted = self._proposals.restore()
        self._observer.opened(
            Opened(
                config=self.config,
                study_uuid=self._open.uuid,
                setup=setup,
                first_rung=self._open.pruner.first_rung,
                past=self._open.store.trials(self._open.uuid),
            )
        )
        for live, result in uncommitted:
            self._observer.started(live.config, live.params, result.worker)
            self._commit(live, result)
        self._settle_restored()

    def next_trial(self, worker: str) -> TrialConfig | Turn:
        """A trial to continue, else a new one; WAIT while one may yet come back."""
        self.beat()
        ledger = self._ledger
        if self.ending:
            return Turn.DONE
        if any(live.suspect for live in ledger.held_by(worker)):
            return Turn.WAIT
        live = ledger.waiting_for(worker) or self._propose()
        if live is None:
            return Turn.WAIT if ledger.pending and not self.ending else Turn.DONE
        live.worker = worker
        self._show_start(live, worker)
        return live.config

    def report(self, worker: str, report: Report) -> Verdict:
        """Stores a tick that is new, and judges it."""
        self.beat()
        live = self._held(worker, report.trial, report.attempt)
        if live is None:
            return Verdict(stop=True, reason="the trial was given away", outcome=Outcome.STOPPED)
        if live.stopped:
            return live.stopped
        new = report.tick not in live.curve.losses
        if new:
            self._keep(live, report)
        verdict = self._judge(live, report)
        live.stopped = verdict if verdict.stop else None
        if new:
            self._observer.reported(report, verdict)
        return verdict

    def finish(self, worker: str, result: TrialResult) -> None:
        """Ends a trial, exactly once: a second end, or one of an old attempt, is not heard."""
        self.beat()
        live = self._held(worker, result.trial, result.attempt)
        if live is not None:
            self._end(live, live.honest(result))

    # --- within --------------------------------------------------------------------------------

    def _propose(self) -> Live | None:
        """A new trial; copies of finished ones are settled on the way."""
        while live := self._proposals.next():
            original = self._ledger.tried.get(live.key)
            if original is None:
                return live
            self._copy(live, original)
        return None

    def _show_start(self, live: Live, worker: str) -> None:
        assert self._open and self._setup
        self._open.store.start(self._open.uuid, live.config, live.params, worker, self._setup)
        self._observer.started(live.config, live.params, worker)

    def _held(self, worker: str, number: int, attempt: int) -> Live | None:
        live = self._ledger.live.get(number)
        mine = live is not None and live.worker == worker and live.config.attempt == attempt
        return live if mine else None

    def _keep(self, live: Live, report: Report) -> None:
        assert self._open
        finite = math.isfinite(report.eval_loss)
        self._open.store.tick(self._open.uuid, report, first_rung=self._open.pruner.first_rung)
        if finite:
            self._proposals.study.report(report.trial, report.tick, report.eval_loss)
        live.curve.losses[report.tick] = report.eval_loss if finite else math.inf
        live.last = report
        if report.tick > live.died_at:
            live.deaths = 0

    def _judge(self, live: Live, report: Report) -> Verdict:
        assert self._open
        others = self._ledger.others(report.trial)
        verdict = live.judge(report, self._open.pruner, others)
        if self.ending and not verdict.stop and report.tick < live.config.budget.ticks:
            return Verdict(stop=True, reason=self.ending.reason, outcome=Outcome.STOPPED)
        return verdict

    def _end(self, live: Live, result: TrialResult) -> None:
        """Our tables, then attributes, then tell; then everyone may know."""
        assert self._open
        first = live.curve.losses.get(self._open.pruner.first_rung)
        self._open.store.finish(self._open.uuid, result, first_rung_loss=first)
        if result.outcome is not Outcome.STOPPED:
            self._commit(live, result)
            return
        self._observer.finished(live.config, result)
        live.worker = None
        if not self.ending:
            self._next_attempt(live)

    def _commit(self, live: Live, result: TrialResult) -> None:
        self._proposals.commit(live, result)
        self._observer.finished(live.config, result)
        self._settle_twins(live)
        if self._ledger.failures_in_row >= self.config.limits.max_failures:
            count = f"{self._ledger.failures_in_row} trials failed in a row"
            self.stop(FAILED, f"{count}; the last one: {result.reason}")

    def _next_attempt(self, live: Live) -> None:
        live.config = dataclasses.replace(live.config, attempt=live.config.attempt + 1)
        live.stopped = None

    def _settle_restored(self) -> None:
        """Of trials with one configuration, as an earlier run left them, only one is trained."""
        seen: dict[str, Live] = {}
        for live in list(self._ledger.live.values()):
            if (original := self._ledger.tried.get(live.key)) is not None:
                self._copy(live, original)
            elif seen.setdefault(live.key, live) is not live:
                self._ledger.twins[live.config.number] = self._ledger.live.pop(live.config.number)

    def _settle_twins(self, live: Live) -> None:
        """Trials like the one that ended get its result, or its place if it failed."""
        original = self._ledger.tried.get(live.key)
        for twin in self._ledger.take_twins(live.key):
            if original is not None:
                self._copy(twin, original)
            else:
                self._ledger.live[twin.config.number] = twin

    def _copy(self, live: Live, original: int) -> None:
        """Gives a trial the result of an equal one, at no device time."""
        reports, result = self._proposals.copied(live, original)
        live.curve.competes = False
        self._ledger.live[live.config.number] = live
        self._show_start(live, result.worker)
        for report in reports:
            self._keep(live, report)
            self._observer.reported(report, CONTINUE)
        self._end(live, result)

    def _check_wall_clock(self) -> None:
        hours = self.config.limits.wall_clock_hours
        if hours is not None and self._open and self.seconds >= hours * 3600:
            self.stop(BUDGET, f"the wall-clock budget of {hours:g} h is used up")

    def _final(self) -> Ending:
        if self._open and not self._ledger.pending and (self._proposals.done or not self.ending):
            return Ending(code=COMPLETE, reason=self._proposals.all_done)
        left = Ending(code=FAILED, reason="the workers left before the sweep was done")
        return self.ending or left
