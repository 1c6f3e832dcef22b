"""W&B: what its own files say, and what a server that refuses or stalls costs the sweep."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import staged
from wandb_stub import WandbStub

from sweep.config import SweepConfig
from sweep.observers import Closed
from sweep.observers.feed import LIMIT
from sweep.observers.files import Files
from sweep.observers.wandb import Wandb, key_known, mode, run_id, sync_command
from sweep.observers.wandb_server import base_url, unreachable
from trials.contract import CONTINUE, Outcome

KEY = "0123456789" * 4
BLOCK = 32768  # of the LevelDB log format that W&B writes


@dataclass
class Run:
    """A run as its offline file tells it."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def _records(file: Path) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of chunks with checksum, length and type."""
    data, place, parts = file.read_bytes(), 7, b""  # a header of seven bytes
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _read(file: Path) -> Run:
    from wandb.proto import wandb_internal_pb2 as pb

    run = Run()
    for raw in _records(file):
        record = pb.Record()
        record.ParseFromString(raw)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            _note_run(run, record.run)
        elif kind == "config":
            run.config |= {_name(i): json.loads(i.value_json) for i in record.config.update}
        elif kind == "summary":
            run.summary |= {_name(i): json.loads(i.value_json) for i in record.summary.update}
        elif kind == "history":
            run.history.append({_name(i): json.loads(i.value_json) for i in record.history.item})
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _note_run(run: Run, record: Any) -> None:
    run.name, run.group, run.job_type = record.display_name, record.run_group, record.job_type
    run.tags = list(record.tags)
    run.config |= {_name(item): json.loads(item.value_json) for item in record.config.update}


def _name(item: Any) -> str:
    return str(item.key or "/".join(item.nested_key))


def _runs(config: SweepConfig) -> dict[str, Run]:
    files = sorted((config.study_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.stem for file in files}) == len(files)
    return {file.stem.removeprefix("run-"): _read(file) for file in files}


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return staged.config(tmp_path, "tracking=wandb", "tracking.mode=offline")


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepConfig:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return staged.config(tmp_path, "tracking=wandb", "tracking.mode=online")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The runs of a whole sweep, written offline."""
    folder = tmp_path_factory.mktemp("whole")
    config = staged.config(folder, "tracking=wandb", "tracking.mode=offline")
    notes: list[str] = []
    staged.play(Wandb(note=notes.append), config)
    assert notes == []
    return _runs(config)


def test_each_trial_is_a_run_with_its_curves(runs: dict[str, Run]) -> None:
    assert set(runs) == {run_id(staged.UUID, number) for number in range(6)}
    best = runs[run_id(staged.UUID, 5)]
    assert (best.name, best.group, best.job_type) == ("lora_rank-5", "lora_rank", "trial")
    assert set(best.tags) == {"sweep", "demo", "cpu"}
    assert best.exit_code == 0 and runs[run_id(staged.UUID, 2)].exit_code == 1
    _check_config(best.config)
    _check_summary(best.summary)
    _check_history(best.history)


def _check_config(config: dict[str, Any]) -> None:
    expected = {"lora.r": 4, "lora.alpha_ratio": 2.0, "lora.alpha": 8.0, "number": 5,
                "lora.target_modules": "q_proj+v_proj", "train.learning_rate": 2e-4,
                "budget.examples": 160, "model.name": "demo", "worker": "w0"}  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert "attempt" not in config and "lora" not in config


def _check_summary(summary: dict[str, Any]) -> None:
    losses = staged.losses(5)
    expected = {"eval_loss": losses[-1], "first_rung_loss": losses[0], "outcome": "complete",
                "ticks": 4, "examples": 160, "seconds": 8.0, "peak_memory_bytes": 2**20,
                "utilisation": 0.5, "trainable_parameters": 1234, "eval_accuracy": 0.25,
                "tokens_per_s": pytest.approx(4000 / 7.2)}  # fmt: skip
    assert {name: summary[name] for name in expected} == expected


def _check_history(history: list[dict[str, Any]]) -> None:
    train = [row for row in history if "train_loss" in row]
    assert [row["examples"] for row in train] == list(range(8, 161, 8))
    assert all(row.keys() >= {"learning_rate", "grad_norm", "tokens_per_s"} for row in train)
    ticks = [(row["examples"], row["eval_loss"]) for row in history if "eval_loss" in row]
    assert ticks == list(zip((40, 80, 120, 160), staged.losses(5), strict=True))


def test_why_a_trial_ended_is_a_column(runs: dict[str, Run]) -> None:
    outcomes = [runs[run_id(staged.UUID, number)].summary["outcome"] for number in range(4)]
    assert outcomes == ["complete", "pruned", "failed", "diverged"]
    assert runs[run_id(staged.UUID, 1)].summary["reason"] == "asha: not among the best third"


@pytest.mark.parametrize("first", [1, 3])
def test_a_continued_trial_is_one_whole_run(config: SweepConfig, first: int) -> None:
    """Whether its next attempt trains again from the start or goes on at tick 3."""
    cut_short = f"offline-run-20260101_000000-{run_id(staged.UUID, 0)}"
    left = config.study_dir / "wandb" / cut_short
    left.mkdir(parents=True)
    (left / f"run-{run_id(staged.UUID, 0)}.wandb").write_bytes(b"half a run")
    past = staged.play(Files(), config, trials=1)
    observer = Wandb(note=lambda text: None)
    observer.opened(staged.opened(config, past))
    again = staged.trial(config, 0, attempt=1)
    observer.started(again, staged.params(0), "w1")
    for tick in range(first, 5):
        last = staged.report(0, tick, staged.losses(0)[tick - 1], attempt=1)
        observer.reported(last, CONTINUE)
    observer.finished(again, staged.result(last, 0, Outcome.COMPLETE))
    observer.closed(Closed(complete=True, reason="done", records=()))
    history = _runs(config)[run_id(staged.UUID, 0)].history
    ticks = [(row["examples"], row["eval_loss"]) for row in history if "eval_loss" in row]
    assert ticks == list(zip((40, 80, 120, 160), staged.losses(0), strict=True))
    examples = [row["examples"] for row in history]
    assert examples == sorted(examples)


def test_a_retry_within_a_sweep_repeats_no_point(config: SweepConfig) -> None:
    observer = Wandb(note=lambda text: None)
    observer.opened(staged.opened(config))
    for attempt, ticks in ((0, 2), (1, 4)):
        trial = staged.trial(config, 0, attempt)
        observer.started(trial, staged.params(0), "w0")
        for tick in range(1, ticks + 1):
            last = staged.report(0, tick, staged.losses(0)[tick - 1], attempt)
            observer.reported(last, CONTINUE)
    observer.finished(trial, staged.result(last, 0, Outcome.COMPLETE))
    observer.closed(Closed(complete=True, reason="done", records=()))
    counts = Counter(
        row["examples"]
        for row in _runs(config)[run_id(staged.UUID, 0)].history
        if "eval_loss" in row
    )
    assert counts == {40: 1, 80: 1, 120: 1, 160: 1}


@pytest.fixture
def stalling(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that accepts and never answers."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_accept, args=(server, taken), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield address
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in taken:
        connection.close()


def _accept(server: socket.socket, taken: list[socket.socket]) -> None:
    try:
        while True:
            taken.append(server.accept()[0])
    except OSError:
        pass  # closed


def _sweep_s(observer: Wandb, config: SweepConfig) -> float:
    """Seconds that the sweep itself spends with the observer, its end left out."""
    began = time.perf_counter()
    observer.opened(staged.opened(config))
    for number in range(5):
        staged.run_trial(observer, config, number)
    return time.perf_counter() - began


def test_a_server_that_refuses_costs_nothing_and_loses_nothing(
    online: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    notes: list[str] = []
    observer = Wandb(note=notes.append)
    assert _sweep_s(observer, online) < 1
    observer.closed(Closed(complete=True, reason="done", records=()))
    assert len(_runs(online)) == 5
    assert len(notes) == 2
    assert "W&B goes on offline" in notes[0] and "does not answer" in notes[0]
    assert "wandb sync" in notes[1]


def test_a_server_that_stalls_costs_nothing_and_loses_nothing(
    online: SweepConfig, stalling: str
) -> None:
    notes: list[str] = []
    observer = Wandb(note=notes.append)
    assert _sweep_s(observer, online) < 1
    observer.closed(Closed(complete=True, reason="done", records=()))
    assert len(_runs(online)) == 5
    assert [note for note in notes if "goes on offline" in note]


def test_the_end_waits_only_so_long(online: SweepConfig, stalling: str) -> None:
    notes: list[str] = []
    observer = Wandb(note=notes.append, close_timeout_s=0.5)
    _sweep_s(observer, online)
    process = _process()
    began = time.perf_counter()
    observer.closed(Closed(complete=True, reason="done", records=()))
    assert time.perf_counter() - began < 5
    assert "was ended" in notes[-1] and "wandb sync" in notes[-1]
    assert not process.is_running()


def _process() -> psutil.Process:
    """The one that talks to W&B."""
    children = psutil.Process().children()
    return next(c for c in children if "sweep.observers.wandb_process" in c.cmdline())


def test_a_stuck_process_loses_points_and_says_so(config: SweepConfig) -> None:
    notes: list[str] = []
    observer = Wandb(note=notes.append, close_timeout_s=0.1)
    observer.opened(staged.opened(config))
    (process := _process()).suspend()
    observer.started(staged.trial(config, 0), staged.params(0), "w0")
    began = time.perf_counter()
    report = staged.report(0, 1, 1.0)
    for _ in range(LIMIT + 500):  # more than the queue and the pipe hold
        observer.reported(report, CONTINUE)
    assert time.perf_counter() - began < 2
    observer.closed(Closed(complete=True, reason="done", records=()))
    assert sum("does not keep up" in note for note in notes) == 1
    assert any("W&B missed" in note for note in notes)
    assert not process.is_running()


def test_a_killed_process_is_reported_once(config: SweepConfig) -> None:
    notes: list[str] = []
    observer = Wandb(note=notes.append)
    observer.opened(staged.opened(config))
    _process().kill()
    deadline = time.monotonic() + 5
    while not notes and time.monotonic() < deadline:
        time.sleep(0.01)
    for number in range(3):
        staged.run_trial(observer, config, number)
    observer.closed(Closed(complete=True, reason="done", records=()))
    assert sum("ended early" in note for note in notes) == 1


DRIVER = """
import sys, time
from pathlib import Path
import psutil, staged
from sweep.observers.wandb import Wandb
config = staged.config(Path(sys.argv[1]), "tracking=wandb", "tracking.mode=offline")
observer = Wandb(note=print)
observer.opened(staged.opened(config))
staged.run_trial(observer, config, 0)
observer.started(staged.trial(config, 1), staged.params(1), "w0")
observer.reported(staged.report(1, 1, 1.5), staged.CONTINUE)
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(60)
"""


def test_the_process_dies_with_its_driver_and_writes_what_it_has(tmp_path: Path) -> None:
    blows = {"kill": signal.SIGKILL, "ctrl-c": signal.SIGINT}
    drivers = {name: _driver(tmp_path / name) for name in blows}
    children = []
    for name, driver in drivers.items():
        assert driver.stdout is not None
        children.append(psutil.Process(int(driver.stdout.readline())))
        os.killpg(driver.pid, blows[name])  # as a terminal does with Ctrl-C: to the whole group
        driver.wait(10)
        driver.stdout.close()
    psutil.wait_procs(children, timeout=25)
    for child in children:
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    for name in blows:
        runs = _runs(staged.config(tmp_path / name))
        assert runs[run_id(staged.UUID, 0)].summary["outcome"] == "complete"
        assert runs[run_id(staged.UUID, 1)].history[-1]["eval_loss"] == 1.5


def _driver(folder: Path) -> subprocess.Popen[str]:
    paths = [str(Path(staged.__file__).parent), str(Path(staged.__file__).parents[1])]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )


def test_secrets_go_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = staged.config(
        tmp_path, "tracking=wandb", "tracking.mode=offline",
        storage="postgresql://me:geheim@host/db", command="sweep token=geheim",
    )  # fmt: skip
    staged.play(Wandb(note=lambda text: None), config, trials=1)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert _runs(config) and b"geheim" not in written and KEY.encode() not in written
    assert sys.executable.encode() not in written  # no command line either


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStub]:
    stub = WandbStub()
    monkeypatch.setenv("WANDB_BASE_URL", stub.address)
    yield stub
    stub.stop()


def test_online_a_continued_trial_goes_on_in_its_run(
    online: SweepConfig, server: WandbStub
) -> None:
    _half(online, attempt=0, ticks=2)
    assert _losses_sent(server) == [(40 * k, x) for k, x in enumerate(staged.losses(0)[:2], 1)]
    _half(online, attempt=1, ticks=4)
    run = server.runs[run_id(staged.UUID, 0)]
    assert _losses_sent(server) == [(40 * k, x) for k, x in enumerate(staged.losses(0), 1)]
    assert [row["examples"] for row in run.history if "train_loss" in row] == [*range(8, 161, 8)]
    assert (run.group, run.config["lora.r"], run.summary["outcome"]) == ("lora_rank", 4, "complete")


def _half(config: SweepConfig, attempt: int, ticks: int) -> None:
    """Trial 0 trains from its start to a tick; its sweep is stopped there, or it is complete."""
    notes: list[str] = []
    observer = Wandb(note=notes.append)
    observer.opened(staged.opened(config))
    trial = staged.trial(config, 0, attempt)
    observer.started(trial, staged.params(0), "w0")
    for tick in range(1, ticks + 1):
        last = staged.report(0, tick, staged.losses(0)[tick - 1], attempt)
        observer.reported(last, CONTINUE)
    if ticks == staged.TICKS:
        observer.finished(trial, staged.result(last, 0, Outcome.COMPLETE))
    observer.closed(Closed(complete=True, reason="done", records=()))
    assert notes == []


def _losses_sent(server: WandbStub) -> list[tuple[int, float]]:
    history = server.runs[run_id(staged.UUID, 0)].history
    return [(row["examples"], row["eval_loss"]) for row in history if "eval_loss" in row]


def test_a_server_that_answers_nonsense_costs_nothing(
    online: SweepConfig, server: WandbStub
) -> None:
    server.nonsense = True
    notes: list[str] = []
    observer = Wandb(note=notes.append)
    assert _sweep_s(observer, online) < 1
    observer.closed(Closed(complete=True, reason="done", records=()))
    assert notes and len(set(notes)) == len(notes)


def test_run_ids_follow_from_study_and_number() -> None:
    assert run_id("a", 1) == run_id("a", 1)
    assert len({run_id(study, n) for study in ("a", "b") for n in range(50)}) == 100


@pytest.mark.parametrize(
    ("asked", "environment", "key", "expected"),
    [
        ("auto", "", False, "offline"),
        ("auto", "", True, "online"),
        ("auto", "offline", True, "offline"),
        ("online", "offline", True, "online"),
        ("offline", "", True, "offline"),
        (None, "", False, "offline"),
    ],
)
def test_the_mode_is_as_told_or_as_there_is_a_key(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, environment: str, key: bool, expected: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setenv("WANDB_API_KEY", KEY if key else "")
    assert mode({"mode": asked}) == expected


def test_a_key_of_wandb_login_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert not key_known() and base_url() == "https://api.wandb.ai"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    assert key_known()
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.my.org/\n")
    assert base_url() == "https://wandb.my.org" and not key_known()


def test_offline_says_how_to_sync(config: SweepConfig, online: SweepConfig) -> None:
    assert sync_command(config) == f"wandb sync {config.study_dir}/wandb/offline-run-*"
    assert sync_command(online) is None


def test_a_stalling_server_is_told_from_a_working_one(stalling: str) -> None:
    assert "does not answer" in (unreachable(timeout_s=0.2) or "")
