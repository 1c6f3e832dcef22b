"""A trial's course: what the driver hears between ticks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trials.contract import (
    CONTINUE,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    Outcome,
    TrainConfig,
    TrialBudget,
    TrialConfig,
    Verdict,
)
from trials.engines.course import Course, StepDone
from trials.evaluate import Evaluation
from trials.training.plan import Step, plan

TRIAL = TrialConfig(
    study="s", number=7, attempt=0, seed=0,
    model=ModelConfig(name="demo"), data=DataConfig(format="demo"), lora=LoraConfig(r=4, alpha=8),
    train=TrainConfig(learning_rate=1e-3), budget=TrialBudget(examples=32, ticks=1),
    engine=EngineConfig(name="trl"),
)  # fmt: skip


class Heard:
    """A driver that remembers signs of life, and stops a trial at one of them."""

    def __init__(self, last: int = 99) -> None:
        self.signs: list[tuple[int, int]] = []
        self._last = last

    def alive(self, trial: int, attempt: int) -> Verdict:
        self.signs.append((trial, attempt))
        stop = len(self.signs) == self._last
        return Verdict(stop=True, reason="enough", outcome=Outcome.STOPPED) if stop else CONTINUE


@pytest.mark.parametrize("every_s, heard", [(0.0, 3), (3600.0, 0)])
def test_steps_between_ticks_are_signs_of_life(
    every_s: float, heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trials.engines.course.ALIVE_EVERY_S", every_s)
    driver: Any = Heard()
    course = Course(TRIAL, driver, "w0", torch.device("cpu"), lambda: Evaluation(0.5, 0.0))
    for step in plan(TRIAL.budget, 8)[:3]:
        assert not course.step(done(step))
    assert driver.signs == [(7, 0)] * heard


def test_a_trial_is_stopped_between_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trials.engines.course.ALIVE_EVERY_S", 0.0)
    driver: Any = Heard(last=2)
    course = Course(TRIAL, driver, "w0", torch.device("cpu"), lambda: Evaluation(0.5, 0.0))
    steps = plan(TRIAL.budget, 8)
    assert [course.step(done(step)) for step in steps[:2]] == [False, True]
    result = course.result()
    assert (result.outcome, result.reason) == (Outcome.STOPPED, "enough")
    assert (result.ticks, result.examples, len(result.history)) == (0, 16, 2)


@pytest.mark.parametrize("bad, reason", [
    ({"loss": math.nan}, "train loss became nan at step 2"),
    ({"grad_norm": math.inf}, "gradient norm became inf at step 2"),
    ({"loss": -math.inf, "grad_norm": math.nan}, "train loss became -inf at step 2"),
])  # fmt: skip
def test_what_is_not_finite_ends_a_trial_at_once(bad: dict[str, float], reason: str) -> None:
    driver: Any = Heard()
    course = Course(TRIAL, driver, "w0", torch.device("cpu"), lambda: Evaluation(0.5, 0.0))
    first, second, *_ = plan(TRIAL.budget, 8)
    assert not course.step(done(first)) and course.step(done(second, **bad))
    result = course.result()
    assert (result.outcome, result.reason) == (Outcome.DIVERGED, reason)
    assert len(result.history) == 2  # the bad step is shown


def test_an_overflow_that_only_lowers_the_loss_scale_is_no_divergence() -> None:
    driver: Any = Heard()
    course = Course(TRIAL, driver, "w0", torch.device("cpu"), lambda: Evaluation(0.5, 0.0))
    assert not course.step(done(plan(TRIAL.budget, 8)[0], grad_norm=math.inf, skipped=True))


def done(step: Step, **changes: Any) -> StepDone:
    given: dict[str, Any] = {"tokens": 1, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}
    return StepDone(step=step, **given | changes)
