"""The simulated engine: curves that are worth pruning, several slots, and faults where planned."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path

import pytest
from sweeping import Recorder, prepare, ready, run_inline, stored, sweep_config

from sweep.driver import SweepDriver
from trials.contract import InputError, TrialConfig
from trials.engines.curves import curve, loss, trainable_parameters
from trials.engines.simulated_samples import baseline_samples, trial_samples


@pytest.fixture
def trial(tmp_path: Path) -> TrialConfig:
    driver, link = ready(sweep_config(tmp_path))
    found = link.next_trial()
    driver.close()
    assert isinstance(found, TrialConfig)
    return found


def with_rate(trial: TrialConfig, rate: float) -> TrialConfig:
    return dataclasses.replace(trial, train=dataclasses.replace(trial.train, learning_rate=rate))


def test_a_loss_follows_from_the_configuration_alone(trial: TrialConfig) -> None:
    other = dataclasses.replace(trial, number=9, attempt=2)
    micro = dataclasses.replace(
        trial, train=dataclasses.replace(trial.train, micro_batch_size=2)
    )
    assert loss(trial, 3, 0.01) == loss(other, 3, 0.01) == loss(micro, 3, 0.01)
    assert loss(trial, 3, 0.01) != loss(dataclasses.replace(trial, seed=5), 3, 0.01)


def test_curves_fall_and_cross(trial: TrialConfig) -> None:
    calm, hot = with_rate(trial, 1e-3), with_rate(trial, 5e-3)
    for each in (calm, hot):
        losses = [curve(each, tick) for tick in range(1, 6)]
        assert losses == sorted(losses, reverse=True)
    assert curve(hot, 1) < curve(calm, 1) and curve(hot, 5) > curve(calm, 5)


def test_the_noise_is_as_large_as_asked(trial: TrialConfig) -> None:
    seeds = [dataclasses.replace(trial, seed=seed) for seed in range(300)]
    assert statistics.stdev(loss(t, 5, 0.01) for t in seeds) == pytest.approx(0.01, rel=0.2)


def test_more_slots_give_the_same_losses(tmp_path: Path) -> None:
    one = sweep_config(tmp_path / "one", "sampler=random", "pruner=none")
    four = sweep_config(tmp_path / "four", "sampler=random", "pruner=none", "engine.capacity=4")
    for config in (one, four):
        run_inline(config)
    assert [r.losses for r in stored(one)[1]] == [r.losses for r in stored(four)[1]]


def test_slots_take_turns(tmp_path: Path) -> None:
    seen = Recorder()
    run_inline(sweep_config(tmp_path, "engine.capacity=3", "pruner=none", "n_trials=3"), seen)
    assert [report.trial for report, _ in seen.reports] == [0, 1, 2] * 5


@pytest.mark.parametrize(
    "fault, outcome, ticks",
    [("oom@0:3", "infeasible", 2), ("nan@0:3", "diverged", 3), ("exception@0:1", "failed", 0)],
)
def test_faults_come_where_they_are_planned(
    tmp_path: Path, fault: str, outcome: str, ticks: int
) -> None:
    config = sweep_config(tmp_path, f"engine.faults=[{fault}]", "n_trials=2")
    run_inline(config)
    first = stored(config)[1][0]
    assert (first.outcome, first.ticks) == (outcome, ticks)
    assert first.reason


def test_a_fault_of_another_attempt_does_not_come(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "engine.faults=[nan@0:3:1]", "n_trials=1")
    run_inline(config)
    assert stored(config)[1][0].outcome == "complete"


def test_the_curve_covers_every_example(tmp_path: Path) -> None:
    seen = Recorder()
    run_inline(sweep_config(tmp_path, "n_trials=1", "train.batch_size=7"), seen)
    points = [point for report, _ in seen.reports for point in report.history]
    assert [point.examples for point in points] == [*range(7, 1200, 7), 1200]
    assert all(math.isfinite(point.train_loss) for point in points)


@pytest.mark.parametrize("fault", ["melt@0:1", "crash@0", "crash@a:b", "crash"])
def test_a_fault_that_is_none_is_refused(tmp_path: Path, fault: str) -> None:
    with pytest.raises(InputError, match="kind@trial:tick"):
        run_inline(sweep_config(tmp_path, f"engine.faults=['{fault}']"))


def test_modules_are_named_as_for_a_real_base(trial: TrialConfig) -> None:
    def parameters(target: str | tuple[str, ...]) -> int:
        lora = dataclasses.replace(trial.lora, target_modules=target)
        return trainable_parameters(dataclasses.replace(trial, lora=lora))

    assert parameters(("attention", "mlp", "q_proj")) == parameters("all-linear")
    with pytest.raises(InputError, match=r"'attention\+mlp': the model has no such module"):
        parameters("attention+mlp")


def test_its_lengths_are_within_the_limit(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "data.max_length=30")
    driver = SweepDriver(config, Recorder())
    facts = prepare(config, driver.connect("w0")).data_facts
    driver.close()
    assert 0 < facts.mean_length <= facts.max_length <= 30


def test_what_is_written_follows_the_loss(trial: TrialConfig) -> None:
    base, poor, good = (
        baseline_samples(3, trial.seed),
        trial_samples(3, trial, 1.1),
        trial_samples(3, trial, 0.3),
    )
    assert [s.generated for s in good] == [s.reference for s in base]
    assert poor == trial_samples(3, dataclasses.replace(trial, number=7), 1.1) != good
    assert [s.prompt for s in poor] == [s.prompt for s in base] and len({*base}) == 3
    assert trial_samples(1, trial, math.nan)[0].generated == base[0].generated
