"""A trial's course: what the driver hears between ticks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trials.contract import (
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
    TrialBudget,
    TrialConfig,
)
from trials.engines.course import Course
from trials.engines.trl_trainer import StepDone
from trials.evaluate import Evaluation
from trials.training.plan import plan

TRIAL = TrialConfig(
    study="s", number=7, attempt=0, seed=0,
    model=ModelConfig(name="demo"), data=DataConfig(format="demo"), lora=LoraConfig(r=4, alpha=8),
    train=TrainConfig(learning_rate=1e-3), budget=TrialBudget(examples=32, ticks=1),
    engine=EngineConfig(name="trl"),
)  # fmt: skip


class Heard:
    """A driver that remembers signs of life."""

    def __init__(self) -> None:
        self.progresses: list[tuple[str, int, int]] = []

    def progress(self, what: str, done: int, total: int) -> None:
        self.progresses.append((what, done, total))


@pytest.mark.parametrize("every_s, heard", [(0.0, [8, 16, 24]), (3600.0, [])])
def test_steps_between_ticks_are_signs_of_life(
    every_s: float, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trials.engines.course.ALIVE_EVERY_S", every_s)
    driver: Any = Heard()
    course = Course(TRIAL, driver, "w0", torch.device("cpu"), lambda: Evaluation(0.5, 0.0))
    for step in plan(TRIAL.budget, 8)[:3]:
        course.step(StepDone(step=step, tokens=1, loss=1.0, grad_norm=1.0, learning_rate=1e-3,
                             skipped=False))  # fmt: skip
    assert driver.progresses == [("trial 7", done, 32) for done in heard]
