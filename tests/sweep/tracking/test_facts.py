"""What trackers read of a trial: every tick once, also while it goes on, and honest rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import sweeping
from sweeping import ready

from sweep.store import Store
from sweep.tracking.facts import Row, Study, Trial, read_trial
from sweep.tracking.follow import show
from trials.contract import CurvePoint, Driver, Outcome, Report, TrialConfig, TrialResult

TICK = 240  # examples


@dataclass
class Shown:
    """A tracker's run."""

    logged: int = 0
    rows: list[Row] = field(default_factory=list)

    def log(self, row: Row) -> None:
        self.logged = row.examples
        self.rows.append(row)

    def end(self, trial: Trial) -> bool:
        return True


def _tell(link: Driver, trial: TrialConfig, tick: int) -> None:
    steps = range((tick - 1) * TICK + 8, tick * TICK + 1, 8)
    points = tuple(CurvePoint(examples=x, train_loss=1.0, learning_rate=1e-4, grad_norm=1.0,
                              tokens_per_s=1.0) for x in steps)  # fmt: skip
    link.report(Report(trial=trial.number, attempt=0, tick=tick, eval_loss=2.0 - 0.1 * tick,
                       examples=tick * TICK, tokens=1, seconds=1.0, history=points))  # fmt: skip


class Late(Store):
    """A store that is told the next tick just before a curve is read."""

    def __init__(self, url: str, link: Driver, trial: TrialConfig) -> None:
        super().__init__(url)
        self._link, self._trial, self._tick = link, trial, 1

    def curves(self, uuid: str, number: int) -> list[CurvePoint]:
        self._tick += 1
        if self._tick <= self._trial.budget.ticks:
            _tell(self._link, self._trial, self._tick)
        return super().curves(uuid, number)


def test_a_tick_that_comes_while_one_reads_is_not_lost(tmp_path: Path) -> None:
    config = sweeping.sweep_config(tmp_path, "pruner=none")
    driver, link = ready(config)
    trial = link.next_trial()
    assert isinstance(trial, TrialConfig)
    _tell(link, trial, 1)
    store, run = Late(config.storage, link, trial), Shown()
    [row] = store.studies()
    study = Study(record=row, setup=store.setup(row.uuid), folder=tmp_path, options={})
    for _ in range(trial.budget.ticks):
        show(run, read_trial(store, study, 0))
    link.finish(TrialResult(trial=0, attempt=0, outcome=Outcome.COMPLETE, eval_loss=1.5, ticks=5))
    show(run, read_trial(store, study, 0))
    told = {r.examples: r.values["eval_loss"] for r in run.rows if "eval_loss" in r.values}
    assert list(told) == [TICK * tick for tick in range(1, 6)]
    assert [r.examples for r in run.rows] == list(range(8, 5 * TICK + 1, 8))
    assert all("train_loss" in row.values for row in run.rows)
    store.close()
    driver.close()


def test_rates_are_per_second_of_training_alone(tmp_path: Path) -> None:
    config = sweeping.sweep_config(tmp_path)
    driver, link = ready(config)
    trial = link.next_trial()
    assert isinstance(trial, TrialConfig)
    link.finish(TrialResult(trial=0, attempt=0, outcome=Outcome.COMPLETE, eval_loss=1.5, ticks=5,
                            tokens=700, seconds=10.0, eval_seconds=1.0, sample_seconds=2.0))
    store = Store(config.storage)
    [row] = store.studies()
    study = Study(record=row, setup=store.setup(row.uuid), folder=tmp_path, options={})
    summary = read_trial(store, study, 0).summary()
    assert (summary["tokens_per_s"], summary["sample_seconds"]) == (100.0, 2.0)
    store.close()
    driver.close()
