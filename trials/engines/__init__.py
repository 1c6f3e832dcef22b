"""The engines by name, and the loop of those that train one trial at a time.

An engine's module has `prepare(assignment, driver) -> (engine, setup)`: it loads and checks all
that trials share, and raises `InputError` for what the user must change.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Protocol, cast

from trials.contract import (
    Assignment,
    Driver,
    Engine,
    InputError,
    Outcome,
    Setup,
    TrialConfig,
    TrialResult,
    Turn,
)
from trials.garbage import importing

ENGINES = {
    "auto": "trials.engines.auto",
    "trl": "trials.engines.trl",
    "packed": "trials.engines.packed",
    "simulated": "trials.engines.simulated",
}
WITHOUT_DATA = ("simulated",)  # whose curves follow from the configuration alone
WAIT_S = 0.2  # between two questions for work when there is none yet


class DeviceLost(Exception):
    """This process cannot compute any more; another one can. It costs the worker, not the trial."""


class EngineModule(Protocol):
    """What each engine's module offers."""

    def prepare(self, assignment: Assignment, driver: Driver) -> tuple[Engine, Setup]:
        """Loads and checks what all trials share."""


def engine_module(name: str) -> EngineModule:
    """The module of an engine, imported only now."""
    module = ENGINES[_known(name)]
    if module not in sys.modules:
        with importing():
            importlib.import_module(module)
    return cast(EngineModule, sys.modules[module])


def reads_data(name: str) -> bool:
    """Whether this engine trains on what `data` names."""
    return _known(name) not in WITHOUT_DATA


def _known(name: str) -> str:
    if name not in ENGINES:
        raise InputError(f"engine={name!r} is unknown. Known engines: {', '.join(ENGINES)}.")
    return name


def one_at_a_time(
    driver: Driver, train: Callable[[TrialConfig], TrialResult], wait: Callable[[float], None]
) -> None:
    """Trains trial after trial until the driver has none; an exception fails its trial alone.

    Raises DeviceLost.
    """
    while (trial := driver.next_trial()) is not Turn.DONE:
        if isinstance(trial, TrialConfig):
            driver.finish(_train_or_fail(trial, train))
        else:
            wait(WAIT_S)


def _train_or_fail(
    trial: TrialConfig, train: Callable[[TrialConfig], TrialResult]
) -> TrialResult:
    try:
        return train(trial)
    except DeviceLost:
        raise
    except Exception as error:
        traceback.print_exc()  # to the worker's log
        return TrialResult(
            trial=trial.number,
            attempt=trial.attempt,
            outcome=Outcome.FAILED,
            eval_loss=None,
            reason=f"{type(error).__name__}: {error}",
        )
