"""`python -m trials <json>`: one trial in its own process, with the losses that the sweep saw."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import Recorder, Tiny, made_in

from trials.__main__ import main
from trials.contract import EngineConfig, TrialConfig, to_json
from trials.worker import work


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A base of this module's own."""
    return made_in(tmp_path_factory.mktemp("tiny"))


def saved(trial: TrialConfig, folder: Path) -> Path:
    """The trial's file as a sweep keeps it."""
    path = folder / f"{trial.number}.json"
    path.write_text(to_json(trial, indent=2))
    return path


def test_a_replayed_trial_ends_with_the_same_loss(tiny: Tiny, tmp_path: Path) -> None:
    others = [tiny.trial(1, lora={"r": 8}), tiny.trial(2, learning_rate=1e30)]
    driver = Recorder([*others, tiny.trial(7, packing=True)])
    work(tiny.assignment(), driver)
    assert driver.setup is not None
    trial = replace(tiny.trial(7, packing=True), model=driver.setup.model, data=driver.setup.data)
    command = [sys.executable, "-m", "trials", str(saved(trial, tmp_path)), "--device", "cpu",
               "--threads", "1", "--adapters", str(tmp_path / "adapters")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["checking the data", "loading libraries"]
    ticks = [line for line in lines if line.startswith("tick ")]
    for line, report in zip(ticks, driver.reports[-2:], strict=True):
        assert f"tick {report.tick}/2: loss {report.eval_loss:.4f}" in line
    assert lines[-1] == f"final loss: {driver.results[-1].eval_loss:.6f}"
    assert (tmp_path / "adapters" / "7" / "adapter_model.safetensors").exists()
    assert done.stderr == ""


def test_it_replays_other_engines_too(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated = EngineConfig(name="simulated")
    driver = Recorder([])
    work(replace(tiny.assignment(), engine=simulated), driver)
    assert driver.setup is not None
    trial = replace(tiny.trial(3, examples=64, ticks=4), engine=simulated, data=driver.setup.data)
    assert main([str(saved(trial, tmp_path))]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^tick \d/4: loss \d+\.\d{4}", out, re.MULTILINE)) == 4
    assert re.search(r"^final loss: \d+\.\d+$", out, re.MULTILINE)


def test_a_trial_that_ends_early_is_said_and_exits_1(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tiny.trial(2, learning_rate=1e30), tmp_path)
    assert main([str(path), "--device", "cpu", "--threads", "1"]) == 1
    out = capsys.readouterr().out
    assert "trial 2 of tiny: diverged (train loss became nan at step 2)" in out
    assert out.splitlines()[-1] == "final loss: none"


def bad_trials(tiny: Tiny) -> dict[str, tuple[str, list[str], str]]:
    """File contents, options, and what must be said."""
    trial = tiny.trial()
    whole = to_json(trial)
    changed = replace(trial, data=replace(trial.data, content_hash="0" * 16))
    half = replace(trial, model=replace(trial.model, dtype="fp16"))
    return {
        "not json": ("{", [], "is not a trial as a sweep writes it"),
        "not a trial": ('{"study": "x"}', [], "missing"),
        "unknown field": (whole.replace('"attempt"', '"try"'), [], "unknown field 'try'"),
        "other data": (to_json(changed), ["--device", "cpu"], "0000000000000000"),
        "dtype of another device": (to_json(half), ["--device", "cpu"], "model.dtype=fp16"),
        "no such device": (whole, ["--device", "cuda:9"], "no such device"),
        "rank": (to_json(tiny.trial(lora={"r": -4})), [], "lora.r has to be at least 1, and is -4"),
        "warm-up": (to_json(tiny.trial(warmup=1.5)), [], "train.warmup has to be below 1"),
        "rate": (to_json(tiny.trial(learning_rate=math.nan)), [], "has to be above 0, and is nan"),
        "ticks": (to_json(tiny.trial(ticks=0)), [], "budget.ticks has to be at least 1"),
        "threads": (whole, ["--threads", "0"], "--threads 0: it must be at least 1"),
    }


@pytest.mark.parametrize("case", bad_trials(Tiny(Path("base"), Path("data"))))
def test_bad_input_gives_one_message_and_exits_2(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    text, options, message = bad_trials(tiny)[case]
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main([str(path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results/none/7.json"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("results/none/7.json: No such file or directory. Name a trial's file")


def test_help_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("--device", "--threads", "--adapters", "7.json"))


def test_replaying_needs_neither_optuna_nor_hydra(tiny: Tiny, tmp_path: Path) -> None:
    program = (
        "import sys; from trials.__main__ import main; code = main(sys.argv[1:]);"
        "names = {'optuna', 'hydra', 'omegaconf', 'wandb', 'sweep'} & set(sys.modules);"
        "sys.exit(code or (f'imported {names}' if names else 0))"
    )
    trial = replace(tiny.trial(), engine=EngineConfig(name="simulated"))
    command: list[Any] = [sys.executable, "-c", program, saved(trial, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_files_text_is_shown_and_not_obeyed(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = replace(tiny.trial(), engine=EngineConfig(name="simulated"), study="\x1b[2J\u202eevil")
    assert main([str(saved(trial, tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "\\x1b[2J\\x202eevil" in out and "\x1b" not in out and "\u202e" not in out


def test_a_file_does_not_decide_whose_code_is_run(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = replace(tiny.trial(), engine=EngineConfig(name="simulated"))
    path = str(saved(replace(trial, model=replace(trial.model, trust_remote_code=True)), tmp_path))
    assert main([path]) == 2
    assert "type --trust-remote-code" in capsys.readouterr().err
    assert main([path, "--trust-remote-code"]) == 0
