"""A driver after another one that died or was interrupted: nothing is lost, nothing told twice."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sweeping import (
    Recorder,
    end,
    in_optuna,
    prepare,
    ready,
    run_inline,
    stored,
    sweep_config,
    take,
    tell,
)

from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.store import Store
from sweep.store.database import sqlite_path
from trials.contract import Outcome, Report, TrialResult, Verdict


def test_ticks_told_before_a_crash_stay_told(config: SweepConfig) -> None:
    """As after kill -9: nothing is closed, the next driver starts from the database alone."""
    _, link = ready(config)
    one, two = take(link), take(link)
    tell(link, one, 2, 0.5)
    tell(link, two, 1, 0.9)
    tell(link, two, 2, 0.7)  # pruned, but the driver dies before the worker can say so
    abandon(config)

    seen = Recorder()
    driver, link = ready(config, seen)
    take(link)
    again = take(link)
    assert not tell(link, again, 1, 0.9).stop
    assert tell(link, again, 2, 0.7).reason == (
        "pruned at tick 2 of 5: loss 0.7 is not in the best half of 2 trials at this tick "
        "(needs 0.5)"
    )
    assert seen.reports == []  # they were shown when they were new
    end(link, again, Outcome.PRUNED)
    driver.close()
    assert stored(config)[1][1].losses == (0.9, 0.7)


def test_a_trial_that_ended_in_our_tables_is_only_told(config: SweepConfig) -> None:
    _, link = ready(config)
    trial = take(link)
    tell(link, trial, 5, 0.5)
    result = TrialResult(trial=0, attempt=0, outcome=Outcome.COMPLETE, eval_loss=0.5, ticks=5)
    store = Store(config.storage, create=True)
    store.finish(stored(config)[0].uuid, result, first_rung_loss=None)
    store.close()
    abandon(config)

    seen = Recorder()
    driver, link = ready(config, seen)
    assert [r.trial for r in seen.results] == [0] and take(link).number == 1
    driver.close()
    assert in_optuna(config)[0].state is TrialState.COMPLETE


def test_a_tick_in_our_tables_reaches_optuna_too(config: SweepConfig) -> None:
    _, link = ready(config)
    trial = take(link)
    report = Report(trial=0, attempt=0, tick=1, eval_loss=0.9, examples=240, tokens=1, seconds=1.0)
    store = Store(config.storage, create=True)
    store.tick(stored(config)[0].uuid, report, first_rung=2)
    store.close()
    abandon(config)
    driver, link = ready(config)
    trial = take(link)
    tell(link, trial, 1, 0.9)
    driver.close()
    assert in_optuna(config)[0].intermediate_values == {1: 0.9}
    assert stored(config)[1][0].losses == (0.9,)


@pytest.mark.parametrize("caught_up", range(0, 8))
def test_changes_that_waited_when_a_driver_died_are_made_by_the_next(
    config: SweepConfig, caught_up: int
) -> None:
    """At each place between the first of a trial's changes and its end in Optuna's tables."""
    first = SweepDriver(config, Recorder())
    first.most_behind = 100
    link = first.connect("w0")
    link.prepared(prepare(config, link))
    done, live = take(link), take(link)
    for tick in range(1, 6):
        tell(link, done, tick, 0.5)
    tell(link, live, 1, 0.9)
    end(link, done)
    assert [trial.intermediate_values for trial in in_optuna(config)] == [{}, {}]
    assert [record.losses for record in stored(config)[1]] == [(0.5,) * 5, (0.9,)]
    assert all(first.catch_up() for _ in range(caught_up))
    assert len(in_optuna(config)[0].intermediate_values) == min(caught_up, 5)
    abandon(config)

    seen = Recorder()
    driver, link = ready(config, seen)
    assert [result.trial for result in seen.results] == [0] and take(link).number == 1
    driver.close()
    assert in_optuna(config)[0].state is TrialState.COMPLETE
    assert [trial.intermediate_values for trial in in_optuna(config)] == [
        dict.fromkeys(range(1, 6), 0.5), {1: 0.9}]


def test_a_driver_that_leaves_makes_all_changes_that_wait(config: SweepConfig) -> None:
    driver = SweepDriver(config, Recorder())
    driver.most_behind = 2
    link = driver.connect("w0")
    link.prepared(prepare(config, link))
    trial = take(link)
    for tick in range(1, 6):
        tell(link, trial, tick, 0.5)
    assert len(in_optuna(config)[0].intermediate_values) == 3
    end(link, trial)
    driver.close()
    found = in_optuna(config)[0]
    assert found.state is TrialState.COMPLETE and len(found.intermediate_values) == 5
    assert found.user_attrs["outcome"] == "complete" and not driver.catch_up()


def abandon(config: SweepConfig) -> None:
    """Leaves a driver as kill -9 does, but for its lock, which would name this living process."""
    db = sqlite3.connect(str(sqlite_path(config.storage)))
    db.execute("delete from sweep_locks")
    db.commit()
    db.close()


def test_after_an_interruption_the_sweep_is_the_undisturbed_one(tmp_path: Path) -> None:
    whole, cut = sweep_config(tmp_path / "whole"), sweep_config(tmp_path / "cut")
    run_inline(whole)
    for reports in (3, 7, 12):
        with pytest.raises(KeyboardInterrupt):
            run_inline(cut, Interrupter(reports))
    run_inline(cut)
    assert [(r.params, r.losses, r.outcome, r.reason) for r in stored(cut)[1]] == [
        (r.params, r.losses, r.outcome, r.reason) for r in stored(whole)[1]
    ]


class Interrupter(Recorder):
    """Raises, as a crash of the driver would, at a certain report."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self._left = reports

    def reported(self, report: Report, verdict: Verdict) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
