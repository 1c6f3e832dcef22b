"""What the driver remembers of a study: curves, live trials, configurations already tried."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sweep.secrets import masked
from sweep.study.pruners import Curve, Pruner
from trials.contract import (
    CONTINUE,
    Outcome,
    Report,
    TrialConfig,
    TrialResult,
    Verdict,
    to_json,
)

MOST_DEATHS = 2  # of workers under one trial, before it is failed
MOST_RETURNS = 2  # of one trial by workers whose devices are full of what others hold
ROOM_S = 60.0  # until a worker is asked again: a dying process leaves its device within seconds
GIVEN_AWAY = Verdict(stop=True, reason="the trial was given away", outcome=Outcome.STOPPED)
ASIDE = Verdict(
    stop=True,
    reason="set aside until each trial that its worker left has been tried alone",
    outcome=Outcome.STOPPED,
)


@dataclass(kw_only=True)
class Live:
    """A trial that has not ended: at a worker, or waiting to be handed out."""

    config: TrialConfig
    params: Mapping[str, Any]
    key: str
    curve: Curve
    worker: str | None = None  # null: waits for one
    stopped: Verdict | None = None  # after STOP nothing it reports counts
    last: Report | None = None
    passed: int = 0  # the last tick after which this driver told it to go on
    deaths: int = 0  # of its worker, since it last got further
    died_at: int = 0  # its tick then
    cleared: bool = False  # the tick that it tells just now shows that it is no suspect
    returns: int = 0  # since it last got further, by workers whose devices others have filled
    returned_by: str | None = None  # the last of them, not to be asked
    room_at: float = 0.0  # before this time, of the driver's clock

    @property
    def suspect(self) -> bool:
        """Its worker died under it: until it gets further, it trains alone, to be judged alone."""
        return self.deaths > 0

    @property
    def rows(self) -> int:
        """The most examples in one forward, as far as the configuration says."""
        train = self.config.train
        return min(train.micro_batch_size or train.batch_size, train.batch_size)

    def got_to(self, tick: int, loss: float) -> None:
        """A tick that was not told before; infinity stands for a loss that is not finite."""
        self.curve.losses[tick] = loss
        self.returns = 0
        if self.suspect and tick > self.died_at:
            self.deaths, self.cleared = 0, True

    def answered(self, report: Report, verdict: Verdict) -> None:
        """What it was told at a tick."""
        self.last, self.stopped = report, verdict if verdict.stop else None
        self.cleared = False
        if not verdict.stop or verdict is ASIDE:
            self.passed = max(self.passed, report.tick)

    def judge(self, report: Report, pruner: Pruner, others: Iterable[Curve]) -> Verdict:
        """What a tick means for the trial. At the last one it is complete, however it did.

        Once told to go on, a trial that tells a tick again is told the same.
        """
        tick, ticks = report.tick, self.config.budget.ticks
        if report.again or tick <= self.passed or tick < max(self.curve.losses):
            return CONTINUE
        if not math.isfinite(report.eval_loss):
            why = f"evaluation loss is {report.eval_loss} at tick {tick} of {ticks}"
            return Verdict(stop=True, reason=why, outcome=Outcome.DIVERGED)
        if not self.curve.judged_from <= tick < ticks:
            return CONTINUE
        if why_not := pruner.why_not(self.curve, tick, others):
            return Verdict(stop=True, reason=f"pruned at tick {tick} of {ticks}: {why_not}")
        return CONTINUE

    def died(self, reason: str, *, memory: bool, blamed: bool) -> TrialResult | None:
        """What its worker's death makes of it; null: it is tried again.

        `memory`: for lack of it, so half the micro-batch may help. `blamed` false: it goes on.
        """
        self.deaths += 1
        self.died_at = max(self.curve.losses, default=0)
        if self.stopped and self.stopped.outcome is not Outcome.STOPPED:
            return self.cut_short(self.stopped.outcome, self.stopped.reason)
        if not blamed or self.deaths < MOST_DEATHS or memory and self.rows > 1:
            return None
        why = f"took its worker down {self.deaths} times; the last time: {reason}"
        return self.cut_short(Outcome.INFEASIBLE if memory else Outcome.FAILED, why)

    def again(self, *, smaller: bool = False) -> None:
        """Waits for a worker; `smaller`: halves the micro-batch, which changes no result."""
        if smaller:
            self.cut(self.rows // 2)
        self.config = replace(self.config, attempt=self.config.attempt + 1)
        self.worker = self.stopped = None

    def cut(self, rows: int) -> None:
        """From now on one forward holds so many examples at most, and one at least."""
        train = replace(self.config.train, micro_batch_size=max(1, min(rows, self.rows)))
        self.config = replace(self.config, train=train)

    def crowded_out(self, result: TrialResult, now: float, *, shared: bool) -> TrialResult:
        """What its worker's return of it comes to; any other result as it is.

        It is tried once more, when a dying process has left. Then it is a failure, from which the
        sampler learns nothing; but if the sweep's own workers share the device, it does not fit.
        """
        if result.outcome is not Outcome.STOPPED or self.stopped:
            return result
        self.returns += 1
        self.returned_by, self.room_at = self.worker, now + ROOM_S
        if self.returns < MOST_RETURNS:
            return replace(result, reason=f"{result.reason}; it is tried again later")
        return replace(result, outcome=Outcome.INFEASIBLE if shared else Outcome.FAILED)

    def waits_for_room(self, worker: str, now: float) -> bool:
        """Whether it waits for memory on this worker's device."""
        return self.worker is None and self.returned_by == worker and now < self.room_at

    def honest(self, result: TrialResult) -> TrialResult:
        """The result as the driver's own verdict, and a loss that is not finite, have it."""
        if result.reason:
            result = replace(result, reason=masked(result.reason))
        if self.stopped and result.outcome in (Outcome.COMPLETE, Outcome.PRUNED):
            said = self.stopped
            return replace(result, outcome=said.outcome, reason=said.reason)
        loss = result.eval_loss
        if result.outcome is Outcome.COMPLETE and (loss is None or not math.isfinite(loss)):
            why = result.reason or f"the final evaluation loss is {loss}"
            return replace(result, outcome=Outcome.DIVERGED, reason=why)
        return result

    def cut_short(self, outcome: Outcome, reason: str | None) -> TrialResult:
        """The end of a trial whose worker is gone, as far as its reports go."""
        result = TrialResult(
            trial=self.config.number,
            attempt=self.config.attempt,
            outcome=outcome,
            eval_loss=None,
            reason=reason,
            worker=self.worker or "",
        )
        if self.last is None:
            return result
        names = ("eval_loss", "eval_accuracy", "examples", "tokens", "seconds", "eval_seconds",
                 "sample_seconds", "memory_bytes", "samples")  # fmt: skip
        known = {name: getattr(self.last, name) for name in names}
        return replace(result, ticks=self.last.tick, **known)


@dataclass(kw_only=True)
class Ledger:
    """All trials of a study, as far as decisions need them."""

    curves: dict[int, Curve] = field(default_factory=dict)
    live: dict[int, Live] = field(default_factory=dict)
    twins: dict[int, Live] = field(default_factory=dict)  # wait for a live trial like them
    tried: dict[str, int] = field(default_factory=dict)  # configuration -> the trial that ended
    points: set[str] = field(default_factory=set)  # of the space, proposed so far
    counted: int = 0  # ended, towards n_trials
    failures_in_row: int = 0

    @property
    def pending(self) -> int:
        """Trials that may still count."""
        return len(self.live) + len(self.twins)

    def held_by(self, worker: str) -> list[Live]:
        """The trials a worker has."""
        return [live for live in self.live.values() if live.worker == worker]

    @property
    def suspects(self) -> list[Live]:
        """Those that are still to be tried alone."""
        return [live for live in self.live.values() if live.suspect and live.worker is None]

    def sets_aside(self, live: Live) -> bool:
        """Whether a trial that has just got further makes room, so that all go on together soon."""
        return live.cleared and bool(self.suspects)

    def nothing_for(self, worker: str, now: float) -> bool:
        """Whether it must wait: it tries a suspect, or its device has no room at present."""
        if any(live.suspect or live.stopped is ASIDE for live in self.held_by(worker)):
            return True
        return any(live.waits_for_room(worker, now) for live in self.live.values())

    def has_its_share(self, worker: str, n_trials: int, workers: int) -> bool:
        """Whether it holds its part of what is left, so that the rest is for the others.

        A worker that could hold them all would else leave the others without a trial.
        """
        held, left = len(self.held_by(worker)), n_trials - self.counted
        return workers > 1 and held > 0 and held * workers >= left

    def waiting_for(self, worker: str) -> Live | None:
        """The next trial that this worker may take over, or null; suspects first, each alone."""
        if not self.held_by(worker) and (suspects := self.suspects):
            return min(suspects, key=lambda live: live.config.number)
        free = [n for n, live in self.live.items() if live.worker is None and not live.suspect]
        return self.live[min(free)] if free else None

    def others(self, number: int) -> Iterable[Curve]:
        """The curves of all trials but this."""
        return (curve for other, curve in self.curves.items() if other != number)

    def take_twins(self, key: str) -> list[Live]:
        """Takes out the twins of this configuration."""
        numbers = [number for number, twin in self.twins.items() if twin.key == key]
        return [self.twins.pop(number) for number in numbers]

    def running_like(self, key: str) -> bool:
        """Whether a live trial has this configuration."""
        return any(live.key == key for live in self.live.values())


def key_of(trial: TrialConfig) -> str:
    """Equal for trials that would give the same result."""
    engine = replace(trial.engine, options={})
    same = replace(trial, study="", number=0, attempt=0, engine=engine)
    return hashlib.sha256(to_json(same).encode()).hexdigest()


def point_of(params: Mapping[str, Any]) -> str:
    """A point of the space as text."""
    return json.dumps(dict(sorted(params.items())))
