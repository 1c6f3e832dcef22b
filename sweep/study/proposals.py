"""Optuna's trials: asks for them, re-attaches those a dead driver left, tells how they ended."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from sweep.config import SweepConfig
from sweep.results.wording import clean
from sweep.space import overlay
from sweep.store import TrialRecord
from sweep.study import COUNTED, OpenStudy
from sweep.study.ledger import Ledger, Live, key_of, point_of
from sweep.study.mirror import MirroredStudy
from sweep.study.pruners import Curve, judged_from
from trials.contract import Outcome, Report, Setup, TrialResult, tick_examples

REASON_LIMIT = 300  # characters shown in the dashboard's table; our tables have all
COPY = "copy"  # stands where a worker's name would
ROWS = "micro_batch_size"  # attribute: what is left of it since memory was missing
LEARNT_FROM = (Outcome.PRUNED, Outcome.DIVERGED, Outcome.INFEASIBLE)  # told as PRUNED
ENDED = {outcome.value for outcome in Outcome} - {Outcome.STOPPED.value}


@dataclass
class Proposals:
    """New trials of one study, and the ends of old ones."""

    config: SweepConfig
    setup: Setup
    open: OpenStudy
    ledger: Ledger
    most_behind: int = 0  # see `MirroredStudy`
    exhausted: str | None = None

    def __post_init__(self) -> None:
        self._size = self.config.space.size()
        self.study = MirroredStudy(
            self.open.study, self.open.storage, self.open.guard, self.most_behind)

    @property
    def done(self) -> bool:
        """Whether the study has all its trials, or the space no more points."""
        return bool(self.exhausted) or self.ledger.counted >= self.config.limits.n_trials

    @property
    def all_done(self) -> str:
        """Why there is nothing left to try."""
        return self.exhausted or f"all {self.config.limits.n_trials} trials are done"

    def restore(self) -> list[tuple[Live, TrialResult]]:
        """Reads what earlier runs left: finished trials as they are, the others to be continued.

        Returns those whose end reached our tables but not Optuna's: only the commit is missing.
        """
        records = {record.number: record for record in self.open.store.trials(self.open.uuid)}
        uncommitted = []
        for frozen in self.study.before:
            record = records.get(frozen.number)
            if frozen.state is not TrialState.RUNNING:
                self._remember(frozen, record)
            elif record is not None and record.outcome in ENDED:
                live = self._attach(frozen, record, record.attempt)
                uncommitted.append((live, self._stored(record, live, frozen.number)))
            else:
                self._attach(frozen, record, record.attempt + 1 if record else 0)
        return uncommitted

    def next(self) -> Live | None:
        """A new trial, or null when there are enough; twins of live ones are set aside."""
        ledger = self.ledger
        while ledger.counted + ledger.pending < self.config.limits.n_trials:
            if self._size is not None and len(ledger.points) >= self._size:
                self.exhausted = f"all {self._size} points of the search space are tried"
                return None
            live = self._ask()
            if live.key in ledger.tried:
                return live
            if ledger.running_like(live.key):
                ledger.twins[live.config.number] = live
                continue
            ledger.live[live.config.number] = live
            return live
        return None

    def keep_rows(self, live: Live) -> None:
        """Has the next driver know, too, how many examples a forward may hold."""
        self.study.describe(live.config.number, ROWS, live.rows)
        self.settle()

    def settle(self) -> None:
        """Makes all changes that the database lacks."""
        while self.study.catch_up():
            pass

    def commit(self, live: Live, result: TrialResult) -> None:
        """Attributes, then tell, which ends the trial for good."""
        self._describe(live, result)
        number, outcome = live.config.number, result.outcome
        if outcome is Outcome.COMPLETE:
            self.study.tell(number, TrialState.COMPLETE, result.eval_loss)
        else:
            learnt = outcome in LEARNT_FROM
            self.study.tell(number, TrialState.PRUNED if learnt else TrialState.FAIL)
        self._count(live, outcome)

    def copied(self, live: Live, original: int) -> tuple[list[Report], TrialResult]:
        """What an equal trial reported and how it ended, as this trial's own."""
        record = self.open.store.trials(self.open.uuid, original)[0]
        number, attempt = live.config.number, live.config.attempt
        seen = tick_examples(live.config.budget, live.config.train.batch_size)
        reports = [
            Report(trial=number, attempt=attempt, tick=tick, eval_loss=loss, tokens=0, seconds=0.0,
                   examples=seen[tick - 1], worker=COPY)
            for tick, loss in enumerate(record.losses, start=1)
        ]  # fmt: skip
        self.study.describe(number, "copy_of", original)
        why = f"same configuration as trial {original}"
        reason = f"{why}: {record.reason}" if record.reason else why
        same = self._stored(record, live, original)
        free = dataclasses.replace(
            same, reason=reason, adapter=None, seconds=0.0, eval_seconds=0.0, sample_seconds=0.0,
            tokens=0, worker=COPY,
        )  # fmt: skip
        return [r for r in reports if r.tick not in live.curve.losses], free

    def _stored(self, record: TrialRecord, live: Live, number: int) -> TrialResult:
        """A stored end as the result of a live trial, with what trial `number` wrote last."""
        written = self.open.store.samples(self.open.uuid, number)
        last = next(reversed(written.values()), ())
        return dataclasses.replace(_as_result(record, live), samples=last)

    def _ask(self) -> Live:
        sampler = self.open.sampling(len(self.ledger.curves))  # the next number
        number, params = self.study.ask(sampler, self._suggest)
        return self._live(number, params, attempt=0)

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        return self.config.space.suggest(trial, self.config.values)

    def _live(self, number: int, params: dict[str, Any], attempt: int) -> Live:
        made = overlay(self.config, self.setup, params, number=number, attempt=attempt)
        start = judged_from(made.train.warmup, made.budget.ticks)
        curve = Curve(number=number, judged_from=start)
        self.ledger.curves[number] = curve
        self.ledger.points.add(point_of(params))
        return Live(config=made, params=params, key=key_of(made), curve=curve)

    def _attach(self, frozen: FrozenTrial, record: TrialRecord | None, attempt: int) -> Live:
        """A trial that a dead or stopped driver left: same number, same parameters, same ticks."""
        self.study.attach(frozen.number)
        live = self._live(frozen.number, frozen.params, attempt)
        if (rows := frozen.user_attrs.get(ROWS)) is not None:
            live.cut(int(rows))
        self.ledger.live[frozen.number] = live
        told = live.curve.losses
        told.update(frozen.intermediate_values)
        for tick, loss in _judged(record).items():
            if math.isfinite(loss) and tick not in told:  # between our tables and Optuna's
                self.study.report(frozen.number, tick, loss)
            told.setdefault(tick, loss)
        return live

    def _remember(self, frozen: FrozenTrial, record: TrialRecord | None) -> None:
        """A finished trial's part in later decisions."""
        config, ledger = self.config, self.ledger
        made = overlay(config, self.setup, frozen.params, number=frozen.number, attempt=0)
        failed, copy = frozen.state is TrialState.FAIL, "copy_of" in frozen.user_attrs
        ledger.curves[frozen.number] = Curve(
            number=frozen.number,
            losses={**_judged(record), **frozen.intermediate_values},
            complete=frozen.state is TrialState.COMPLETE,
            competes=not failed and not copy,
            judged_from=judged_from(made.train.warmup, made.budget.ticks),
        )
        ledger.points.add(point_of(frozen.params))
        if frozen.state in COUNTED:
            ledger.counted += 1
            ledger.tried.setdefault(key_of(made), frozen.number)

    def _describe(self, live: Live, result: TrialResult) -> None:
        """What the dashboard shows of a trial besides its parameters and its curve."""
        first = live.curve.losses.get(self.open.pruner.first_rung)
        facts: dict[str, Any] = {
            "outcome": result.outcome.value,
            "reason": result.reason and clean(result.reason, limit=REASON_LIMIT),
            "first_rung_loss": first if first is not None and math.isfinite(first) else None,
            "seconds": round(result.seconds, 3),
            "tokens": result.tokens,
            "attempt": result.attempt or None,
        }
        for name, value in facts.items():
            if value is not None:
                self.study.describe(live.config.number, name, value)
        if result.outcome in (Outcome.DIVERGED, Outcome.INFEASIBLE):
            self.study.rank_last(live.config.number)

    def _count(self, live: Live, outcome: Outcome) -> None:
        ledger, number = self.ledger, live.config.number
        ledger.live.pop(number, None)
        if outcome is Outcome.FAILED:
            live.curve.competes = False
            ledger.failures_in_row += 1
            return
        live.curve.complete = outcome is Outcome.COMPLETE
        ledger.tried.setdefault(live.key, number)
        ledger.counted += 1
        ledger.failures_in_row = 0


def _judged(record: TrialRecord | None) -> dict[int, float]:
    """The losses of our tables by tick, as pruners see them: Optuna has none that is not finite."""
    losses = record.losses if record else ()
    return {t: x if math.isfinite(x) else math.inf for t, x in enumerate(losses, start=1)}


def _as_result(record: TrialRecord, live: Live) -> TrialResult:
    """A stored end as the result of a live trial."""
    return TrialResult(
        trial=live.config.number,
        attempt=live.config.attempt,
        outcome=Outcome(record.outcome),
        eval_loss=record.eval_loss,
        eval_accuracy=record.eval_accuracy,
        ticks=record.ticks,
        examples=record.examples,
        tokens=record.tokens,
        seconds=record.seconds,
        eval_seconds=record.eval_seconds,
        sample_seconds=record.sample_seconds,
        memory_bytes=record.memory_bytes,
        trainable_parameters=record.trainable_parameters,
        reason=record.reason,
        adapter=record.adapter,
        worker=record.worker,
    )
