"""Many trials at once on one frozen base: slots are filled, trained clock by clock, and freed.

    fill free slots -> one clock -> evaluate who is at a tick -> hear the device, tell the driver

What the device found out about a clock is heard `lag` clocks later, always the same number, so
that the device need not wait; what a stopped trial did meanwhile is told to nobody.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from trials.base.devices import DTYPES
from trials.contract import Driver, Outcome, TrialConfig, TrialResult, Turn
from trials.engines import WAIT_S
from trials.engines.packed.bank import Bank
from trials.engines.packed.clock import Clock, Told
from trials.engines.packed.corpus import Corpus
from trials.engines.packed.evaluation import Measured, PackedEvaluation
from trials.engines.packed.initial import Skeleton
from trials.engines.packed.layers import Pack, packed_layers
from trials.engines.packed.seat import Seat
from trials.engines.packed.slots import Slots
from trials.engines.trl import TrlEngine
from trials.quiet import quiet
from trials.training.limits import out_of_memory
from trials.training.plan import Step

if TYPE_CHECKING:
    from trials.engines.trl_trainer import StepDone


@dataclass(frozen=True)
class Size:
    """How much a pack holds."""

    slots: int
    r: int  # of the bank at first
    resident: bool  # whether the base is kept dequantised beside its 4-bit weights
    lag: int  # clocks until the device is heard


class PackedEngine:
    """A base, the data, and the layers that trials may adapt; see `trials.contract.Engine`."""

    def __init__(self, shared: TrlEngine, layers: Mapping[str, nn.Module], size: Size) -> None:
        self.shared, self.layers, self.size = shared, layers, size
        pad = int(shared.base.tokenizer.pad_token_id)
        self._corpus = Corpus(shared.data.train, pad)
        self._skeleton = Skeleton(shared.base.model)
        self._evaluation = PackedEvaluation(shared.base, shared.data)

    def run(self, driver: Driver) -> None:
        """Trains what the driver hands out until it has nothing more and all slots are free."""
        dtype = DTYPES[self.shared.base.config.dtype]
        with quiet(), packed_layers(self.layers, dtype=dtype, resident=self.size.resident) as pack:
            slots = self.slots(pack)
            try:
                Shift(slots, self._evaluation, driver, self.size.lag).work()
            finally:
                slots.clock.checkpoint(False)

    def slots(self, pack: Pack) -> Slots:
        """Empty slots."""
        base = self.shared.base
        bank = Bank(
            {name: (int(m.in_features), int(m.out_features))  # type: ignore[arg-type]
             for name, m in self.layers.items()},
            slots=self.size.slots, r=self.size.r, device=base.device,
            compute=DTYPES[base.config.dtype],
        )
        return Slots(self.shared, Clock(base, bank, pack, self._corpus), pack, self._skeleton)


@dataclass(frozen=True)
class Heard:
    """A clock's outcome, and the evaluation of those whom it brought to a tick."""

    told: Told
    measured: Measured | None
    ticking: tuple[Seat, ...]


class Shift:
    """The work of one `run`."""

    def __init__(
        self, slots: Slots, evaluation: PackedEvaluation, driver: Driver, lag: int
    ) -> None:
        self.slots, self.evaluation, self.driver, self.lag = slots, evaluation, driver, lag
        self._unheard: deque[Heard] = deque()
        self._done = False  # the driver has no more trials
        self._ask_at = 0.0  # not before; on `time.monotonic`'s clock

    def work(self) -> None:
        """Clock after clock, until the driver is done and every trial has ended."""
        while True:
            self._fill()
            if any(seat.has_work for seat in self.slots.seats):
                self._clock()
            elif not self.slots.seats and self._done:
                return
            elif not self.slots.seats:
                time.sleep(max(0.0, self._ask_at - time.monotonic()))
            self._hear(self.lag if any(seat.has_work for seat in self.slots.seats) else 0)

    def _fill(self) -> None:
        while not self.slots.full and not self._done and time.monotonic() >= self._ask_at:
            trial = self.driver.next_trial()
            if trial is Turn.DONE:
                self._done = True
            elif isinstance(trial, TrialConfig):
                self._sit(trial)
            else:
                self._ask_at = time.monotonic() + WAIT_S
        if not self.slots.full:
            self.slots.close_up()

    def _sit(self, trial: TrialConfig) -> None:
        try:
            self.slots.sit(trial, self.driver)
        except Exception as error:
            outcome, reason = _end_of(error)
            self.driver.finish(TrialResult(
                trial=trial.number, attempt=trial.attempt, outcome=outcome, eval_loss=None,
                reason=reason, worker=self.slots.shared.assignment.worker,
            ))

    def _clock(self) -> None:
        seats = [seat for seat in self.slots.seats if seat.has_work]
        try:
            told = self.slots.clock.tick(seats)
        except Exception as error:
            self._rescue(error, seats)
            return
        ticking = tuple(seat for _, seat, step in told.steps if step.ticks)
        self._unheard.append(Heard(told, self._measured(ticking) if ticking else None, ticking))

    def _measured(self, ticking: tuple[Seat, ...]) -> Measured | None:
        scales, slots = self.slots.scales(ticking), [seat.slot for seat in ticking]
        while True:
            try:
                return self.evaluation.measure(self.slots.pack, self.slots.bank, slots, scales)
            except Exception as error:
                if not (out_of_memory(error) and self.evaluation.shrink()):
                    self._give_up(ticking, error)
                    return None

    def _hear(self, lag: int) -> None:
        while len(self._unheard) > lag:
            heard = self._unheard.popleft()
            self._take_in_evaluation(heard)
            losses, norms = heard.told.losses.numbers(), heard.told.norms.numbers()
            for slot, seat, step in heard.told.steps:
                if seat.course.outcome is None:
                    self._take_in_step(seat, step, losses[slot], norms[slot])

    def _take_in_evaluation(self, heard: Heard) -> None:
        if heard.measured is None:
            return
        for seat in self.slots.seats:
            seat.course.waited(heard.measured.span.seconds)
        found = heard.measured.evaluations()
        for seat, evaluation in zip(heard.ticking, found, strict=True):
            seat.course.evaluation = evaluation

    def _take_in_step(self, seat: Seat, step: Step, loss: float, norm: float) -> None:
        done = Done(step, seat.tokens(step), loss, norm, seat.rate(step))
        if seat.course.step(cast("StepDone", done)):
            self._end(seat)

    def _end(self, seat: Seat) -> None:
        if seat.course.outcome is Outcome.COMPLETE:
            self.slots.keep(seat)
        self.slots.leave(seat)
        self.driver.finish(seat.course.result())

    def _rescue(self, error: Exception, seats: list[Seat]) -> None:
        """After a clock that failed: with less at once, without the one too many, or not at all."""
        clock = self.slots.clock
        clock.restart(seats)
        if not out_of_memory(error):
            self._give_up(seats, error)
        elif not clock.shrink():
            self._give_up([max(seats, key=lambda seat: seat.widths(1)[0])], error)

    def _give_up(self, seats: Sequence[Seat], error: Exception) -> None:
        self._hear(0)
        outcome, reason = _end_of(error)
        for seat in seats:
            if seat.course.outcome is None:
                seat.course.end(outcome, reason)
                self._end(seat)


@dataclass(frozen=True)
class Done:
    """An optimizer step as a course takes it in; the fields of the TRL engine's `StepDone`."""

    step: Step
    tokens: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool = False


def _end_of(error: Exception) -> tuple[Outcome, str]:
    """What an error makes of a trial; a bug is written to the worker's log."""
    said = (str(error) or type(error).__name__).splitlines()[0]
    if out_of_memory(error):
        return Outcome.INFEASIBLE, f"does not fit into memory: {said}"
    traceback.print_exception(error)
    return Outcome.FAILED, f"{type(error).__name__}: {said}"
