"""Running trials to their end, and looking at what they did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import Recorder, Tiny

from trials.contract import Outcome, TrialConfig
from trials.worker import work


def run(tiny: Tiny, *trials: TrialConfig, answer: Any = None, **assigned: Any) -> Recorder:
    """Prepares a worker and trains the trials one after another."""
    driver = Recorder(list(trials), **({"answer": answer} if answer else {}))
    work(tiny.assignment(**assigned), driver)
    return driver


def outcomes(driver: Recorder) -> list[Outcome]:
    """How the trials ended."""
    return [result.outcome for result in driver.results]


def fp32_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[torch.dtype]]:
    """Collects the dtypes of weights and moments when an optimizer is done."""
    from trials.engines import trl_trainer

    seen: dict[str, set[torch.dtype]] = {"weight": set(), "moment": set()}
    release = trl_trainer.release_optimizer

    def look(optimizer: torch.optim.Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            seen["weight"].add(parameter.dtype)
            seen["moment"] |= {value.dtype for value in state.values() if torch.is_tensor(value)}
        release(optimizer)

    monkeypatch.setattr(trl_trainer, "release_optimizer", look)
    return seen
