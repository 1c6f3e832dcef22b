"""The sweep's one decision maker: what a worker may ask of it, and when a run is over.

A plain object that does no I/O to workers; only its process writes the database. What becomes of a
trial is written down in `sweep.lives`; what is remembered of it is in `sweep.study.ledger`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sweep.budget import open_account
from sweep.config import SweepConfig
from sweep.config.checks import check_batches
from sweep.connection import Connection
from sweep.ending import BUDGET, COMPLETE, FAILED, Ending
from sweep.lives import Lives
from sweep.observers import Closed, Observer, Opened
from sweep.study import identity, open_study
from sweep.study.guard import WAIT_S, Guard, StudyLost
from sweep.study.ledger import ASIDE, GIVEN_AWAY, Ledger, Live
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

LAST_WAIT_S = 10.0  # for a locked database, once the run is to end


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
        self.at_once = False  # nobody wants to wait any more
        self.devices = 1  # held by the run; its executor knows
        self.workers = 1  # that share the trials; likewise
        self.most_behind = 0  # changes of Optuna's tables that wait for `catch_up`; likewise
        self.note: Callable[[str], None] = getattr(observer, "note", print)
        self._lost = False
        self._observer = observer
        self._clock = clock
        self._began = clock()
        self._setup: Setup | None = None
        self._begun: Lives | None = None  # while there is a study
        self._ledger = Ledger()

    # --- a worker's side ---------------------------------------------------------------------

    def connect(self, worker: str) -> Driver:
        """The driver as this worker sees it."""
        return Connection(self, worker)

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
        self._begun = lives = self._begin(setup)
        self._setup = setup
        uncommitted = lives.restore()
        self._show_opened(lives, setup)
        for live, result in uncommitted:
            self._observer.started(live.config, live.params, result.worker)
            lives.commit(live, result)
            self._heed_failures(result)
        lives.settle_restored()

    def next_trial(self, worker: str) -> TrialConfig | Turn:
        """A trial to continue, else a new one; WAIT while one may yet come back."""
        self.beat()
        ledger = self._ledger
        if self.ending:
            return Turn.DONE
        if ledger.nothing_for(worker, self._clock()):
            return Turn.WAIT
        if ledger.has_its_share(worker, self.config.limits.n_trials, self.workers):
            return Turn.WAIT
        live = ledger.waiting_for(worker) or self._lives.propose()
        if live is None:
            return Turn.WAIT if ledger.pending and not self.ending else Turn.DONE
        live.worker = worker
        self._lives.start(live, worker)
        return live.config

    def alive(self, worker: str, number: int, attempt: int) -> Verdict:
        """Between two ticks a trial is stopped by the user and by budgets only."""
        self.beat()
        live = self._held(worker, number, attempt)
        if live is None:
            return GIVEN_AWAY
        live.stopped = live.stopped or self._over(number)
        return live.stopped or CONTINUE

    def report(self, worker: str, report: Report) -> Verdict:
        """Stores a tick that is new, and judges it."""
        self.beat()
        live = self._held(worker, report.trial, report.attempt)
        if live is None:
            return GIVEN_AWAY
        if live.stopped:
            return live.stopped
        new = report.tick not in live.curve.losses
        if new:
            self._lives.keep(live, report)
        verdict = self._judge(live, report)
        live.answered(report, verdict)
        if new:
            self._observer.reported(report, verdict)
        return verdict

    def finish(self, worker: str, result: TrialResult) -> None:
        """Ends a trial, exactly once: a second end, or one of an old attempt, is not heard."""
        self.beat()
        live = self._held(worker, result.trial, result.attempt)
        if live is not None:
            shared = self.workers > self.devices
            result = live.crowded_out(result, self._clock(), shared=shared)
            self._end(live, live.honest(result))

    # --- the executor's side -----------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether there is a study, because a worker has prepared."""
        return self._begun is not None

    def holds_trials(self, worker: str) -> bool:
        """Whether a worker owes results."""
        return bool(self._ledger.held_by(worker))

    def lost(self, worker: str, reason: str, *, memory: bool = False) -> None:
        """A worker is gone: its trials go to others; one that took two workers down has failed.

        Where several were in the worker, each is tried alone next, so none fails for another.
        """
        for live in self._ledger.held_by(worker):
            if end := live.died(reason, memory=memory, blamed=not self.ending):
                self._end(live, end)
                continue
            then = "stays to be continued" if self.ending else "is handed out again"
            less = self._lives.again(live, smaller=memory)
            self.note(f"{worker} ended ({reason}); trial {live.config.number} {then}{less}")

    def gave_up(self, worker: str, why: str) -> None:
        """No other takes its place."""
        self.workers -= 1
        self.note(why)

    def beat(self) -> None:
        """Gives the lock a sign of life and counts what is used; cheap, call it often."""
        if self._begun is None:
            return
        study, account = self._begun.study, self._begun.account
        at_work = [number for number, live in self._ledger.live.items() if live.worker]
        account.count(self._clock() - self._began, at_work)
        if study.lock.beat():
            study.guard.call(account.write)
        if over := account.reached():
            self.stop(BUDGET, over.reason, over.more)

    def catch_up(self) -> bool:
        """Makes a change that could wait while workers did not; False: there is none."""
        return self._begun is not None and self._begun.proposals.study.catch_up()

    def stop(self, code: int, reason: str, more: str | None = None) -> None:
        """No new trials, and running ones stop at their next step. The first reason counts."""
        self.ending = self.ending or Ending(code=code, reason=reason, more=more)

    def lose(self, error: StudyLost) -> None:
        """The study cannot be written to any more, which ends the run; said once."""
        if self.ending and not self._lost:
            self.note(str(error))
        self._lost = True
        self.stop(FAILED, str(error))

    def close(self) -> Ending:
        """Ends this run: notes the time, shows the result, lets the next driver in."""
        lives = self._begun
        try:
            self._if_not_lost(self.beat)
            ending = self._final()
            self._if_not_lost(self._leave, ending.reason)
            self._observer.closed(
                Closed(
                    complete=ending.code == COMPLETE,
                    reason=ending.reason,
                    more=ending.more,
                    records=lives.study.known() if lives else [],
                    used=lives.account.used if lives else None,
                )
            )
            return ending
        finally:
            if lives:
                lives.study.close()
                self._begun = None

    # --- within --------------------------------------------------------------------------------

    @property
    def _lives(self) -> Lives:
        assert self._begun
        return self._begun

    def _begin(self, setup: Setup) -> Lives:
        config = self.config
        study = open_study(config, setup, Guard(config.storage, self.note, self._patience))
        account = open_account(config.limits, study.store, study.uuid, study.seconds, self.devices)
        account.count(self._clock() - self._began, ())
        return Lives(
            config, setup, study, account, self._ledger, self._observer, self.most_behind)

    def _show_opened(self, lives: Lives, setup: Setup) -> None:
        study = lives.study
        self._observer.opened(
            Opened(
                config=self.config,
                study_uuid=study.uuid,
                setup=setup,
                first_rung=study.pruner.first_rung,
                past=study.store.trials(study.uuid),
                used=lives.account.used,
                devices=self.devices,
            )
        )

    def _held(self, worker: str, number: int, attempt: int) -> Live | None:
        live = self._ledger.live.get(number)
        mine = live is not None and live.worker == worker and live.config.attempt == attempt
        return live if mine else None

    def _judge(self, live: Live, report: Report) -> Verdict:
        """At its last tick a trial is complete, whatever else would stop it."""
        others = self._ledger.others(report.trial)
        verdict = live.judge(report, self._lives.study.pruner, others)
        if verdict.stop or report.tick == live.config.budget.ticks:
            return verdict
        return self._over(report.trial) or (ASIDE if self._ledger.sets_aside(live) else verdict)

    def _over(self, number: int) -> Verdict | None:
        """Why a trial may not go on, however well it does; null if it may."""
        if reason := self._lives.account.reached_by(number):
            return Verdict(stop=True, reason=reason)
        if self.ending:
            return Verdict(stop=True, reason=self.ending.reason, outcome=Outcome.STOPPED)
        return None

    def _end(self, live: Live, result: TrialResult) -> None:
        self._lives.end(live, result)
        self._heed_failures(result)
        if result.outcome is Outcome.STOPPED and not self.ending:
            live.again()
        live.worker = None

    def _heed_failures(self, result: TrialResult) -> None:
        if self._ledger.failures_in_row >= self.config.limits.max_failures:
            count = f"{self._ledger.failures_in_row} trials failed in a row"
            self.stop(FAILED, f"{count}; the last one: {result.reason}")

    def _leave(self, reason: str) -> None:
        """Writes down how the run ended."""
        if self._begun:
            study, account = self._begun.study, self._begun.account
            self._begun.proposals.settle()
            study.guard.call(account.write)
            study.store.leave(study.uuid, reason)

    def _if_not_lost(self, step: Callable[..., None], *args: str) -> None:
        try:
            if not self._lost:
                step(*args)
        except StudyLost as error:
            self.lose(error)

    def _patience(self) -> float:
        """How many seconds a database is waited for."""
        if self.at_once:
            return 0.0
        return LAST_WAIT_S if self.ending else WAIT_S

    def _final(self) -> Ending:
        ended = self._begun and not self._lost and not self._ledger.pending
        if ended and (self._lives.proposals.done or not self.ending):
            return Ending(code=COMPLETE, reason=self._lives.proposals.all_done)
        left = Ending(code=FAILED, reason="the workers left before the sweep was done")
        return self.ending or left
