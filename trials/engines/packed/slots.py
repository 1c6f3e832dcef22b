"""The slots of a pack: seating a trial, freeing its slot, keeping the occupied ones together."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from trials.base import resolve_targets
from trials.contract import Driver, InputError, Sample, TrialConfig
from trials.data import order
from trials.engines.course import Snapshot
from trials.engines.packed.bank import Bank, Shapes
from trials.engines.packed.clock import Clock
from trials.engines.packed.forward import Forward
from trials.engines.packed.later import Later
from trials.engines.packed.layers import Flight, Pack
from trials.engines.packed.optim import check_supported
from trials.engines.packed.products import PaddedProducts
from trials.engines.packed.seat import PackedCourse, Seat
from trials.engines.packed.skeleton import Skeleton, targeted
from trials.engines.trl import TrlEngine, origin_of
from trials.training.limits import free_memory, out_of_memory
from trials.training.state import State, Writer


class Slots:
    """Seats by slot, with the rows of the bank that belong to them."""

    def __init__(self, shared: TrlEngine, clock: Clock, pack: Pack, skeleton: Skeleton) -> None:
        self.shared, self.clock, self.pack, self._skeleton = shared, clock, pack, skeleton
        self.writer = Writer()
        self._seats: list[Seat | None] = [None] * clock.bank.slots

    @property
    def bank(self) -> Bank:
        """The bank, which a wider trial may have replaced."""
        return self.clock.bank

    @property
    def forward(self) -> Forward:
        """The base's forward."""
        return self.clock.forward

    @property
    def seats(self) -> list[Seat]:
        """Who is seated, by slot."""
        return [seat for seat in self._seats if seat is not None]

    @property
    def full(self) -> bool:
        """Whether there is no free slot."""
        return None not in self._seats

    def sit(self, trial: TrialConfig, driver: Driver) -> Seat:
        """Seats a trial in the lowest free slot, where an earlier attempt left it if one did.

        Raises InputError, naming engine=trl, for what a pack cannot do.
        """
        check_supported(trial.train.optimizer)
        names = resolve_targets(self.shared.base.facts, trial.lora.target_modules)
        seat = self._seat(trial)
        seat.targets = self._targets(names)
        seat.course = PackedCourse(
            seat, driver, self.shared.assignment, self.shared.base.device, self.writer)
        seat.course.trainable_parameters = _numbers(seat, self.bank.shapes)
        if trial.lora.r > self.bank.r:
            self.clock.widen(trial.lora.r)
        self.clock.seat(seat)
        if (state := seat.course.keeping.found()) is not None:
            self._continue(seat, state)
        else:
            self.bank.place(seat.slot, self._skeleton.initial(trial.lora, names, trial.seed))
        self._seats[seat.slot] = seat
        return seat

    def _continue(self, seat: Seat, state: State) -> None:
        seat.course.resume(state.progress)
        seat.resume(state.progress.steps)
        self.bank.restore(seat.slot, seat.trial.lora.r, seat.targets, state.tensors)
        self.clock.optimizer.restore(seat.slot, state.progress.numbers["optimizer"])

    def snapshot(self, seat: Seat) -> Callable[[], Snapshot]:
        """What continues a seat's trial from its last step, on its way; asking for it waits."""
        rows = self.bank.saved(seat.slot, seat.trial.lora.r, seat.targets)
        tensors = {kind: Later(row) for kind, row in rows.items()}
        numbers = Later(self.clock.optimizer.saved(seat.slot))
        return lambda: Snapshot(
            {kind: later.tensor() for kind, later in tensors.items()},
            {"optimizer": numbers.numbers()},
        )

    def leave(self, seat: Seat) -> None:
        """Frees a seat's slot."""
        self.bank.empty(seat.slot)
        self._seats[seat.slot] = None

    def close_up(self) -> None:
        """Moves the last ones into free slots before them: padded clocks compute up to the last."""
        while self.seats and self.seats[-1].slot > (free := self._seats.index(None)):
            last = self.seats[-1]
            self.bank.move(last.slot, free)
            self.clock.move(last.slot, free)
            self._seats[last.slot], self._seats[free], last.slot = None, last, free

    def keep(self, seat: Seat) -> None:
        """Leaves of a complete trial what the assignment asks for: samples, an adapter."""
        folder, course = self.shared.assignment.adapters_dir, seat.course
        course.samples = course.samples or course.written
        if folder is None:
            return
        try:
            course.adapter = str(self.export(seat, Path(folder) / str(seat.trial.number)))
        except Exception as error:  # a full disk, say: the trial is complete all the same
            course.note(f"the adapter of trial {seat.trial.number} is not kept: {error}")

    def export(self, seat: Seat, folder: Path) -> Path:
        """Writes a seat's adapter as an ordinary PEFT folder."""
        lora = seat.trial.lora
        names = resolve_targets(self.shared.base.facts, lora.target_modules)
        factors = self.bank.factors(seat.slot, lora.r)
        return self._skeleton.export(factors, lora, names, folder, origin_of(self.shared.base))

    def written(self, seats: Sequence[Seat]) -> list[tuple[Sample, ...]]:
        """What the seats' models write for the evaluation's first prompts.

        All in one batch, or in halves where memory runs out; nothing where it cannot be done.
        """
        try:
            return self._written(seats)
        except Exception as error:
            if len(seats) == 1 or not out_of_memory(error):
                traceback.print_exc()  # as the TRL engine: the trials go on
                return [()] * len(seats)
        free_memory(self.shared.base.device)
        half = len(seats) // 2
        return [*self.written(seats[:half]), *self.written(seats[half:])]

    def _written(self, seats: Sequence[Seat]) -> list[tuple[Sample, ...]]:
        scales = torch.tensor([seat.scale for seat in seats], dtype=self.bank.parameters.dtype)
        products = PaddedProducts(scales[:, None, None].to(self.shared.base.device))
        weights = self.bank.gathered([seat.slot for seat in seats])
        with self.pack.flying(Flight(weights, products)):
            return self.shared.samples(len(seats))

    def _seat(self, trial: TrialConfig) -> Seat:
        corpus = self.clock.corpus
        indices = order(trial.seed, len(corpus.lengths), 0, trial.budget.examples)
        steps = self.shared.steps(trial)
        return Seat(trial, self._seats.index(None), steps, np.array(indices), corpus)

    def _targets(self, names: Sequence[str]) -> tuple[str, ...]:
        every = self.shared.base.model.named_modules()
        wanted = targeted([path for path, _ in every], names)
        if missing := [path for path in wanted if path not in self.bank.shapes]:
            raise InputError(
                f"lora.target_modules: {missing[0]} is not among the study's target modules, so "
                "the pack has no room for it. Type engine=trl, or start a new study."
            )
        return wanted


def _numbers(seat: Seat, shapes: Shapes) -> int:
    return sum(seat.trial.lora.r * sum(shapes[name]) for name in seat.targets)
