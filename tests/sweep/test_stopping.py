"""Ctrl-C once and twice, and SIGTERM: a sweep in a process of its own, its ticks far too long."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from sweeping import SPACE, Recorder, stored, sweep_config

from sweep.config import SweepConfig
from sweep.ending import INTERRUPTED
from sweep.observers import Observers
from sweep.observers.console import DRAWING_PER_S, LiveConsole
from sweep.observers.tally import Tally
from sweep.run import STOPPING, run_sweep
from sweep.store import Store, TrialRecord
from trials.contract import Report, Verdict

ROOT = Path(__file__).parents[2]
TYPED = ("tracking=none", "device=cpu", "study=test", "n_trials=3", "pruner=none", *SPACE)
LONG = ("engine=simulated", "engine.capacity=2", "engine.seconds_per_tick=1000")
AGAIN = (*TYPED, "engine.capacity=2", "executor=inline")
PATIENCE_S = 120.0  # for a process on a busy machine


def once(driver: psutil.Process) -> None:
    driver.send_signal(signal.SIGINT)


def twice(driver: psutil.Process) -> None:
    driver.send_signal(signal.SIGINT)
    driver.send_signal(signal.SIGINT)


def preempted(driver: psutil.Process) -> None:
    """As schedulers do it: every process is told, and what is left is killed a while later."""
    for process in (*driver.children(), driver):
        process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    config = sweep_config(tmp_path_factory.mktemp("undisturbed"), *AGAIN)
    assert run_sweep(config, Recorder()) == 0
    return config


@pytest.mark.parametrize("stop", [once, twice, preempted])
def test_a_stopped_sweep_is_remembered_and_goes_on(
    stop: Callable[[psutil.Process], None], undisturbed: SweepConfig, tmp_path: Path
) -> None:
    process = start(tmp_path, *LONG)
    wait_for(process, lambda: "trial 1 started" in said(tmp_path))
    stop(psutil.Process(process.pid))
    output, _ = process.communicate(timeout=PATIENCE_S)  # not after the tick
    assert process.returncode == INTERRUPTED
    assert "0 of 3 trials in" in output and "interrupted; the same command goes on" in output
    assert shlex.quote(SPACE[0]) in output  # the command itself
    config = sweep_config(tmp_path, *AGAIN)
    assert [record.outcome for record in stored(config)[1]] == ["stopped", "stopped"]

    assert run_sweep(config, Recorder()) == 0
    assert trials(config) == trials(undisturbed)


def test_a_stop_while_workers_load_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "engine=trl")
    wait_for(process, lambda: bool(psutil.Process(process.pid).children()))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED and list(tmp_path.iterdir()) == []
    assert "interrupted; the same command goes on" in output


SILENT = """
import sys, time
from sweep import run
from sweep.__main__ import main
from sweep.store import Store

def silent(*_, **__):
    print("asked", flush=True)
    while True:
        time.sleep(1)

run.STUCK_S, Store.tick = 0.1, silent
sys.exit(main())
"""


def test_a_second_stop_ends_a_run_whose_database_answers_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "engine=simulated", "engine.seconds_per_tick=0", code=SILENT)
    assert process.stdout
    while "asked" not in process.stdout.readline():
        assert process.poll() is None
    twice(psutil.Process(process.pid))
    time.sleep(0.2)  # two signals at once may be one
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED and "sweep: interrupted" in errors
    config = sweep_config(tmp_path, *AGAIN)
    assert run_sweep(config, Recorder()) == 0 and len(stored(config)[1]) == 3


@pytest.mark.timeout(PATIENCE_S)
def test_ctrl_c_pressed_again_and_again_is_ctrl_c_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the signal before it is still being answered."""
    config, started = sweep_config(tmp_path, "executor=inline"), []

    class Pressed(threading.Timer):
        def start(self) -> None:
            started.append(self)
            signal.raise_signal(signal.SIGINT)
            super().start()

    monkeypatch.setattr("sweep.run.threading.Timer", Pressed)
    assert run_sweep(config, Presses(times=2)) == INTERRUPTED
    assert len(started) == 1
    assert run_sweep(config, Recorder()) == 0


class Presses(Recorder):
    """Ctrl-C, so to speak, at the first report."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def reported(self, report: Report, verdict: Verdict) -> None:
        while self._left:
            self._left -= 1
            signal.raise_signal(signal.SIGINT)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.timeout(2 * PATIENCE_S)
def test_ctrl_c_may_come_while_the_table_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a thread waits to draw it."""
    config, stream = sweep_config(tmp_path, "executor=inline"), Terminal()
    take_in, pressed = Tally.reported, []

    def reported(tally: Tally, report: Report, verdict: Verdict) -> TrialRecord:
        if not pressed:
            time.sleep(2.5 / DRAWING_PER_S)
            pressed.append(signal.raise_signal(signal.SIGINT))
        return take_in(tally, report, verdict)

    monkeypatch.setattr(Tally, "reported", reported)
    console = LiveConsole(config, stream, width=160)
    assert run_sweep(config, Observers([console], note=console.note)) == INTERRUPTED
    end = time.monotonic() + PATIENCE_S  # for the line's own thread
    while STOPPING not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.05)
    assert STOPPING in stream.getvalue()


def test_ctrl_c_before_the_leaderboard_gives_the_terminal_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed once more than the run needed to end."""
    config, stream = sweep_config(tmp_path, "executor=inline"), Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "leave", lambda *_: signal.raise_signal(signal.SIGINT))
        console = LiveConsole(config, stream, width=160)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(config, Observers([console], note=console.note))
    hidden, shown = (stream.getvalue().rfind(code) for code in ("\x1b[?25l", "\x1b[?25h"))
    assert 0 <= hidden < shown
    assert run_sweep(config, Recorder()) == 0  # and no lock is held


def test_a_second_driver_is_refused_and_told_who_holds_the_study(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG)
    wait_for(process, lambda: "trial 1 started" in said(tmp_path))
    second = start(tmp_path, *LONG)
    _, errors = second.communicate(timeout=PATIENCE_S)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2 and f"process {process.pid} on " in errors
    assert "since 20" in errors and f"kill {process.pid}" in errors
    assert run_sweep(sweep_config(tmp_path, *AGAIN), Recorder()) == 0  # a dead one holds nothing


def start(folder: Path, *more: str, code: str | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"}
    return subprocess.Popen(
        [sys.executable, *(["-c", code] if code else ["-m", "sweep"]), *TYPED, *more],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(folder: Path) -> str:
    log = folder / "results" / "test" / "logs" / "sweep.log"
    return log.read_text() if log.exists() else ""


def wait_for(process: subprocess.Popen[str], come: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not come():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def trials(config: SweepConfig) -> list[tuple[object, ...]]:
    return [(r.number, r.params, r.outcome, r.losses) for r in stored(config)[1]]
