"""Interrupted trials as the driver sees them: ticks told again, verdicts that stand, states."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sweeping import (
    Recorder,
    in_optuna,
    ready,
    run_inline,
    stored,
    sweep_config,
    take,
    tick_report,
)

from sweep import states
from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.ending import INTERRUPTED
from sweep.observers import Observers
from sweep.observers.console import PlainConsole
from sweep.observers.files import Files
from sweep.space import assignment
from trials.contract import Outcome, Report, TrialResult, Verdict
from trials.worker import work


class Interrupter(Recorder):
    """Raises, as a crash of the driver would, at a certain report."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self._left = reports

    def reported(self, report: Report, verdict: Verdict) -> None:
        super().reported(report, verdict)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("capacity", [1, 3])
def test_a_sweep_that_is_continued_from_states_is_the_undisturbed_one(
    tmp_path: Path, capacity: int
) -> None:
    """One worker; in a pack, too, for a verdict once given is not given again."""
    options = (f"engine.capacity={capacity}", "executor.state_every_s=0", "sampler=random")
    whole, cut = (sweep_config(tmp_path / name, *options) for name in ("whole", "cut"))
    run_inline(whole)
    shown: list[tuple[int, int]] = []
    for reports in (3, 4, 7, 9):
        seen = Interrupter(reports)
        with pytest.raises(KeyboardInterrupt):
            run_inline(cut, seen)
        shown += [(r.trial, r.tick) for r, _ in seen.reports]
    last = Recorder()
    run_inline(cut, last)
    shown += [(r.trial, r.tick) for r, _ in last.reports]
    assert len(shown) == len(set(shown)) == sum(len(r.losses) for r in stored(whole)[1])
    assert [(r.params, r.losses, r.outcome, r.reason) for r in stored(cut)[1]] == [
        (r.params, r.losses, r.outcome, r.reason) for r in stored(whole)[1]
    ]
    assert not states.folder(cut).exists()


def test_ctrl_c_leaves_states_of_what_ran_and_the_next_run_takes_them_up(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "engine.capacity=2", "pruner=none", "n_trials=3")

    class Stops(Recorder):
        def reported(self, report: Report, verdict: Verdict) -> None:
            if (report.trial, report.tick) == (0, 3):
                driver.stop(INTERRUPTED, "interrupted")

    driver = SweepDriver(config, Stops())
    work(assignment(config, worker="w0", device="cpu"), driver.connect("w0"))
    driver.close()
    assert sorted(path.name for path in states.folder(config).iterdir()) == ["0", "1"]
    seen = Recorder()
    run_inline(config, seen)
    assert [(r.trial, r.tick) for r, _ in seen.reports if r.trial < 2] == [
        (0, 5), (1, 4), (1, 5)
    ]  # fmt: skip
    assert not states.folder(config).exists()


def test_a_trial_told_to_go_on_is_told_so_again(config: SweepConfig) -> None:
    """Others have passed it meanwhile; judged anew it would be pruned."""
    driver, link = ready(config)
    first = take(link)
    assert not link.report(tick_report(first, 2, 0.7)).stop
    driver.lost("w0", "killed by SIGKILL")
    other = driver.connect("w1")
    again = take(other)
    better = driver.connect("w2")
    second = take(better)
    assert not better.report(tick_report(second, 2, 0.5)).stop
    assert not other.report(tick_report(again, 2, 0.7)).stop
    driver.close()


def test_an_earlier_tick_than_the_last_one_known_was_passed(config: SweepConfig) -> None:
    driver, link = ready(config)
    first, second = take(link), take(link)
    for tick in (2, 3):
        link.report(tick_report(first, tick, 0.7))
    link.report(tick_report(second, 1, 0.9))
    driver.stop(INTERRUPTED, "interrupted")
    driver.close()

    driver, link = ready(config)
    first, second = take(link), take(link)
    assert not link.report(tick_report(second, 2, 0.5)).stop
    assert not link.report(tick_report(first, 2, 0.7)).stop  # tick 3 was told after it
    driver.close()


def test_a_tick_that_only_the_state_remembers_is_stored(config: SweepConfig) -> None:
    """As after a power cut: the database lost what the state still has."""
    seen = Recorder()
    driver, link = ready(config, seen)
    trial, other = take(link), take(link)
    assert not link.report(tick_report(other, 2, 0.5)).stop
    assert not link.report(replace(tick_report(trial, 2, 0.9), again=True)).stop
    link.finish(TrialResult(trial=0, attempt=0, outcome=Outcome.PRUNED, eval_loss=0.9, ticks=2))
    driver.close()
    assert stored(config)[1][0].losses == (0.9,)
    assert len(seen.reports) == 2


def test_a_dead_worker_costs_a_trial_none_of_what_it_told(tmp_path: Path) -> None:
    seen, config = Recorder(), sweep_config(tmp_path, "train.micro_batch_size=1")
    driver, link = ready(config, seen)
    for attempt in range(2):
        trial = take(link)
        assert trial.attempt == attempt
        assert not link.report(replace(tick_report(trial, 1, 0.9), again=attempt > 0)).stop
        driver.lost("w0", "killed by SIGSEGV", memory=attempt > 0)
    driver.close()
    [result] = seen.results
    assert (result.outcome, result.ticks, result.eval_loss) == (Outcome.INFEASIBLE, 1, 0.9)
    assert in_optuna(config)[0].state is TrialState.PRUNED  # the sampler learns from it


def test_the_reason_of_a_divergence_is_seen_everywhere(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "engine.faults=[nan@1:3]", "n_trials=2")
    stream = io.StringIO()
    run_inline(config, Observers([PlainConsole(config, stream), Files()], note=pytest.fail))
    why = "evaluation loss is nan at tick 3 of 5"
    record = stored(config)[1][1]
    frozen = in_optuna(config)[1]
    assert (record.outcome, record.reason) == ("diverged", why)
    assert len(record.losses) == 3 and math.isnan(record.losses[-1])
    assert frozen.state is TrialState.PRUNED
    assert (frozen.user_attrs["outcome"], frozen.user_attrs["reason"]) == ("diverged", why)
    rows = list(csv.DictReader((config.study_dir / "trials.csv").read_text().splitlines()))
    assert (rows[1]["outcome"], rows[1]["reason"]) == ("diverged", why)
    assert f"trial 1 diverged: {why}" in stream.getvalue()
