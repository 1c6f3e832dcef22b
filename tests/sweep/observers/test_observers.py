"""Every observer sees a whole sweep; one that fails is reported once and costs nothing."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import staged

from sweep.config import SweepConfig
from sweep.observers import Closed, Observer, Observers, build_observers
from sweep.observers.console import LiveConsole, PlainConsole
from sweep.observers.dashboard import Dashboard
from sweep.observers.files import Files
from sweep.observers.log import Log
from sweep.results.recipe import replace
from sweep.tracking.observer import Tracking

VARIANTS: dict[str, Callable[[SweepConfig], Observer]] = {
    "live": lambda config: LiveConsole(config, io.StringIO()),
    "plain": lambda config: PlainConsole(config, io.StringIO()),
    "files": lambda config: Files(),
    "log": lambda config: Log(),
    "dashboard": lambda config: Dashboard(note=lambda text: None),
    "wandb": lambda config: Tracking("wandb", note=lambda text: None),
    "tensorboard": lambda config: Tracking("tensorboard", note=lambda text: None),
}
CALL_S = 0.05  # much longer than any call takes, much shorter than any network


@pytest.fixture(params=VARIANTS)
def observer(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Observer]:
    made = VARIANTS[request.param](_config(tmp_path))
    yield made
    getattr(made, "stop", lambda: None)()


def _config(folder: Path) -> SweepConfig:
    quick = ("tracking.mode=offline", "tracking.close_timeout_s=0")
    return staged.config(folder, "tracking=[wandb,tensorboard]", *quick)


class Timed:
    """Calls an observer and keeps the longest time that a call took."""

    def __init__(self, inner: Observer) -> None:
        self.inner, self.worst_s = inner, 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*given: object) -> None:
            began = time.perf_counter()
            getattr(self.inner, name)(*given)
            if name != "closed":
                self.worst_s = max(self.worst_s, time.perf_counter() - began)

        return call


def test_a_whole_sweep_is_seen_and_no_call_takes_long(observer: Observer, tmp_path: Path) -> None:
    timed = Timed(observer)
    records = staged.play(timed, _config(tmp_path))  # type: ignore[arg-type]
    assert len(records) == 6
    assert timed.worst_s < CALL_S * 10  # a busy machine; W&B's client alone needs seconds


def test_nothing_is_written_before_the_study_is_open(observer: Observer, tmp_path: Path) -> None:
    observer.progress("w0", "loading", 1, 2)
    observer.closed(Closed(complete=False, reason="InputError: no such column", records=()))
    assert list(tmp_path.iterdir()) == []


def test_a_retried_and_a_continued_trial_are_understood(
    observer: Observer, tmp_path: Path
) -> None:
    config, notes = _config(tmp_path), list[str]()
    shown = Observers([observer], note=notes.append)  # it would note a failure
    past = [record for record in staged.play(Files(), config, trials=1)]
    shown.opened(staged.opened(config, past))
    again = staged.trial(config, 0, attempt=1)
    shown.started(again, staged.params(0), "w1")
    last = staged.report(0, 4, 1.1, attempt=1)
    shown.reported(last, staged.CONTINUE)
    shown.finished(again, staged.result(last, 0, staged.Outcome.COMPLETE))
    shown.closed(Closed(complete=True, reason="done", records=past))
    assert notes == []


class Broken:
    """Fails from its second step on."""

    def __init__(self, error: Exception) -> None:
        self.calls, self.error = 0, error

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name == "stop":
            raise AttributeError(name)

        def step(*given: object) -> None:
            self.calls += 1
            if self.calls > 1:
                if isinstance(self.error, OSError):
                    self.error.filename = f"{self.calls}.json"
                raise self.error

        return step


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("error, kept", [(ValueError("No luck"), False), (FULL, True)])
def test_a_failing_observer_is_reported_once_and_dropped_unless_a_disk_may_recover(
    error: Exception, kept: bool, tmp_path: Path
) -> None:
    notes: list[str] = []
    broken, files = Broken(error), Files()
    observers = Observers([broken, files], note=notes.append)  # type: ignore[list-item]
    staged.play(observers, staged.config(tmp_path))
    assert broken.calls > 20 if kept else broken.calls == 2
    assert len(notes) == 1
    assert "Broken" in notes[0] and error.args[-1] in notes[0]
    assert (tmp_path / "lora_rank" / "trials.csv").read_text().count("\n") == 7


def test_a_note_outlives_a_disk_on_which_its_log_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Log, text: str) -> None:
        raise FULL

    monkeypatch.setattr(Log, "note", full)
    observers = build_observers(staged.config(tmp_path))
    observers.note("worker w1 started anew")
    said = capsys.readouterr()
    assert said.out.count("worker w1 started anew") == 1 and said.err == ""


def test_files_go_on_when_a_full_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def once_full(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FULL
        replace(path, text)

    monkeypatch.setattr("sweep.observers.files.replace", once_full)
    notes: list[str] = []
    staged.play(Observers([Files()], note=notes.append), staged.config(tmp_path))
    assert len(notes) == 1 and "No space left" in notes[0]
    assert (tmp_path / "lora_rank" / "trials.csv").read_text().count("\n") == 7


def test_a_console_that_cannot_be_written_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    console = PlainConsole(staged.config(tmp_path), stream)
    stream.close()  # as a pipe whose reader has left
    staged.play(Observers([console, Files()], note=console.note), staged.config(tmp_path))
    assert capsys.readouterr().err.count("PlainConsole failed") == 1
    assert (tmp_path / "lora_rank" / "trials.csv").exists()


def test_build_observers_says_a_first_line_at_once_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    observers = build_observers(staged.config(tmp_path, n_trials=7))
    assert "lora_rank: 7 trials" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    observers.note("worker w1 started anew")
    assert "worker w1 started anew" in capsys.readouterr().out


def test_the_log_keeps_every_run_of_the_study(tmp_path: Path) -> None:
    config = staged.config(tmp_path)
    for _ in range(2):
        log = Log()
        staged.play(log, config)
        log.note("after the end")
    lines = (tmp_path / "lora_rank" / "logs" / "sweep.log").read_text().splitlines()
    assert sum("trial 1 pruned: asha: not among the best third" in line for line in lines) == 2
    assert sum("6 of 6 trials" in line for line in lines) == 0  # one failed and does not count
    assert sum("5 of 6 trials in" in line for line in lines) == 2


def test_the_log_is_closed_while_others_note(tmp_path: Path) -> None:
    log, config, failed = Log(), staged.config(tmp_path), []
    over = threading.Event()

    def note() -> None:
        try:
            while not over.is_set():
                log.note("from another thread")
        except ValueError as error:
            failed.append(error)

    others = [threading.Thread(target=note) for _ in range(4)]
    for other in others:
        other.start()
    for _ in range(30):
        log.opened(staged.opened(config))
        log.stop()
    over.set()
    for other in others:
        other.join()
    assert failed == []


@pytest.mark.parametrize("tracking", ["none", "wandb", "tensorboard", "[wandb,tensorboard]"])
def test_each_tracker_asked_for_follows_and_no_other(tracking: str, tmp_path: Path) -> None:
    config = staged.config(tmp_path, f"tracking={tracking}")
    observers = build_observers(config)
    observers.opened(staged.opened(config))
    logs = {file.stem for file in (tmp_path / "lora_rank" / "logs").glob("*.log")}
    assert logs - {"sweep"} == {name for name in ("wandb", "tensorboard") if name in tracking}
    observers.closed(Closed(complete=False, reason="stopped", records=()))
