"""Budgets: what a study and each of its trials may use, over runs, kills and prices."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sweeping import (
    Recorder,
    in_optuna,
    prepare,
    stored,
    sweep_config,
    take,
    tick_report,
)

from sweep.budget import told
from sweep.config import Limits, SweepConfig
from sweep.driver import SweepDriver
from sweep.ending import BUDGET, FAILED, INTERRUPTED
from sweep.run import run_sweep
from sweep.store import RunRecord
from sweep.store.database import sqlite_path
from sweep.store.runs import Used, used_by
from trials.contract import CONTINUE, Driver, InputError, Outcome, TrialConfig, TrialResult

HOUR = 3600.0


class Clock:
    """Seconds, set by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(
    config: SweepConfig, clock: Clock, seen: Recorder | None = None, devices: int = 1
) -> tuple[SweepDriver, Driver]:
    """A driver with so many devices, and a worker's view of it."""
    driver = SweepDriver(config, seen or Recorder(), clock=clock)
    driver.devices = devices
    link = driver.connect("w0")
    link.prepared(prepare(config, link))
    return driver, link


def killed(config: SweepConfig) -> None:
    """What the lock of a dead driver is to the next one; this process lives, so it is removed."""
    with sqlite3.connect(str(sqlite_path(config.storage))) as db:
        db.execute("delete from sweep_locks")


PRICE = "budget.price_per_hour=3"
STUDY = [  # what is typed, devices, hours until it is used up, what is typed to go on
    (("budget.max_hours=2",), 1, 2.0, "budget.max_hours=4"),
    (("budget.max_device_hours=2",), 4, 0.5, "budget.max_device_hours=4"),
    (("budget.max_money=12", PRICE), 2, 2.0, "budget.max_money=24"),
]


@pytest.mark.parametrize(("typed", "devices", "hours", "more"), STUDY)
def test_a_budget_stops_the_study_over_all_its_runs(
    typed: tuple[str, ...], devices: int, hours: float, more: str, tmp_path: Path
) -> None:
    config, clock, seen = sweep_config(tmp_path, *typed), Clock(), Recorder()
    driver, link = opened(config, clock, devices=devices)
    trial = take(link)
    clock.now = 0.6 * hours * HOUR
    assert link.alive(trial.number, trial.attempt) == CONTINUE
    assert driver.close().code == FAILED  # its only worker left
    driver, link = opened(config, clock, seen, devices=devices)
    trial = take(link)
    clock.now = hours * HOUR
    verdict = link.alive(trial.number, trial.attempt)
    assert verdict.outcome is Outcome.STOPPED and typed[0] in str(verdict.reason)
    ending = driver.close()
    assert (ending.code, ending.more) == (BUDGET, more)
    assert seen.closed_with and seen.closed_with.used
    assert seen.closed_with.used.device_seconds == pytest.approx(hours * devices * HOUR)
    assert [trial.state for trial in in_optuna(config)] == [TrialState.RUNNING]  # is remembered
    again = Recorder()
    assert run_sweep(config, again) == BUDGET and again.starts == []  # nothing is loaded for it
    rest = [text for text in typed if text.split("=")[0] != more.split("=")[0]]
    assert run_sweep(sweep_config(tmp_path, *rest, more, "n_trials=1"), Recorder()) == 0


def test_loading_counts_too(tmp_path: Path) -> None:
    config, clock = sweep_config(tmp_path, "budget.max_hours=2"), Clock()
    driver = SweepDriver(config, Recorder(), clock=clock)
    clock.now = HOUR
    link = driver.connect("w0")
    link.prepared(prepare(config, link))
    driver.close()
    assert stored(config)[0].seconds == HOUR


def test_a_killed_run_counts_up_to_its_last_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.study.lock.BEAT_S", 0.0)
    config, clock, seen = sweep_config(tmp_path, "budget.max_money=10", PRICE), Clock(), Recorder()
    _, link = opened(config, clock, devices=2)
    trial = take(link)
    clock.now = HOUR
    link.alive(trial.number, trial.attempt)
    killed(config)
    driver, _ = opened(config, clock, seen, devices=1)
    assert seen.opened_with and seen.opened_with.used.money == pytest.approx(6.0)
    driver.close()


def test_a_database_from_before_runs_were_kept(tmp_path: Path) -> None:
    config, clock, seen = sweep_config(tmp_path), Clock(), Recorder()
    driver, _ = opened(config, clock)
    clock.now = HOUR
    driver.close()
    with sqlite3.connect(str(sqlite_path(config.storage))) as db:
        db.execute("drop table sweep_runs")
    limited = sweep_config(tmp_path, "budget.max_money=10", PRICE)
    driver, _ = opened(limited, clock, seen)
    assert seen.opened_with and seen.opened_with.used == Used(
        seconds=HOUR, device_seconds=HOUR, money=3.0
    )
    driver.close()


def test_each_run_costs_what_a_device_cost_then() -> None:
    runs = [run(price_per_hour=price, seconds=HOUR, devices=2) for price in (1.0, None, 3.0)]
    assert used_by(runs, 2.0).money == pytest.approx(2 + 4 + 6)
    assert used_by(runs[1:2], None).money is None


def run(**changes: Any) -> RunRecord:
    plain = {"run": 0, "host": "h", "pid": 1, "devices": 1, "price_per_hour": None,
             "started_at": 0.0}  # fmt: skip
    return RunRecord(**{**plain, **changes})


TRIAL = [  # what is typed, minutes at a worker until it is used up with two trials on one device
    (("budget.max_trial_minutes=10",), 10),
    (("budget.max_trial_device_minutes=10",), 20),
    (("budget.max_trial_money=1", "budget.price_per_hour=6"), 20),
]


@pytest.mark.parametrize(("typed", "minutes"), TRIAL)
def test_a_trial_beyond_its_budget_is_pruned_with_the_reason(
    typed: tuple[str, ...], minutes: int, tmp_path: Path
) -> None:
    config, clock = sweep_config(tmp_path, *typed), Clock()
    driver, link = opened(config, clock)
    first, second = take(link), take(link)
    link.report(tick_report(first, 1, 0.9))
    clock.now = 60 * (minutes - 1)
    assert link.alive(first.number, first.attempt) == CONTINUE
    clock.now = 60 * minutes
    verdict = link.alive(first.number, first.attempt)
    assert verdict.outcome is Outcome.PRUNED and typed[0] in str(verdict.reason)
    link.finish(result(first, verdict.outcome, verdict.reason))
    assert link.report(tick_report(second, 2, 0.9)).outcome is Outcome.PRUNED
    driver.stop(INTERRUPTED, "interrupted")
    driver.close()
    told_of = in_optuna(config)[0]
    assert told_of.state is TrialState.PRUNED and told_of.value == 0.9  # the sampler learns
    assert typed[0] in str(stored(config)[1][0].reason)


def result(
    trial: TrialConfig, outcome: Outcome = Outcome.COMPLETE, reason: str | None = None
) -> TrialResult:
    return TrialResult(trial=trial.number, attempt=trial.attempt, outcome=outcome, eval_loss=0.9,
                       ticks=1, reason=reason)  # fmt: skip


def test_a_trial_that_comes_to_its_last_tick_is_complete_however_long_it_took(
    tmp_path: Path,
) -> None:
    clock = Clock()
    driver, link = opened(sweep_config(tmp_path, "budget.max_trial_minutes=1"), clock)
    trial = take(link)
    clock.now = HOUR
    assert link.report(tick_report(trial, 5, 0.9)) == CONTINUE
    driver.close()


def test_a_trials_time_counts_over_its_attempts_and_over_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.study.lock.BEAT_S", 0.0)
    config, clock = sweep_config(tmp_path, "budget.max_trial_minutes=10"), Clock()
    driver, link = opened(config, clock)
    take(link)
    clock.now = 240
    driver.beat()
    driver.lost("w0", "killed by SIGKILL")
    take(link)
    clock.now = 480
    driver.beat()
    killed(config)
    driver, link = opened(config, clock)
    trial = take(link)
    assert trial.attempt == 2 and link.alive(0, 2) == CONTINUE
    clock.now = 601
    assert link.alive(0, 2).outcome is Outcome.PRUNED
    driver.close()


def test_between_ticks_the_user_stops_a_trial_and_it_is_remembered(tmp_path: Path) -> None:
    config = sweep_config(tmp_path)
    driver, link = opened(config, Clock())
    trial = take(link)
    assert link.alive(trial.number, trial.attempt) == CONTINUE
    driver.stop(INTERRUPTED, "interrupted")
    verdict = link.alive(trial.number, trial.attempt)
    assert (verdict.stop, verdict.outcome) == (True, Outcome.STOPPED)
    assert driver.connect("w1").alive(trial.number, trial.attempt).stop  # it is not w1's
    link.finish(result(trial, verdict.outcome, verdict.reason))
    assert driver.close().code == INTERRUPTED
    assert stored(config)[1][0].outcome == "stopped"
    assert in_optuna(config)[0].state is TrialState.RUNNING


def test_what_is_used_is_said_for_each_budget_and_each_price() -> None:
    used = Used(seconds=90 * 60, device_seconds=3 * HOUR, money=7.5)
    limits = Limits(n_trials=1, max_hours=2, max_device_hours=4, max_money=20, price_per_hour=2.5)
    assert told(limits, used) == ["1:30:00 of 2 h", "3.00 device-hours of 4", "money 7.50 of 20"]
    assert told(Limits(n_trials=1, price_per_hour=2.5), used) == ["money 7.50"]
    assert told(Limits(n_trials=1), Used()) == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("max_hours=-1", "a number of hours above 0"),
        ("max_hours=0", "above 0"),
        ("max_hours=nan", "above 0"),
        ("max_hours=inf", "at most 8784"),
        ("max_hours=86400", "at most 8784"),
        ("max_hours=90m", "Type budget.max_hours=1.5."),
        ("max_hours=1h30m", "Type budget.max_hours=1.5."),
        ("max_trial_minutes=2:00:00", "Type budget.max_trial_minutes=120."),
        ("max_trial_device_minutes=30s", "Type budget.max_trial_device_minutes=0.5."),
        ("max_money=20", "Type for example budget.price_per_hour="),
        ("max_trial_money=1", "Type for example budget.price_per_hour="),
        ("max_money=$20", "Type budget.max_money=20."),
        ("price_per_hour=2.5EUR", "Type budget.price_per_hour=2.5."),
        ("max_hours=soon", "not a number of hours"),
        ("wall_clock_hours=2", "Did you mean 'budget.max_hours'?"),
        ("max_failures=0", "at least 1"),
    ],
)
def test_a_budget_that_cannot_be_is_told(typed: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        sweep_config(tmp_path, f"budget.{typed}")
    assert said in str(error.value)
