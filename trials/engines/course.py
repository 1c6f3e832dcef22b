"""A trial's course through an engine: its curve, its ticks, the verdicts, and its one result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trials.contract import (
    CurvePoint,
    Driver,
    Outcome,
    Report,
    Sample,
    TrialConfig,
    TrialResult,
    Verdict,
)
from trials.evaluate import Evaluation
from trials.training.meter import Meter
from trials.training.plan import Step
from trials.training.state import Keeping, Progress, State

ALIVE_EVERY_S = 1.0  # between two signs of life; a user who stops the sweep waits for one


@dataclass(frozen=True)
class StepDone:
    """An optimizer step's outcome. `skipped`: fp16 overflowed, and the loss scale was lowered."""

    step: Step
    tokens: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool = False

    @property
    def finite(self) -> bool:
        """Whether the trial can go on from it; a skipped step's norm may be anything."""
        return math.isfinite(self.loss) and (self.skipped or math.isfinite(self.grad_norm))


@dataclass(frozen=True)
class Snapshot:
    """What an engine needs to continue a trial: tensors on the CPU, and what JSON can say."""

    tensors: Mapping[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)


class Course:
    """Told each step, it evaluates and reports at ticks, and knows how the trial ended."""

    def __init__(
        self,
        trial: TrialConfig,
        driver: Driver,
        worker: str,
        device: torch.device,
        measure: Callable[[], Evaluation],
        slot: Callable[[], int] = lambda: 0,
        write: Callable[[], tuple[Sample, ...]] | None = None,  # samples at each tick
        keeping: Keeping | None = None,
        shared: bool = False,  # other trials train in this process
    ) -> None:
        self.outcome: Outcome | None = None  # None while it goes on
        self.trainable_parameters = 0
        self.adapter: str | None = None
        self.samples: tuple[Sample, ...] = ()
        # The engine's, as of the step that is told; null: the trial cannot be continued from there.
        self.snapshot: Callable[[], Snapshot | None] = lambda: None
        self.keeping = keeping or Keeping(None, trial, print, 0.0)
        self._trial, self._driver, self._worker, self._measure = trial, driver, worker, measure
        self._slot, self._write = slot, write
        self._meter = Meter(device, shared=shared)
        self._reason: str | None = None
        self._history: list[CurvePoint] = []
        self._reports: list[Report] = []  # told so far
        self._evaluation: Evaluation | None = None  # the last one reported
        self._examples = self._steps = self._ticks = 0
        self._behind = False  # the engine has made steps that this does not count
        self._said_at = time.monotonic()

    def resume(self, progress: Progress) -> None:
        """Goes on from where an earlier attempt was, unless the driver says stop.

        Its ticks are told again: a driver that knows them passes over them, and one that lost the
        last of them in a crash gets them back.
        """
        self._meter.resume(progress)
        self._steps, self._examples = progress.steps, progress.examples
        self._history = list(progress.history)
        for told in progress.reports:
            mine = replace(told, attempt=self._trial.attempt, worker=self._worker,
                           slot=self._slot(), again=True)
            self._evaluation = Evaluation(told.eval_loss, told.eval_accuracy or 0.0)
            self._ticks, self.samples = told.tick, told.samples
            self._reports.append(mine)
            self._heed(self._driver.report(mine))

    def step(self, done: StepDone) -> bool:
        """Takes in an optimizer step; True when the trial must end."""
        self._count(done)
        if not math.isfinite(done.loss):
            self._diverged("train loss", done.loss)
        elif not done.finite:
            self._diverged("gradient norm", done.grad_norm)
        elif done.step.ticks:
            self._tick(done.step.ticks)
        else:
            self._ask()
        self._keep(done.step)
        return self.outcome is not None

    def overrun(self, done: StepDone) -> None:
        """Takes in a step made before its engine heard of the stop, to be continued from there.

        Not one that comes to a tick, which nobody would be told of, nor what follows it.
        """
        self._behind |= bool(done.step.ticks) or not done.finite
        if not self._behind:
            self._count(done)
            self._keep(done.step)

    def sign_of_life(self) -> None:
        """Tells the driver now and then that an evaluation goes on; it is heard to its end."""
        if self._silent():
            what, budget = f"trial {self._trial.number}", self._trial.budget.examples
            self._driver.progress(what, self._examples, budget)

    def end(self, outcome: Outcome, reason: str | None) -> None:
        """Says how the trial ended."""
        self.outcome, self._reason = outcome, reason

    def note(self, text: str) -> None:
        """Tells the user what cost the trial nothing."""
        self._driver.note(text)

    def write_samples(self, write: Callable[[], tuple[Sample, ...]]) -> None:
        """Has the model write as it now is; the time is counted by itself."""
        with self._meter.writing():
            self.samples = write()

    def result(self) -> TrialResult:
        """The trial's end as the driver is told it."""
        assert self.outcome is not None
        evaluation = self._evaluation
        return TrialResult(
            trial=self._trial.number,
            attempt=self._trial.attempt,
            outcome=self.outcome,
            eval_loss=None if evaluation is None else evaluation.loss,
            eval_accuracy=None if evaluation is None else evaluation.accuracy,
            ticks=self._ticks,
            examples=self._examples,
            tokens=self._meter.tokens,
            seconds=self._meter.seconds,
            eval_seconds=self._meter.eval_seconds,
            sample_seconds=self._meter.sample_seconds,
            memory_bytes=self._meter.memory_bytes(),
            trainable_parameters=self.trainable_parameters,
            reason=self._reason,
            adapter=self.adapter,
            samples=self.samples,
            history=tuple(self._history),
            worker=self._worker,
        )

    def _count(self, done: StepDone) -> None:
        self._steps += 1
        self._examples = done.step.examples
        point = self._meter.point(
            examples=self._examples,
            tokens=done.tokens,
            train_loss=done.loss,
            learning_rate=done.learning_rate,
            grad_norm=done.grad_norm,
        )
        if not done.skipped:
            self._history.append(point)

    def _ask(self) -> None:
        """Between ticks the user and the budgets may stop the trial."""
        if self._silent():
            self._heed(self._driver.alive(self._trial.number, self._trial.attempt))

    def _heed(self, verdict: Verdict) -> None:
        if verdict.stop and self.outcome is None:
            self.end(verdict.outcome, verdict.reason)

    def _keep(self, step: Step) -> None:
        """Now and then, and where it is stopped to be continued; all ticks of a step or none."""
        goes_on = self.outcome is None and self.keeping.due
        if not goes_on and self.outcome is not Outcome.STOPPED:
            return
        if step.ticks and self._ticks != step.ticks[-1]:
            return
        with self._meter.aside():
            self.keeping.keep(self._state)

    def _state(self) -> State | None:
        snapshot = self.snapshot()
        if snapshot is None:
            return None
        return State(progress=self._progress(snapshot.numbers), tensors=snapshot.tensors)

    def _progress(self, numbers: dict[str, Any]) -> Progress:
        return Progress(
            steps=self._steps,
            examples=self._examples,
            tokens=self._meter.tokens,
            seconds=self._meter.seconds,
            eval_seconds=self._meter.eval_seconds,
            sample_seconds=self._meter.sample_seconds,
            memory_bytes=self._meter.memory_bytes(),
            reports=tuple(self._reports),
            history=tuple(self._history),
            numbers=numbers,
        )

    def _silent(self) -> bool:
        """Whether the driver has heard nothing for a while, and must hear something now."""
        if time.monotonic() - self._said_at < ALIVE_EVERY_S:
            return False
        self._said_at = time.monotonic()
        return True

    def _tick(self, ticks: tuple[int, ...]) -> None:
        with self._meter.evaluating():
            evaluation = self._measure()
        if not math.isfinite(evaluation.loss):
            self._diverged("evaluation loss", evaluation.loss)
            return
        self._evaluation = evaluation
        if self._write is not None:
            self.write_samples(self._write)
        for tick in ticks:
            self._report(tick, evaluation)
            if self.outcome is not None:
                return

    def _report(self, tick: int, evaluation: Evaluation) -> None:
        self._ticks = tick
        report = Report(
            trial=self._trial.number,
            attempt=self._trial.attempt,
            tick=tick,
            eval_loss=evaluation.loss,
            eval_accuracy=evaluation.accuracy,
            examples=self._examples,
            tokens=self._meter.tokens,
            seconds=self._meter.seconds,
            eval_seconds=self._meter.eval_seconds,
            sample_seconds=self._meter.sample_seconds,
            memory_bytes=self._meter.memory_bytes(),
            utilisation=self._meter.utilisation(),
            worker=self._worker,
            slot=self._slot(),
            history=tuple(self._history),
            samples=self.samples if self._write is not None else (),
        )
        verdict = self._driver.report(report)
        self._reports.append(report)
        self._history.clear()
        if tick == self._trial.budget.ticks:
            self.end(Outcome.COMPLETE, None)  # it has come all the way, whatever the verdict
        self._heed(verdict)

    def _diverged(self, what: str, number: float) -> None:
        self.end(Outcome.DIVERGED, f"{what} became {number} at step {self._steps}")
