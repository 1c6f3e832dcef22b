"""The driver, method by method, with a worker that is this test."""

from __future__ import annotations

import dataclasses
import math
import threading
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
    tick_report,
)

from sweep.config import SweepConfig
from sweep.ending import BUDGET, COMPLETE, FAILED, INTERRUPTED
from sweep.observers import Observers
from sweep.store import Store
from trials.contract import (
    InputError,
    Outcome,
    Report,
    Sample,
    TrialConfig,
    Turn,
    Verdict,
)


def test_a_sweep_ends_with_every_trial_told(config: SweepConfig) -> None:
    seen = Recorder()
    driver = run_inline(config, seen)
    states = [trial.state for trial in in_optuna(config)]
    assert len(states) == 8 and set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert driver.ended.code == COMPLETE and seen.closed_with and seen.closed_with.complete
    assert [result.trial for result in seen.results] == list(range(8))


def test_our_tables_agree_with_optunas(config: SweepConfig) -> None:
    run_inline(config)
    study, records = stored(config)
    for record, frozen in zip(records, in_optuna(config), strict=True):
        assert record.outcome == frozen.user_attrs["outcome"] == frozen.state.name.lower()
        assert record.losses == tuple(frozen.intermediate_values.values())
        assert record.eval_loss == frozen.value == record.losses[-1]
        assert record.first_rung_loss == frozen.intermediate_values[study.first_rung]
        assert dict(record.params) == frozen.params
        assert record.reason == frozen.user_attrs.get("reason")


def test_a_stopped_trial_is_not_heard_again(config: SweepConfig) -> None:
    driver, link = ready(config)
    good, bad = take(link), take(link)
    assert not tell(link, good, 2, 0.5).stop
    verdict = tell(link, bad, 2, 0.9)
    assert verdict.stop and verdict.outcome is Outcome.PRUNED
    assert tell(link, bad, 3, 0.1) == verdict
    driver.close()
    assert stored(config)[1][1].losses == (0.9,)


def test_a_trial_finishes_once(config: SweepConfig) -> None:
    seen = Recorder()
    driver, link = ready(config, seen)
    trial = take(link)
    end(link, trial)
    end(link, trial, Outcome.FAILED)
    end(link, dataclasses.replace(trial, number=99))
    driver.close()
    assert [result.outcome for result in seen.results] == [Outcome.COMPLETE]
    assert in_optuna(config)[0].state is TrialState.COMPLETE


def test_the_worker_of_an_earlier_attempt_is_not_heard(config: SweepConfig) -> None:
    driver, link = ready(config)
    trial = take(link)
    driver.lost("w0", "killed by SIGKILL")
    other = driver.connect("w1")
    again = take(other)
    assert (again.number, again.attempt) == (trial.number, trial.attempt + 1)
    assert tell(link, trial, 1, 0.5).stop
    end(link, trial)
    assert not tell(other, again, 1, 0.6).stop
    driver.close()
    assert stored(config)[1][0].losses == (0.6,)


def test_a_no_explains_itself(config: SweepConfig) -> None:
    driver, link = ready(config)
    for loss in (0.5, 0.7, 0.6):
        trial = take(link)
        verdict = tell(link, trial, 2, loss)
    driver.close()
    assert verdict.reason == (
        "pruned at tick 2 of 5: loss 0.6 is not in the best half of 3 trials at this tick "
        "(needs 0.5)"
    )


def test_the_last_tick_prunes_nobody(tmp_path: Path) -> None:
    driver, link = ready(sweep_config(tmp_path, "pruner.min_fraction=1"))
    for loss in (0.5, 0.9):
        trial = take(link)
        assert not tell(link, trial, 5, loss).stop
    driver.close()


def test_nobody_is_pruned_during_its_own_warm_up(tmp_path: Path) -> None:
    driver, link = ready(sweep_config(tmp_path, "train.warmup=0.5"))
    for loss in (0.5, 0.9):
        trial = take(link)
        assert not tell(link, trial, 2, loss).stop
    driver.close()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_its_trial(config: SweepConfig, loss: float) -> None:
    driver, link = ready(config)
    trial = take(link)
    tell(link, trial, 1, 0.8)
    verdict = tell(link, trial, 2, loss)
    assert verdict.stop and verdict.outcome is Outcome.DIVERGED
    end(link, trial, Outcome.PRUNED, loss)
    driver.close()
    frozen, record = in_optuna(config)[0], stored(config)[1][0]
    assert frozen.state is TrialState.PRUNED and record.outcome == "diverged"
    assert record.reason == f"evaluation loss is {loss} at tick 2 of 5"
    assert frozen.constraints == {"trains": 1.0}  # the sampler ranks it last


def test_complete_without_a_finite_loss_is_diverged(config: SweepConfig) -> None:
    driver, link = ready(config)
    end(link, take(link), Outcome.COMPLETE, math.nan)
    driver.close()
    assert stored(config)[1][0].outcome == "diverged"
    assert in_optuna(config)[0].state is TrialState.PRUNED


def test_infeasible_is_pruned_for_the_sampler_and_failed_is_not(config: SweepConfig) -> None:
    driver, link = ready(config)
    end(link, take(link), Outcome.INFEASIBLE, None)
    end(link, take(link), Outcome.FAILED, None)
    driver.close()
    assert [t.state for t in in_optuna(config)] == [TrialState.PRUNED, TrialState.FAIL]
    assert [r.reason for r in stored(config)[1]] == ["for a reason"] * 2


def test_failed_trials_do_not_count(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "engine.faults=[exception@0:1,exception@3:2]")
    run_inline(config)
    outcomes = [r.outcome for r in stored(config)[1]]
    assert outcomes.count("failed") == 2 and len(outcomes) == 10


def test_failures_in_a_row_end_the_sweep(tmp_path: Path) -> None:
    faults = ",".join(f"exception@{number}:1" for number in range(1, 9))
    config = sweep_config(tmp_path, f"engine.faults=[{faults}]", "budget.max_failures=3")
    driver = run_inline(config)
    assert driver.ended.code == FAILED and "3 trials failed in a row" in driver.ended.reason
    assert len(stored(config)[1]) == 4


def test_wait_while_another_worker_may_fail_and_done_when_all_are_told(tmp_path: Path) -> None:
    driver, link = ready(sweep_config(tmp_path, "n_trials=1"))
    other = driver.connect("w1")
    trial = take(link)
    assert other.next_trial() is Turn.WAIT
    end(link, trial, Outcome.FAILED, None)
    trial = take(other)
    assert trial.number == 1 and link.next_trial() is Turn.WAIT
    end(other, trial)
    assert link.next_trial() is other.next_trial() is Turn.DONE
    assert driver.close().code == COMPLETE


def test_workers_share_what_is_left(tmp_path: Path) -> None:
    driver, link = ready(sweep_config(tmp_path, "n_trials=5"))
    driver.workers, other = 2, driver.connect("w1")
    held = [take(link) for _ in range(3)]
    assert link.next_trial() is Turn.WAIT  # it holds its half of five
    rest = [take(other), take(other)]
    end(link, held[0])
    assert link.next_trial() is other.next_trial() is Turn.WAIT
    for mine, trials in ((link, held[1:]), (other, rest)):
        for trial in trials:
            end(mine, trial)
    assert link.next_trial() is other.next_trial() is Turn.DONE


def test_a_worker_does_the_part_of_one_that_is_given_up(tmp_path: Path) -> None:
    driver, link = ready(sweep_config(tmp_path, "n_trials=4"))
    driver.workers = 2
    held = [take(link), take(link)]
    assert link.next_trial() is Turn.WAIT
    driver.gave_up("w1", "it never came")
    held += [take(link), take(link)]
    for trial in held:
        end(link, trial)
    assert link.next_trial() is Turn.DONE


def test_a_users_stop_leaves_trials_to_be_continued(config: SweepConfig) -> None:
    driver, link = ready(config)
    trial = take(link)
    tell(link, trial, 1, 0.9)
    driver.stop(INTERRUPTED, "interrupted")
    verdict = tell(link, trial, 2, 0.8)
    assert verdict.outcome is Outcome.STOPPED and link.next_trial() is Turn.DONE
    end(link, trial, verdict.outcome, 0.8)
    assert driver.close().code == INTERRUPTED
    assert in_optuna(config)[0].state is TrialState.RUNNING
    assert stored(config)[1][0].outcome == "stopped"

    driver, link = ready(config)
    again = take(link)
    assert (again.number, again.attempt, again.lora) == (0, 1, trial.lora)
    driver.close()


def test_a_stop_lets_a_trial_at_its_last_tick_complete(config: SweepConfig) -> None:
    driver, link = ready(config)
    trial = take(link)
    driver.stop(INTERRUPTED, "interrupted")
    assert not tell(link, trial, 5, 0.5).stop
    end(link, trial)
    driver.close()
    assert in_optuna(config)[0].state is TrialState.COMPLETE


def test_wall_clock_counts_over_all_runs(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "budget.max_hours=1")
    now = 0.0
    driver, link = ready(config, clock=lambda: now)
    take(link)
    now = 3000.0
    assert driver.close().code == FAILED  # its only worker left
    driver, link = ready(config, clock=lambda: now)
    trial = take(link)
    assert not tell(link, trial, 1, 0.9).stop
    now = 3700.0
    verdict = tell(link, trial, 2, 0.8)
    assert verdict.outcome is Outcome.STOPPED and "budget.max_hours=1 is" in str(verdict.reason)
    ending = driver.close()
    assert (ending.code, ending.more) == (BUDGET, "budget.max_hours=2.06")
    assert stored(config)[0].seconds == pytest.approx(3700.0)


def test_a_study_that_got_all_its_trials_in_time_is_complete(tmp_path: Path) -> None:
    now = 0.0
    config = sweep_config(tmp_path, "budget.max_hours=1", "n_trials=1")
    driver, link = ready(config, clock=lambda: now)
    trial = take(link)
    now = 3700.0
    end(link, trial)
    assert link.next_trial() is Turn.DONE
    ending = driver.close()
    assert (ending.code, ending.reason) == (COMPLETE, "all 1 trials are done")


def test_progress_within_a_trial_is_a_sign_of_life_and_no_more(config: SweepConfig) -> None:
    seen = Recorder()
    driver, link = ready(config, seen)
    link.progress("loading", 1, 2)
    before = list(seen.loading)
    trial = take(link)
    link.progress("trial 0", 8, 1200)
    driver.connect("w1").progress("loading", 1, 2)
    assert before[-1] == ("w0", "loading") and seen.loading[len(before):] == [("w1", "loading")]
    end(link, trial)
    driver.close()


def test_pruning_after_a_restart_counts_the_diverged(config: SweepConfig) -> None:
    driver, link = ready(config)
    for loss in (0.5, 0.6, math.nan):
        trial = take(link)
        tell(link, trial, 1, 0.9)
        stopped = tell(link, trial, 2, loss)
        end(link, trial, stopped.outcome if stopped.stop else Outcome.COMPLETE, loss)
    driver.close()
    driver, link = ready(config)
    trial = take(link)
    tell(link, trial, 1, 0.9)
    assert not tell(link, trial, 2, 0.55).stop  # in the best half of four, not of three
    driver.close()


def test_an_equal_configuration_is_copied_not_trained(tmp_path: Path) -> None:
    space = ("lora.r=choice(4,8)", "lora.dropout=choice(0,0.1)")
    config = sweep_config(tmp_path, "n_trials=12", "sampler=random", space=space)
    seen = Recorder()
    driver = run_inline(config, seen)
    trained = {number for number, _, worker in seen.starts if worker == "w0"}
    records = stored(config)[1]
    copies = [record for record in records if record.number not in trained]
    assert len(trained) == 4 and copies
    for copy in copies:
        original = next(r for r in records if r.params == copy.params)
        assert (copy.losses, copy.outcome) == (original.losses, original.outcome)
        assert str(copy.reason).startswith(f"same configuration as trial {original.number}")
        assert copy.seconds == 0 and copy.tokens == 0
        assert last_samples(config, copy.number) == last_samples(config, original.number)
    assert driver.ended.reason == "all 4 points of the search space are tried"
    assert driver.ended.code == COMPLETE


def last_samples(config: SweepConfig, number: int) -> tuple[Sample, ...]:
    """What a trial wrote at its end, as stored."""
    store = Store(config.storage)
    try:
        return next(reversed(store.samples(stored(config)[0].uuid, number).values()), ())
    finally:
        store.close()


@pytest.mark.parametrize("at_ticks", [False, True])
def test_samples_are_stored_next_to_the_bases(tmp_path: Path, at_ticks: bool) -> None:
    config = sweep_config(tmp_path, "samples=2", f"samples_at_ticks={str(at_ticks).lower()}")
    seen = Recorder()
    run_inline(config, seen)
    study, records = stored(config)
    store = Store(config.storage)
    base = store.baseline_samples(study.uuid)
    found = {record.number: store.samples(study.uuid, record.number) for record in records}
    store.close()
    assert len(base) == 2 and {r.outcome for r in records} == {"complete", "pruned"}
    for record in records:
        every = range(1, record.ticks + 1) if at_ticks else [5] if record.ticks == 5 else []
        assert list(found[record.number]) == list(every)
        for written in found[record.number].values():
            assert [s.prompt for s in written] == [s.prompt for s in base]
    assert {r.trial: r.samples for r in seen.results} == {
        number: next(reversed(written.values()), ()) for number, written in found.items()
    }


def test_no_samples_are_no_samples(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "samples=0")
    run_inline(config)
    assert not any(last_samples(config, record.number) for record in stored(config)[1])


def test_a_twin_of_a_live_trial_waits_for_it(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "n_trials=3", space=("lora.r=choice(4,8)",))
    driver, link = ready(config)
    live = [trial for _ in range(3) if isinstance(trial := link.next_trial(), TrialConfig)]
    assert len({trial.lora.r for trial in live}) == len(live) <= 2
    for trial in live:
        end(link, trial, loss=0.5 + trial.lora.r / 100)
    assert link.next_trial() is Turn.DONE
    assert driver.close().code == COMPLETE
    records = stored(config)[1]
    assert {record.outcome for record in records} == {"complete"}
    assert all(record.eval_loss == 0.5 + record.params["lora.r"] / 100 for record in records)


def test_a_trial_that_takes_its_worker_down_twice_has_failed(config: SweepConfig) -> None:
    seen = Recorder()
    driver, link = ready(config, seen)
    trial = take(link)
    tell(link, trial, 1, 0.9)
    driver.lost("w0", "killed by SIGKILL")
    again = take(link)
    tell(link, again, 1, 0.9)
    driver.lost("w0", "killed by SIGSEGV")
    assert seen.results[0].outcome is Outcome.FAILED
    assert seen.results[0].reason == (
        "took its worker down 2 times; the last time: killed by SIGSEGV"
    )
    assert take(link).number == 1
    driver.close()


def test_the_guilty_of_a_pack_fails_alone(config: SweepConfig) -> None:
    seen = Recorder()
    driver, link = ready(config, seen)
    pack = [take(link) for _ in range(3)]
    driver.lost("w0", "killed by SIGKILL")
    guilty = take(link)
    assert guilty.number == pack[0].number
    assert link.next_trial() is Turn.WAIT  # a suspect trains alone
    driver.lost("w0", "killed by SIGKILL")
    innocent = take(link)
    assert [r.trial for r in seen.results] == [guilty.number]
    assert link.next_trial() is Turn.WAIT
    aside = tell(link, innocent, 1, 0.5)  # it got further: no suspect any more
    assert aside.outcome is Outcome.STOPPED and "tried alone" in str(aside.reason)
    assert link.next_trial() is Turn.WAIT  # until its worker has let go of it
    end(link, innocent, aside.outcome)
    assert [take(link).number, link.next_trial()] == [2, Turn.WAIT]
    driver.close()


def test_the_innocent_of_a_pack_go_on_together(config: SweepConfig) -> None:
    driver, link = ready(config)
    for _ in range(3):
        take(link)
    driver.lost("w0", "killed by SIGKILL")
    for number in range(2):
        alone = take(link)
        assert alone.number == number and link.next_trial() is Turn.WAIT
        aside = tell(link, alone, 1, 0.5)
        end(link, alone, aside.outcome)
    last = take(link)
    assert last.number == 2 and not tell(link, last, 1, 0.5).stop
    assert [take(link).number for _ in range(3)] == [0, 1, 3]  # all, and a new one
    driver.close()


def test_one_set_aside_may_go_on_beside_others(config: SweepConfig) -> None:
    driver, link = ready(config)
    other = driver.connect("w1")
    busy, first, second = take(other), take(link), take(link)
    driver.lost("w0", "killed by SIGKILL")
    alone = take(link)
    aside = tell(link, alone, 2, 0.5)
    end(link, alone, aside.outcome)
    again = take(other)  # while the suspect still waits
    assert [busy.number, again.number, alone.number] == [0, 1, 1]
    assert not other.report(dataclasses.replace(tick_report(again, 2, 0.5), again=True)).stop
    assert not tell(other, again, 3, 0.4).stop
    assert take(link).number == second.number > first.number
    driver.close()


def test_a_worker_that_sees_something_else_is_refused(config: SweepConfig) -> None:
    driver, link = ready(config)
    other = driver.connect("w1")
    setup = prepare(config, other, "w1")
    model = dataclasses.replace(setup.model, dtype="fp16")
    with pytest.raises(InputError, match="do not see the same model"):
        other.prepared(dataclasses.replace(setup, model=model))
    other.prepared(setup)
    driver.close()


def test_two_sweeps_write_one_database_at_once(tmp_path: Path) -> None:
    sweeps = [sweep_config(tmp_path, f"study={name}", "n_trials=12") for name in ("one", "two")]
    threads = [threading.Thread(target=run_inline, args=(config,)) for config in sweeps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for config in sweeps:
        assert [record.number for record in stored(config)[1]] == list(range(12))
        assert all(trial.state.is_finished() for trial in in_optuna(config))


def test_a_failing_observer_is_reported_once_and_costs_no_trial(config: SweepConfig) -> None:
    notes: list[str] = []
    observer = Observers([Broken(), seen := Recorder()], note=notes.append)
    run_inline(config, observer)
    assert len(seen.results) == 8 and seen.closed_with and seen.closed_with.complete
    assert len(notes) == 1 and "Broken" in notes[0]


class Broken(Recorder):
    """Fails at every report."""

    def reported(self, report: Report, verdict: Verdict) -> None:
        raise OSError("disk full")
