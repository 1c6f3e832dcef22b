"""A trial's course through an engine: its curve, its ticks, the verdicts, and its one result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from trials.contract import (
    CurvePoint,
    Driver,
    Outcome,
    Report,
    Sample,
    TrialConfig,
    TrialResult,
)
from trials.evaluate import Evaluation
from trials.training.meter import Meter

if TYPE_CHECKING:
    from trials.engines.trl_trainer import StepDone


ALIVE_EVERY_S = 5.0  # between two signs of life: a worker silent between ticks is taken for hung


class Course:
    """Told each step, it evaluates and reports at ticks, and knows how the trial ended."""

    def __init__(
        self,
        trial: TrialConfig,
        driver: Driver,
        worker: str,
        device: torch.device,
        measure: Callable[[], Evaluation],
    ) -> None:
        self.outcome: Outcome | None = None  # None while it goes on
        self.trainable_parameters = 0
        self.adapter: str | None = None
        self.samples: tuple[Sample, ...] = ()
        self._trial, self._driver, self._worker, self._measure = trial, driver, worker, measure
        self._meter = Meter(device)
        self._reason: str | None = None
        self._history: list[CurvePoint] = []
        self._evaluation: Evaluation | None = None  # the last one reported
        self._examples = self._steps = self._ticks = 0
        self._said_at = time.monotonic()

    def step(self, done: StepDone) -> bool:
        """Takes in an optimizer step; True when the trial must end."""
        self._steps += 1
        self._examples = done.step.examples
        self.sign_of_life()
        point = self._meter.point(
            examples=self._examples,
            tokens=done.tokens,
            train_loss=done.loss,
            learning_rate=done.learning_rate,
            grad_norm=done.grad_norm,
        )
        if not done.skipped:
            self._history.append(point)
        if not math.isfinite(done.loss):
            self._diverged("train loss", done.loss)
        elif not math.isfinite(done.grad_norm) and not done.skipped:
            self._diverged("gradient norm", done.grad_norm)
        elif done.step.ticks:
            self._tick(done.step.ticks)
        return self.outcome is not None

    def sign_of_life(self) -> None:
        """Tells the driver now and then that work goes on; call it between ticks, often."""
        if time.monotonic() - self._said_at < ALIVE_EVERY_S:
            return
        self._said_at = time.monotonic()
        what, budget = f"trial {self._trial.number}", self._trial.budget.examples
        self._driver.progress(what, self._examples, budget)

    def end(self, outcome: Outcome, reason: str | None) -> None:
        """Says how the trial ended."""
        self.outcome, self._reason = outcome, reason

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
            memory_bytes=self._meter.memory_bytes(),
            trainable_parameters=self.trainable_parameters,
            reason=self._reason,
            adapter=self.adapter,
            samples=self.samples,
            history=tuple(self._history),
            worker=self._worker,
        )

    def _tick(self, ticks: tuple[int, ...]) -> None:
        with self._meter.evaluating():
            evaluation = self._measure()
        if not math.isfinite(evaluation.loss):
            self._diverged("evaluation loss", evaluation.loss)
            return
        self._evaluation = evaluation
        for tick in ticks:
            self._report(tick, evaluation)
            if self.outcome is not None:
                return

    def _report(self, tick: int, evaluation: Evaluation) -> None:
        self._ticks = tick
        verdict = self._driver.report(Report(
            trial=self._trial.number,
            attempt=self._trial.attempt,
            tick=tick,
            eval_loss=evaluation.loss,
            eval_accuracy=evaluation.accuracy,
            examples=self._examples,
            tokens=self._meter.tokens,
            seconds=self._meter.seconds,
            eval_seconds=self._meter.eval_seconds,
            memory_bytes=self._meter.memory_bytes(),
            utilisation=self._meter.utilisation(),
            worker=self._worker,
            history=tuple(self._history),
        ))
        self._history.clear()
        if tick == self._trial.budget.ticks:
            self.end(Outcome.COMPLETE, None)  # it has come all the way, whatever the verdict
        elif verdict.stop:
            self.end(verdict.outcome, verdict.reason)

    def _diverged(self, what: str, number: float) -> None:
        self.end(Outcome.DIVERGED, f"{what} became {number} at step {self._steps}")
