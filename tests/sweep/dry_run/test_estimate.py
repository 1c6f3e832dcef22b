"""What probes are taken to say: times of whole trials from two ticks, or from less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweeping import Recorder, prepare, sweep_config

from sweep.driver import SweepDriver
from sweep.dry_run.corners import corner
from sweep.dry_run.estimate import estimates, whole
from sweep.dry_run.rehearsal import ENOUGH, Probe, Rehearsal
from trials.contract import (
    CONTINUE,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    Outcome,
    Report,
    Setup,
    TrainConfig,
    TrialBudget,
    TrialConfig,
    TrialResult,
    Turn,
)


def trial(number: int = 0) -> TrialConfig:
    return TrialConfig(
        study="s", number=number, attempt=0, seed=0, model=ModelConfig(name="demo"),
        data=DataConfig(format="demo"), lora=LoraConfig(r=4, alpha=8),
        train=TrainConfig(learning_rate=1e-3, batch_size=10),
        budget=TrialBudget(examples=1000, ticks=5), engine=EngineConfig(name="trl"),
    )  # fmt: skip


def tick(number: int, tick: int, *, examples: int, seconds: float, evaluating: float) -> Report:
    return Report(trial=number, attempt=0, tick=tick, eval_loss=1.0, examples=examples,
                  tokens=100 * examples, seconds=seconds, eval_seconds=evaluating)  # fmt: skip


def ended(number: int, outcome: Outcome = Outcome.STOPPED, **known: Any) -> TrialResult:
    return TrialResult(trial=number, attempt=0, outcome=outcome, eval_loss=None, **known)


def setup(tmp_path: Path) -> Setup:
    config = sweep_config(tmp_path)
    return prepare(config, SweepDriver(config, Recorder()).connect("w0"))


def rehearsal(tmp_path: Path, trials: int = 1, workers: int = 1) -> Rehearsal:
    probe = Probe(name="heaviest", trials=[trial(k) for k in range(trials)])
    made = Rehearsal(lambda _: [probe], workers, lambda *_: None, lambda _: None)
    made.prepared("w0", setup(tmp_path))
    return made


def test_from_two_ticks_follow_the_start_the_pace_and_the_evaluation(tmp_path: Path) -> None:
    made = rehearsal(tmp_path)
    assert made.next_trial("w0") == trial()
    first = tick(0, 1, examples=200, seconds=3 + 20 + 2, evaluating=2)  # 3 s once, 0.1 an example
    assert made.report("w0", first) == CONTINUE
    second = tick(0, 2, examples=400, seconds=3 + 40 + 4, evaluating=4)
    assert made.report("w0", second) == ENOUGH
    made.finish("w0", ended(0, memory_bytes=5, examples=400))
    assert made.next_trial("w0") is Turn.DONE
    (found,) = estimates(made.probes)
    assert found.seconds == pytest.approx(3 + 100 + 5 * 2)
    assert (found.eval_seconds, found.memory_bytes) == (pytest.approx(10), 5)
    assert found.tokens_per_s == pytest.approx(1000)


def test_a_probe_without_a_tick_is_followed_by_one_evaluation(tmp_path: Path) -> None:
    made = rehearsal(tmp_path)
    made.probes[0].limit_s = -1.0
    made.next_trial("w0")
    assert made.alive("w0", 0, 0) == ENOUGH
    made.finish("w0", ended(0, examples=50, seconds=10.0, tokens=5000))
    short = made.next_trial("w0")
    assert isinstance(short, TrialConfig) and short.budget == TrialBudget(examples=10, ticks=1)
    assert made.alive("w0", short.number, 0) == CONTINUE
    made.report("w0", tick(short.number, 1, examples=10, seconds=9, evaluating=7))
    made.finish("w0", ended(short.number, Outcome.COMPLETE, examples=10))
    assert made.next_trial("w0") is Turn.DONE
    (found,) = estimates(made.probes)
    assert found.seconds == pytest.approx(1000 * 0.2 + 5 * 7)


def test_all_workers_are_waited_for_and_all_trials_of_a_probe(tmp_path: Path) -> None:
    made = rehearsal(tmp_path, trials=2, workers=2)
    assert made.next_trial("w0") is Turn.WAIT
    made.prepared("w1", setup(tmp_path))
    assert made.next_trial("w0") == trial(0) and made.next_trial("w1") == trial(1)
    made.finish("w0", ended(0, Outcome.INFEASIBLE, reason="no room"))
    assert made.next_trial("w0") is Turn.WAIT
    made.lost("w1", "killed by SIGKILL")
    (found,) = estimates(made.probes)
    assert found.why_not == "its worker ended: killed by SIGKILL" and found.seconds is None


def test_what_does_not_fit_is_told_from_what_fails(tmp_path: Path) -> None:
    for outcome, fits in ((Outcome.INFEASIBLE, False), (Outcome.FAILED, True)):
        made = rehearsal(tmp_path)
        made.next_trial("w0")
        made.finish("w0", ended(0, outcome, reason="no room"))
        (found,) = estimates(made.probes)
        assert (found.why_not, found.fits) == ("no room", fits)
        assert whole([found], trials=4, at_once=1, devices=1, loaded_s=0.0) is None


def test_what_has_no_room_beside_others_is_said(tmp_path: Path) -> None:
    """A worker gives such a trial back unasked; in a sweep it would be tried again."""
    made = rehearsal(tmp_path)
    made.next_trial("w0")
    made.finish("w0", ended(0, reason="does not fit beside other processes"))
    (found,) = estimates(made.probes)
    assert (found.why_not, found.seconds) == ("does not fit beside other processes", None)


def test_a_worker_that_is_given_up_does_no_work(tmp_path: Path) -> None:
    made = rehearsal(tmp_path, trials=3, workers=3)
    assert made.next_trial("w0") is Turn.WAIT and made.loaded_s == 0
    made.gave_up("w1", "it cannot start")
    assert made.next_trial("w0") is Turn.WAIT
    made.prepared("w2", made.setup)
    assert [made.next_trial(worker) for worker in ("w0", "w2", "w0")] == [
        trial(0), trial(1), Turn.WAIT
    ]  # fmt: skip
    assert made.workers == 2 and made.loaded_s > 0


def test_where_the_last_to_prepare_is_given_up_the_others_begin(tmp_path: Path) -> None:
    made = rehearsal(tmp_path, trials=2, workers=2)
    made.gave_up("w1", "it cannot start")
    assert made.loaded_s > 0
    assert made.next_trial("w0") == trial(0)
    made.probes[0].limit_s = -1.0
    assert made.alive("w0", 0, 0) == ENOUGH
    made.finish("w0", ended(0, examples=50, seconds=10.0))
    short = made.next_trial("w0")
    assert isinstance(short, TrialConfig) and short.number == 1 and short.budget.ticks == 1


def test_a_sweep_takes_its_rounds_and_the_loading(tmp_path: Path) -> None:
    made = rehearsal(tmp_path)
    made.next_trial("w0")
    made.report("w0", tick(0, 1, examples=1000, seconds=100, evaluating=0))
    made.finish("w0", ended(0, Outcome.COMPLETE))
    found = estimates(made.probes)
    sweep = whole(found, trials=16, at_once=4, devices=2, loaded_s=50.0)
    assert sweep and sweep.most_s == pytest.approx(50 + 400)
    assert sweep.device_hours(sweep.most_s) == pytest.approx(2 * 450 / 3600)


def test_the_corners_are_the_least_and_the_most_that_a_trial_may_ask(tmp_path: Path) -> None:
    space = ("lora.r=choice(8,64,16)", "lora.target_modules=choice(qv,all-linear,q_proj)",
             "train.batch_size=choice(4,8)", "train.gradient_checkpointing=choice(true,false)",
             "train.learning_rate=interval(1e-4,1e-3)")  # fmt: skip
    config, found = sweep_config(tmp_path, space=space), setup(tmp_path)
    light, heavy = (corner(config, found, heaviest=heaviest) for heaviest in (False, True))
    assert list(light.values()) == [8, "q_proj", 4, True, 1e-4]
    assert list(heavy.values()) == [64, "all-linear", 8, False, 1e-4]
