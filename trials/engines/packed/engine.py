"""Many trials at once on one frozen base: slots are filled, trained clock by clock, and freed.

    fill free slots -> one clock -> evaluate who is at a tick -> hear the device, tell the driver

What the device found out about a clock is heard `lag` clocks later, always the same number, so
that the device need not wait; what a stopped trial did meanwhile is told to nobody.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from trials.base.devices import DTYPES
from trials.contract import Driver, Outcome, Sample, TrainConfig, TrialConfig, TrialResult, Turn
from trials.engines import WAIT_S
from trials.engines.course import Snapshot, StepDone
from trials.engines.packed.bank import Bank, shapes_of
from trials.engines.packed.clock import Clock, Told
from trials.engines.packed.corpus import Corpus
from trials.engines.packed.evaluation import Measured, PackedEvaluation
from trials.engines.packed.forward import Forward
from trials.engines.packed.fused import fused
from trials.engines.packed.initial import Skeleton
from trials.engines.packed.later import Idle
from trials.engines.packed.layers import grouped, packed_layers
from trials.engines.packed.replay import Replays
from trials.engines.packed.seat import Seat
from trials.engines.packed.shapes import PaddedShapes, RaggedShapes, Shapes
from trials.engines.packed.size import FIRST_R, Size, clock_tokens, free_bytes
from trials.engines.packed.slots import Slots
from trials.engines.trl import TrlEngine
from trials.quiet import quiet
from trials.training.limits import (
    check_device,
    end_of,
    evaluation_limit,
    out_of_memory,
    training_limit,
)
from trials.training.plan import Step

ANY = TrainConfig(learning_rate=0.0)  # what fits into memory without checkpointing


class PackedEngine:
    """A base, the data, and the layers that trials may adapt; see `trials.contract.Engine`."""

    def __init__(self, shared: TrlEngine, layers: Mapping[str, nn.Module], size: Size) -> None:
        self.shared, self.layers, self.size = shared, layers, size
        base, data = shared.base, shared.data
        pad = int(base.tokenizer.pad_token_id)
        self.corpus = Corpus(data.train, pad)
        self.forward = Forward(base, free_bytes(base, shared.assignment))
        self.idle = Idle(base.device)
        self._dtype = DTYPES[base.config.dtype]
        self._groups = grouped(base.model, layers)
        self._skeleton = Skeleton(base.model)
        self._examples = Corpus(data.eval, pad)  # of the evaluation

    @property
    def fixed_bytes(self) -> int:
        """What a dequantised copy of the base and parts of the logits take."""
        numbers = sum(d_in * d_out for d_in, d_out in shapes_of(self.layers).values())
        resident = numbers * self._dtype.itemsize if self.size.resident else 0
        return resident + 2 * self.forward.logit_bytes  # of clocks and of evaluations

    def run(self, driver: Driver) -> None:
        """Trains what the driver hands out until it has nothing more and all slots are free."""
        base, size = self.shared.base, self.size
        tokens = min(evaluation_limit(base).tokens or 1, size.tokens)
        evaluation = PackedEvaluation(
            self._examples, base.device, tokens=tokens, ragged=size.ragged)
        with self.slots() as slots:
            self.idle.restart()
            Shift(slots, evaluation, driver, size, self.idle).work()
            if (share := self.idle.fraction) is not None:
                print(f"the device idled {share:.1%} of the time", file=sys.stderr, flush=True)

    @contextmanager
    def slots(self, size: Size | None = None) -> Iterator[Slots]:
        """Empty slots, with the base's layers computing for them."""
        size = size or self.size
        base = self.shared.base
        with ExitStack() as stack:
            stack.enter_context(quiet())
            pack = stack.enter_context(
                packed_layers(self._groups, dtype=self._dtype, resident=size.resident)
            )
            if size.compiled:
                stack.enter_context(fused(base.model))
            bank = Bank(shapes_of(self.layers), slots=size.slots, r=size.r, device=base.device,
                        compute=self._dtype)
            clock = Clock(base, bank, pack, self.corpus, self.forward, self._shapes(size),
                          Replays(base.device, records=size.compiled),
                          drops=self.shared.assignment.dropout)
            stack.callback(clock.checkpoint, False)
            slots = Slots(self.shared, clock, pack, self._skeleton)
            stack.callback(slots.writer.close)
            yield slots

    def compile(self, tokens: int) -> None:
        """Makes the kernels of tokens laid end to end, as clocks of many tokens would have them."""
        with self._small() as clock:
            clock.compile(tokens, self.shared.assignment.gradient_checkpointing)

    def rehearse(self, tokens: int) -> int:
        """The bytes that a clock of about so many tokens takes, its bank and copies aside."""
        with self._small() as clock:
            return clock.rehearse(tokens, self.shared.assignment.gradient_checkpointing)

    @contextmanager
    def _small(self) -> Iterator[Clock]:
        cuda = self.shared.base.device.type == "cuda"  # elsewhere nothing is measured
        r = self.size.r if cuda else min(self.size.r, FIRST_R)
        with self.slots(replace(self.size, slots=2, r=r, resident=False)) as slots:
            yield slots.clock

    def _shapes(self, size: Size) -> Shapes:
        if size.ragged:
            return RaggedShapes(size.slots, size.tokens, self.corpus.longest)
        limit = training_limit(self.shared.base, ANY)
        tokens = clock_tokens(size.tokens, self.corpus.longest)
        return PaddedShapes(replace(limit, tokens=min(limit.tokens or tokens, tokens)))


@dataclass(frozen=True)
class Heard:
    """A clock's outcome, and the evaluation of those whom it brought to a tick.

    By seat, whose slot may be another one by the time that it is heard.
    """

    told: Told
    measured: list[tuple[Sequence[Seat], Measured]]  # those at a tick, usually all in one pass
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

    def _fill(self) -> None:
        while not self.slots.full and not self._done and time.monotonic() >= self._ask_at:
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
        if self._alone and told.steps:
            self._alone.popleft()
        ticking = [seat for _, seat, step in told.steps if step.ticks]
        began = time.perf_counter()
        with self.idle.working():
            written = self._written(told)
            seconds = time.perf_counter() - began if written else 0.0
            measured = self._measured(ticking)
        self._unheard.append(Heard(told, measured, written, seconds, self._states(told)))

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
        """As of now, where the device is heard when it has gone on already: one at a time."""
        if not self.lag or any(heard.states for heard in self._unheard):
            return {}
        due = [seat for _, seat, _ in told.steps if seat.course.keeping.due]
        if not due:
            return {}
        first = min(due, key=lambda seat: seat.course.keeping.due_at)
        return {first: self.slots.snapshot(first)}

    def _measured(self, seats: Sequence[Seat]) -> list[tuple[Sequence[Seat], Measured]]:
        """In one pass; after one that failed with less at once, then in halves."""
        if not seats:
            return []
        slots = self.slots
        try:
            return [(seats, self.evaluation.measure(slots.forward, slots.pack, slots.bank, seats))]
        except Exception as error:
            if out_of_memory(error) and self.evaluation.shrink():
                return self._measured(seats)
            if len(seats) == 1:
                self._give_up(seats[0], error)
                return []
        half = len(seats) // 2
        return self._measured(seats[:half]) + self._measured(seats[half:])

    def _hear(self, lag: int) -> None:
        while len(self._unheard) > lag:
            heard = self._unheard.popleft()
            self._take_in_evaluation(heard)
            numbers, seated = heard.told.numbers.numbers(), self.slots.seats
            for slot, seat, step in heard.told.steps:
                if seat in seated:
                    seat.course.snapshot = partial(self._snapshot, heard, seat)
                    self._take_in_step(seat, step, *(row[slot] for row in numbers))

    def _take_in_evaluation(self, heard: Heard) -> None:
        if not heard.measured:
            return
        seconds = sum(measured.span.seconds for _, measured in heard.measured)
        for seat in self.slots.seats:
            seat.course.waited(seconds, heard.writing_seconds)
        for seats, measured in heard.measured:
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

        So it is known whose fault it is; where nobody fails alone, all make their steps in turn.
        """
        clock, memory = self.slots.clock, out_of_memory(error)
        if not memory:
            check_device(self.slots.shared.base.device, error)
        clock.restart(self._at_work)
        if memory and clock.shapes.shrink():
            return
        if len(seats) > 1 and not (memory and not self.ragged):
            self._alone.extend(seats)
            return
        # Padded rows of one slot take as much as those of all slots before it.
        self._give_up(max(seats, key=lambda seat: seat.widths(1)[0]), error)
        clock.shapes.restore()

    def _give_up(self, seat: Seat, error: Exception) -> None:
        self._hear(0)
        outcome, reason = end_of(error, self.slots.shared.base.device)
        if seat.course.outcome is None:
            seat.course.end(outcome, reason)
            self._end(seat)
