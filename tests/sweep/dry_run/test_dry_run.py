"""A look before the leap: what it says is what a real run does, and nothing is left of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from sweeping import SPACE, Recorder, stored, sweep_config

from sweep.config import SweepConfig
from sweep.ending import BUDGET, COMPLETE, FAILED
from sweep.executors import AtOnce
from sweep.run import run_sweep
from trials.contract import InputError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; temporary files go below it too, so that one listing shows all."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("COLUMNS", "700")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look(folder: Path, *overrides: str, space: tuple[str, ...] = SPACE) -> SweepConfig:
    return sweep_config(folder, "executor=inline", "dry_run=true", *overrides, space=space)


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder with what is in it, but for the locks of this machine's devices."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if not any(part.startswith("qlora-sweep-") for part in path.parts)
    }


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_nothing_is_left(
    executor: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(place)
    config = look(place, f"executor={executor}", "tracking=wandb", "tracking.mode=offline")
    assert run_sweep(config) == COMPLETE
    assert listing(place) == before
    told = capsys.readouterr().out
    for word in ("lora.r ", "choice(4,8,16,32,64)", "infinitely many points", "lightest",
                 "heaviest", "8 trials, 1 at once on 1 device", "runs it"):  # fmt: skip
        assert word in told
    assert "dry_run" not in told.partition("go on with")[2]


def test_the_first_trials_are_those_of_a_real_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(look(place)) == COMPLETE
    told = capsys.readouterr().out
    config = sweep_config(place, "executor=inline", "n_trials=3")
    assert run_sweep(config, Recorder()) == COMPLETE
    for name in ("lora.r", "train.learning_rate"):
        shown = re.search(rf"^{re.escape(name)} +(\S+) +(\S+) +(\S+)$", told, re.MULTILINE)
        assert shown and [float(text) for text in shown.groups()] == [
            record.params[name] for record in stored(config)[1]
        ]
    assert "may change them" not in told


def test_of_a_study_that_exists_it_shows_what_is_left(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(sweep_config(place, "executor=inline"), Recorder()) == COMPLETE
    before = listing(place)
    assert run_sweep(look(place, "n_trials=10")) == COMPLETE
    told = capsys.readouterr().out
    assert "the next trials" in told and "trial 8 " in told and "2 trials left of 10" in told
    assert "may change them" in told  # trial 9's proposal depends on trial 8's result
    assert listing(place) == before
    after = sweep_config(place, "executor=inline", "n_trials=10")
    assert run_sweep(after, Recorder()) == COMPLETE
    shown = re.search(r"^train\.learning_rate +(\S+) ", told, re.MULTILINE)
    assert shown and float(shown[1]) == stored(after)[1][8].params["train.learning_rate"]


def test_of_a_finished_study_it_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sweep(sweep_config(place, "executor=inline"), Recorder()) == COMPLETE
    assert run_sweep(look(place)) == COMPLETE
    assert "all its trials already; type n_trials=12 to extend it" in capsys.readouterr().out


def test_what_cannot_fit_is_named_with_what_to_type(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(look(place, "engine.faults=[oom@1:1]")) == COMPLETE
    told = capsys.readouterr().out
    where = told.partition("cannot fit")[2]
    assert "r 64" in where and "out of memory (simulated)" in where
    assert "train.micro_batch_size=1" in where and "heaviest  does not run" in told


@pytest.mark.parametrize("fault", ["exception@1:1", "crash@1:1"])
def test_what_fails_is_named(
    fault: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(place)
    config = look(place, f"engine.faults=[{fault}]", "executor=local")
    assert run_sweep(config) == FAILED
    assert "fails" in capsys.readouterr().out and listing(place) == before


def test_all_slots_of_all_workers_are_tried_at_once(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = look(place, "executor=local", "executor.workers=2", "engine.capacity=2")
    assert run_sweep(config) == COMPLETE
    assert "8 trials, 4 at once on 1 device" in capsys.readouterr().out


def test_a_price_and_a_budget_show_what_they_come_to(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("budget.price_per_hour=3600", "budget.max_money=1e-6", "engine.seconds_per_tick=0.05",
             "budget.max_trial_minutes=1e-4")  # fmt: skip
    assert run_sweep(look(place, *typed)) == COMPLETE
    told = capsys.readouterr().out
    assert "money a trial" in told and re.search(r"· money [\d.]+", told)
    assert "budget.max_money=1e-06 ends it before all trials are done" in told
    assert "budget.max_trial_minutes=0.0001 prunes the heaviest trial before its end" in told


def test_a_budget_that_is_used_up_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sweep(sweep_config(place, "budget.max_hours=1e-9"), Recorder()) == BUDGET
    assert run_sweep(look(place, "budget.max_hours=1e-9")) == COMPLETE
    assert "budget.max_hours=1e-09 is used up" in capsys.readouterr().out


@pytest.mark.parametrize(
    "typed", ["lora.target_modules=nose_proj", "budget.epochs=0.01 budget.examples=null"]
)
def test_what_only_a_worker_can_tell_is_refused_as_in_a_real_run(typed: str, place: Path) -> None:
    before = listing(place)
    with pytest.raises(InputError) as real:
        run_sweep(sweep_config(place, "executor=inline", *typed.split()), Recorder())
    with pytest.raises(InputError) as looked:
        run_sweep(look(place, *typed.split()))
    assert str(real.value) == str(looked.value) and listing(place) == before


def test_ctrl_c_leaves_nothing_either(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(place)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trials.engines.simulated.SimulatedEngine.run", interrupted)
    with pytest.raises((KeyboardInterrupt, AtOnce)):
        run_sweep(look(place))
    assert listing(place) == before
