"""The work of one run: slots are filled, trained clock by clock, and freed.

    fill free slots -> one clock -> evaluate who is at a tick -> hear the device, tell the driver

What the device found out about a clock is heard `lag` clocks later, always the same number, so
that the device need not wait; what a stopped trial did meanwhile is told to nobody.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from trials.contract import Driver, Outcome, Sample, TrialConfig, TrialResult, Turn
from trials.engines import WAIT_S
from trials.engines.course import Snapshot, StepDone
from trials.engines.packed.clock import Told
from trials.engines.packed.evaluation import Measured, PackedEvaluation
from trials.engines.packed.later import Idle
from trials.engines.packed.seat import Seat
from trials.engines.packed.size import Size
from trials.engines.packed.slots import Slots
from trials.training.limits import check_device, end_of, out_of_memory
from trials.training.plan import Step

ROUNDS = 64  # of steps that trials make alone before they try again to make them together, at most


@dataclass(frozen=True)
class Evaluated:
    """Of those at a tick: what was found in passes over them, usually one; who has failed, why."""

    measured: list[tuple[Sequence[Seat], Measured]] = field(default_factory=list)
    failed: dict[Seat, tuple[Outcome, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Heard:
    """A clock's outcome, and the evaluation of those whom it brought to a tick.

    By seat, whose slot may be another one by the time that it is heard.
    """

    told: Told
    evaluated: Evaluated  # those at a tick
    written: dict[Seat, tuple[Sample, ...]]
    writing_seconds: float
    states: dict[Seat, Callable[[], Snapshot]]  # of whose trial one is due


class Shift:
    """The work of one `run`."""

    def __init__(
        self, slots: Slots, evaluation: PackedEvaluation, driver: Driver, size: Size, idle: Idle
    ) -> None:
        self.slots, self.evaluation, self.driver = slots, evaluation, driver
        self.lag, self.ragged, self.idle = size.lag, size.ragged, idle
        self._unheard: deque[Heard] = deque()
        self._alone: deque[Seat] = deque()  # who is to make a step alone, after a clock that failed
        self._rounds = 1  # of steps alone, after the next such clock
        self._most = self.slots.bank.slots  # seats that are filled
        self._done = False  # the driver has no more trials
        self._ask_at = 0.0  # not before; on `time.monotonic`'s clock

    def work(self) -> None:
        """Clock after clock, until the driver is done and every trial has ended."""
        while True:
            self._fill()
            if self._at_work:
                self._clock()
            elif not self.slots.seats and self._done:
                return
            elif not self.slots.seats:
                time.sleep(max(0.0, self._ask_at - time.monotonic()))
            self._hear(self.lag if self._at_work else 0)

    @property
    def _at_work(self) -> list[Seat]:
        return [seat for seat in self.slots.seats if seat.has_work and seat.course.outcome is None]

    @property
    def _has_room(self) -> bool:
        return len(self.slots.seats) < self._most

    def _fill(self) -> None:
        while self._has_room and not self._done and time.monotonic() >= self._ask_at:
            trial = self.driver.next_trial()
            if trial is Turn.DONE:
                self._done = True
            elif isinstance(trial, TrialConfig):
                self._sit(trial)
            else:
                self._ask_at = time.monotonic() + WAIT_S
        if not (self.slots.full or self.ragged):
            self.slots.close_up()

    def _sit(self, trial: TrialConfig) -> None:
        try:
            seat = self.slots.sit(trial, self.driver)
        except Exception as error:
            outcome, reason = end_of(error, self.slots.shared.base.device)
            self.driver.finish(TrialResult(
                trial=trial.number, attempt=trial.attempt, outcome=outcome, eval_loss=None,
                reason=reason, worker=self.slots.shared.assignment.worker,
            ))
            return
        if seat.course.outcome is not None:  # stopped while its ticks were told again
            self._end(seat)

    def _clock(self) -> None:
        at_work = self._at_work
        while self._alone and self._alone[0] not in at_work:
            self._alone.popleft()
        seats = [self._alone[0]] if self._alone else at_work
        try:
            with self.idle.working():
                told = self.slots.clock.tick(seats)
        except Exception as error:
            self._rescue(error, seats)
            return
        if not self._alone:
            self._rounds = 1
        elif told.steps:
            self._alone.popleft()
        ticking = [seat for _, seat, step in told.steps if step.ticks]
        began = time.perf_counter()
        with self.idle.working():
            written = self._written(told)
            seconds = time.perf_counter() - began if written else 0.0
            evaluated = Evaluated()
            self._evaluate(ticking, evaluated)
        self._unheard.append(Heard(told, evaluated, written, seconds, self._states(told)))

    def _written(self, told: Told) -> dict[Seat, tuple[Sample, ...]]:
        """The samples of those at the end of their budget, or at any tick where that is asked."""
        assignment = self.slots.shared.assignment
        seats = [seat for _, seat, step in told.steps if step.ticks and (
            assignment.samples_at_ticks or step.ticks[-1] == seat.trial.budget.ticks)]
        if not (assignment.samples and seats):
            return {}
        texts = self.slots.written(seats)
        return dict(zip(seats, texts, strict=True))

    def _states(self, told: Told) -> dict[Seat, Callable[[], Snapshot]]:
        """A copy of one due trial's, made now: when this clock is heard, the device has gone on.

        Without a lag none is needed.
        """
        if not self.lag or any(heard.states for heard in self._unheard):
            return {}
        due = [seat for _, seat, _ in told.steps if seat.course.keeping.due]
        if not due:
            return {}
        first = min(due, key=lambda seat: seat.course.keeping.due_at)
        try:
            return {first: self.slots.snapshot(first)}
        except Exception as error:  # said when it is asked for; the trial itself is well
            return {first: partial(_fail, error)}

    def _evaluate(self, seats: Sequence[Seat], found: Evaluated) -> None:
        """In one pass; after one that failed with less at once, then in halves."""
        if not seats:
            return
        slots, evaluation = self.slots, self.evaluation
        try:
            measured = evaluation.measure(slots.forward, slots.pack, slots.bank, seats)
            found.measured.append((seats, measured))
            return
        except Exception as error:
            memory = out_of_memory(error)
            if not memory:
                check_device(slots.shared.base.device, error)
            smaller = memory and evaluation.shrink(len(seats))
            if len(seats) == 1 and not smaller:
                found.failed[seats[0]] = end_of(error, slots.shared.base.device)
                evaluation.restore()
                return
        half = 0 if smaller else len(seats) // 2
        self._evaluate(seats[:half], found)
        self._evaluate(seats[half:], found)

    def _hear(self, lag: int) -> None:
        while len(self._unheard) > lag:
            heard = self._unheard.popleft()
            self._take_in_evaluation(heard)
            numbers, seated = heard.told.numbers.numbers(), self.slots.seats
            for slot, seat, step in heard.told.steps:
                if seat not in seated:
                    continue
                if seat in heard.evaluated.failed and seat.course.outcome is None:
                    seat.course.end(*heard.evaluated.failed[seat])
                    self._end(seat)
                    continue
                seat.course.snapshot = partial(self._snapshot, heard, seat)
                self._take_in_step(seat, step, *(row[slot] for row in numbers))

    def _take_in_evaluation(self, heard: Heard) -> None:
        found = heard.evaluated.measured
        if not found:
            return
        seconds = sum(measured.span.seconds for _, measured in found)
        for seat in self.slots.seats:
            seat.course.waited(seconds, heard.writing_seconds)
        for seats, measured in found:
            for seat, evaluation in zip(seats, measured.evaluations(), strict=True):
                seat.course.evaluation = evaluation
                seat.course.written = heard.written.get(seat, ())

    def _snapshot(self, heard: Heard, seat: Seat) -> Snapshot | None:
        stopped = seat.course.outcome is Outcome.STOPPED and not self._ahead(seat)
        if not self.lag or stopped:
            return self.slots.snapshot(seat)()
        made = heard.states.get(seat)
        return None if made is None else made()

    def _ahead(self, seat: Seat) -> bool:
        """Whether the device has made a step of this seat that is not heard yet."""
        return any(seat is other for heard in self._unheard for _, other, _ in heard.told.steps)

    def _take_in_step(
        self, seat: Seat, step: Step, loss: float, norm: float, rate: float, skipped: float
    ) -> None:
        done = StepDone(step, seat.tokens(step), loss, norm, rate, bool(skipped))
        if seat.course.outcome is not None:
            seat.course.overrun(done)
        elif not seat.course.step(done):
            return
        # One that is to be continued is stopped where the device is.
        if seat.course.outcome is not Outcome.STOPPED or not self._ahead(seat):
            self._end(seat)

    def _end(self, seat: Seat) -> None:
        if seat.course.outcome is Outcome.COMPLETE:
            self.slots.keep(seat)
        self.slots.leave(seat)
        seat.course.keeping.settle()
        self.driver.finish(seat.course.result())

    def _rescue(self, error: Exception, seats: Sequence[Seat]) -> None:
        """After a clock that failed: with less at once, or each alone until its next step.

        So it is known whose fault it is. Where nobody fails alone, all make their steps in turn,
        and try less and less often to make them together. Padded, where not even a row of each
        fits, the last one goes back to the driver.
        """
        clock, memory = self.slots.clock, out_of_memory(error)
        if not memory:
            check_device(self.slots.shared.base.device, error)
        clock.restart(self._at_work)
        if memory and clock.shapes.shrink():
            return
        if memory and len(seats) > 1 and not self.ragged:
            self._return(seats, error)
        elif len(seats) > 1:
            self._note(error)
            self._alone.extend([*seats] * self._rounds)
            self._rounds = min(2 * self._rounds, ROUNDS)
            return
        else:
            self._give_up(seats[0], error)
            self._rounds = 1
        if memory:
            clock.shapes.restore()

    def _note(self, error: Exception) -> None:
        if self._rounds > 1:  # it was said when they failed together for the first time
            return
        traceback.print_exception(error)
        said = (str(error) or type(error).__name__).splitlines()[0]
        self.driver.note(f"a clock of all trials failed, so they make their steps one at a time, "
                         f"which is slower: {type(error).__name__}: {said}")

    def _return(self, seats: Sequence[Seat], error: Exception) -> None:
        """One trial less at once from now on; who goes is not to blame, and may come again.

        It is the last one that has not gone before.
        """
        self._most = len(seats) - 1
        last = max(seats, key=lambda seat: (-seat.trial.attempt, seat.slot))
        _, reason = end_of(error, self.slots.shared.base.device)
        self._finish(last, Outcome.STOPPED, f"{reason} (in a pack of {len(seats)} trials)")

    def _give_up(self, seat: Seat, error: Exception) -> None:
        self._finish(seat, *end_of(error, self.slots.shared.base.device))

    def _finish(self, seat: Seat, outcome: Outcome, reason: str) -> None:
        self._hear(0)
        if seat.course.outcome is None:
            seat.course.end(outcome, reason)
            self._end(seat)


def _fail(error: Exception) -> Snapshot:
    raise error
