"""What the driver's tests share: a small simulated sweep, and an observer that remembers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from sweep.config import SweepConfig, compose
from sweep.driver import SweepDriver
from sweep.observers import Closed, Opened
from sweep.space import assignment
from sweep.store import Store, StudyRecord, TrialRecord
from sweep.store.database import engine_options
from trials.contract import Driver, Outcome, Report, Setup, TrialConfig, TrialResult, Verdict
from trials.engines import engine_module
from trials.worker import work

SPACE = ("lora.r=choice(4,8,16,32,64)", "train.learning_rate=tag(log,interval(2e-5,5e-3))")


def sweep_config(
    folder: Path,
    *overrides: str,
    space: tuple[str, ...] = SPACE,
    config_dir: Path | None = None,
) -> SweepConfig:
    """Eight trials of five ticks, without a pause, in `folder`; later overrides win."""
    typed = [
        "engine=simulated", "engine.seconds_per_tick=0", "tracking=none", "device=cpu",
        "study=test", "n_trials=8", f"results_dir={folder / 'results'}", *space, *overrides,
    ]  # fmt: skip
    last = {text.partition("=")[0]: text for text in typed}
    return compose(list(last.values()), config_dir)


class Recorder:
    """An observer that keeps what it was shown."""

    def __init__(self) -> None:
        self.opened_with: Opened | None = None
        self.closed_with: Closed | None = None
        self.starts: list[tuple[int, int, str]] = []  # number, attempt, worker
        self.reports: list[tuple[Report, Verdict]] = []
        self.results: list[TrialResult] = []
        self.notes: list[str] = []
        self.loading: list[tuple[str, str]] = []  # worker, what

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        self.loading.append((worker, what))

    def opened(self, opened: Opened) -> None:
        self.opened_with = opened

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        self.starts.append((trial.number, trial.attempt, worker))

    def reported(self, report: Report, verdict: Verdict) -> None:
        self.reports.append((report, verdict))

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        self.results.append(result)

    def closed(self, closed: Closed) -> None:
        self.closed_with = closed

    def note(self, text: str) -> None:
        self.notes.append(text)


def prepare(config: SweepConfig, driver: Driver, worker: str = "w0") -> Setup:
    """What the simulated engine finds while it prepares."""
    given = assignment(config, worker=worker, device="cpu")
    return engine_module(config.engine.name).prepare(given, driver)[1]


def ready(config: SweepConfig, observer: Any = None, **options: Any) -> tuple[SweepDriver, Driver]:
    """A driver with an open study, and one worker's view of it."""
    driver = SweepDriver(config, observer or Recorder(), **options)
    link = driver.connect("w0")
    link.prepared(prepare(config, link))
    return driver, link


def take(link: Driver) -> TrialConfig:
    """The trial that a worker is given; there must be one."""
    trial = link.next_trial()
    assert isinstance(trial, TrialConfig)
    return trial


def tick_report(trial: TrialConfig, tick: int, loss: float) -> Report:
    """What a worker says at a tick."""
    return Report(trial=trial.number, attempt=trial.attempt, tick=tick, eval_loss=loss,
                  examples=240 * tick, tokens=1, seconds=1.0)  # fmt: skip


def tell(link: Driver, trial: TrialConfig, tick: int, loss: float) -> Verdict:
    """A worker's report at a tick, answered."""
    return link.report(tick_report(trial, tick, loss))


def end(
    link: Driver, trial: TrialConfig, outcome: Outcome = Outcome.COMPLETE, loss: float | None = 0.5
) -> None:
    """A worker's trial has ended."""
    link.finish(
        TrialResult(trial=trial.number, attempt=trial.attempt, outcome=outcome, eval_loss=loss,
                    reason=None if outcome is Outcome.COMPLETE else "for a reason")
    )  # fmt: skip


def run_inline(config: SweepConfig, observer: Any = None) -> SweepDriver:
    """The whole sweep with one worker in this process; the driver is closed."""
    driver = SweepDriver(config, observer or Recorder())
    try:
        work(assignment(config, worker="w0", device="cpu"), driver.connect("w0"))
    finally:
        driver.ended = driver.close()  # type: ignore[attr-defined]
    return driver


def stored(config: SweepConfig) -> tuple[StudyRecord, list[TrialRecord]]:
    """The study and its trials as our tables have them."""
    store = Store(config.storage)
    try:
        study = next(s for s in store.studies() if s.study == config.study)
        return study, store.trials(study.uuid)
    finally:
        store.close()


def in_optuna(config: SweepConfig) -> list[optuna.trial.FrozenTrial]:
    """The study's trials as Optuna's tables have them."""
    storage = optuna.storages.RDBStorage(
        config.storage, engine_kwargs=engine_options(config.storage)
    )
    try:
        return optuna.load_study(study_name=config.study, storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()
