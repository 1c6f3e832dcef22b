"""What is remembered of trials that had too little memory, in this run and in the next one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sweeping import Recorder, in_optuna, ready, stored, sweep_config, take, tick_report

from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.study.ledger import ROOM_S
from trials.contract import Driver, Outcome, TrialConfig, TrialResult, Turn

FULL = "does not fit into memory beside other processes, which hold 60.0 GiB of cuda:0's 79.6 GiB"


def starved(config: SweepConfig, times: int) -> None:
    """A run whose worker the host's memory killer takes so often; then its driver is gone."""
    driver, link = ready(config)
    for _ in range(times):
        take(link)
        driver.lost("w0", "killed by SIGKILL", memory=True)
    driver.close()


def test_a_halved_micro_batch_outlives_the_driver(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "train.batch_size=16", "n_trials=1")
    for rows in (8, 4, 2):  # each found out in a run of its own
        starved(config, 1)
        seen = Recorder()
        driver, link = ready(config, seen)
        trial = take(link)
        assert (trial.train.batch_size, trial.train.micro_batch_size) == (16, rows)
        driver.close()


def test_also_where_it_is_not_handed_out_again_before_the_driver_dies(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "train.batch_size=16", "n_trials=1")
    starved(config, 2)
    assert in_optuna(config)[0].user_attrs["micro_batch_size"] == 4
    assert stored(config)[1][0].attempt == 1  # no later attempt has begun
    driver, link = ready(config)
    assert take(link).train.micro_batch_size == 4
    driver.close()


def test_what_the_user_types_is_never_made_larger(tmp_path: Path) -> None:
    typed = ["train.batch_size=16", "n_trials=2"]
    starved(sweep_config(tmp_path, *typed), 1)
    for most, rows in ((2, 2), (12, 8)):
        config = sweep_config(tmp_path, *typed, f"train.micro_batch_size={most}")
        driver, link = ready(config)
        assert take(link).train.micro_batch_size == rows
        assert take(link).train.micro_batch_size == most  # of a trial that never lacked memory
        driver.close()


# --- a device that is full of what others hold -------------------------------------------------


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def done(trial: TrialConfig, outcome: Outcome = Outcome.STOPPED) -> TrialResult:
    return TrialResult(trial=trial.number, attempt=trial.attempt, outcome=outcome,
                       eval_loss=None, reason=FULL)  # fmt: skip


def opened(config: SweepConfig, seen: Recorder) -> tuple[SweepDriver, Driver, Clock]:
    clock = Clock()
    return *ready(config, seen, clock=clock), clock


def test_it_is_tried_again_when_there_may_be_room(tmp_path: Path) -> None:
    seen = Recorder()
    driver, link, clock = opened(config := sweep_config(tmp_path), seen)
    trial = take(link)
    link.report(tick_report(trial, 1, 0.9))
    link.finish(done(trial))
    assert link.next_trial() is Turn.WAIT  # nothing else either, on a device that is full
    clock.now = ROOM_S
    again = take(link)
    assert (again.number, again.attempt) == (trial.number, trial.attempt + 1)
    link.report(tick_report(again, 5, 0.5))
    link.finish(replace(done(again), outcome=Outcome.COMPLETE, eval_loss=0.5, reason=None))
    driver.close()
    assert [result.outcome for result in seen.results] == [Outcome.STOPPED, Outcome.COMPLETE]
    assert seen.results[0].reason == f"{FULL}; it is tried again later"
    assert in_optuna(config)[0].state is TrialState.COMPLETE


def test_a_worker_on_another_device_may_take_it_at_once(tmp_path: Path) -> None:
    driver, link, _ = opened(sweep_config(tmp_path), Recorder())
    trial = take(link)
    link.finish(done(trial))
    assert take(driver.connect("w1")).number == trial.number
    assert take(link).number == trial.number + 1  # nothing waits for room any more
    driver.close()


@pytest.mark.parametrize(("workers", "outcome"), [(1, "failed"), (4, "infeasible")])
def test_the_second_time_it_ends(tmp_path: Path, workers: int, outcome: str) -> None:
    """Of strangers the sampler learns nothing; of the room that the sweep gives itself it does."""
    config = sweep_config(tmp_path, "n_trials=1")
    driver, link, clock = opened(config, Recorder())
    driver.workers = workers  # that have started, on one device
    for _ in range(2):
        link.finish(done(take(link)))
        clock.now += ROOM_S
    driver.close()
    record, frozen = stored(config)[1][0], in_optuna(config)[0]
    assert (record.outcome, record.reason, record.attempt) == (outcome, FULL, 1)
    learnt = {"failed": TrialState.FAIL, "infeasible": TrialState.PRUNED}
    assert frozen.state is learnt[outcome]


def test_one_that_got_further_meanwhile_is_tried_once_more(tmp_path: Path) -> None:
    driver, link, clock = opened(config := sweep_config(tmp_path, "pruner=none"), Recorder())
    for tick in (1, 2, 3):
        link.report(tick_report(trial := take(link), tick, 0.9))
        link.finish(done(trial))
        clock.now += ROOM_S
    link.report(replace(tick_report(trial := take(link), 3, 0.9), again=True))
    link.finish(done(trial))
    driver.close()
    [record] = stored(config)[1]
    assert (record.outcome, record.attempt, record.reason) == ("failed", 3, FULL)


def test_where_the_run_ends_meanwhile_the_next_one_tries_it(tmp_path: Path) -> None:
    driver, link, _ = opened(config := sweep_config(tmp_path), Recorder())
    link.finish(done(take(link)))
    driver.close()
    driver, link = ready(config)
    again = take(link)
    assert (again.number, again.attempt) == (0, 1)
    driver.close()
