"""The trials of an open study, each from its proposal to its end, written down at every step.

`tell` is the commit of a trial: what comes before it (our tables, then attributes) may be repeated,
so a driver that dies at any moment leaves a study that the next one continues. A proposal that
equals an earlier one is not trained: it gets that one's result, or waits for it.
"""

from __future__ import annotations

import math

from sweep import states
from sweep.budget import Account
from sweep.config import SweepConfig
from sweep.observers import Observer
from sweep.study import OpenStudy
from sweep.study.ledger import Ledger, Live
from sweep.study.proposals import Proposals
from trials.contract import CONTINUE, Outcome, Report, Setup, TrialResult


class Lives:
    """What happens to trials: in our tables, in Optuna's, and before the observer's eyes."""

    def __init__(
        self,
        config: SweepConfig,
        setup: Setup,
        study: OpenStudy,
        account: Account,
        ledger: Ledger,
        observer: Observer,
        most_behind: int = 0,
    ) -> None:
        self.study, self.account = study, account
        self.proposals = Proposals(config, setup, study, ledger, most_behind)
        self._config, self._setup = config, setup
        self._ledger, self._observer = ledger, observer

    def restore(self) -> list[tuple[Live, TrialResult]]:
        """What earlier runs left, into the ledger; returns ends that lack only their commit."""
        uncommitted = self.proposals.restore()
        states.forget_others(self._config, self._ledger.live)
        return uncommitted

    def settle_restored(self) -> None:
        """Of trials with one configuration, as an earlier run left them, only one is trained."""
        ledger = self._ledger
        seen: dict[str, Live] = {}
        for live in list(ledger.live.values()):
            if (original := ledger.tried.get(live.key)) is not None:
                self._copy(live, original)
            elif seen.setdefault(live.key, live) is not live:
                ledger.twins[live.config.number] = ledger.live.pop(live.config.number)

    def propose(self) -> Live | None:
        """A new trial to train, or null; copies of finished ones are settled on the way."""
        while live := self.proposals.next():
            original = self._ledger.tried.get(live.key)
            if original is None:
                return live
            self._copy(live, original)
        return None

    def start(self, live: Live, worker: str) -> None:
        """A trial, or its next attempt, goes to a worker."""
        store, uuid = self.study.store, self.study.uuid
        store.start(uuid, live.config, live.params, worker, self._setup)
        self._observer.started(live.config, live.params, worker)

    def again(self, live: Live, *, smaller: bool) -> str:
        """A trial waits for another worker; `smaller`: with half the micro-batch, for good.

        Says with what, to be put behind a sentence.
        """
        live.again(smaller=smaller)
        if not smaller:
            return ""
        self.proposals.keep_rows(live)
        return f" with train.micro_batch_size={live.rows}"

    def keep(self, live: Live, report: Report) -> None:
        """A tick that was not told before."""
        finite = math.isfinite(report.eval_loss)
        self.study.store.tick(self.study.uuid, report, first_rung=self.study.pruner.first_rung)
        if finite:
            self.proposals.study.report(report.trial, report.tick, report.eval_loss)
        live.got_to(report.tick, report.eval_loss if finite else math.inf)

    def end(self, live: Live, result: TrialResult) -> None:
        """A trial has ended, or was stopped to be continued."""
        first = live.curve.losses.get(self.study.pruner.first_rung)
        self.study.store.finish(self.study.uuid, result, first_rung_loss=first)
        if result.outcome is Outcome.STOPPED:
            self._observer.finished(live.config, result)
        else:
            self.commit(live, result)

    def commit(self, live: Live, result: TrialResult) -> None:
        """Our tables have the end: attributes, then tell; then everyone may know."""
        self.proposals.commit(live, result)
        self.account.ended(live.config.number)
        states.forget(self._config, live.config.number)
        self._observer.finished(live.config, result)
        self._settle_twins(live)

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
        reports, result = self.proposals.copied(live, original)
        live.curve.competes = False
        self._ledger.live[live.config.number] = live
        self.start(live, result.worker)
        for report in reports:
            self.keep(live, report)
            self._observer.reported(report, CONTINUE)
        self.end(live, result)
