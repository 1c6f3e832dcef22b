"""Workers die and their trials go on: who is to blame ends alone, and nothing is told twice."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeping import Recorder, stored, sweep_config

from sweep import states
from sweep.config import SweepConfig
from sweep.executors import remains, worker_process
from sweep.executors.worker_process import WorkerProcess, how_it_ended
from sweep.run import run_sweep
from sweep.space import assignment
from trials.contract import Report, Verdict

ROOT = Path(__file__).parents[3]


def local(folder: Path, *overrides: str) -> SweepConfig:
    return sweep_config(
        folder, "executor=local", "executor.state_every_s=0", "n_trials=4", *overrides
    )


def told_once(seen: Recorder) -> bool:
    """Whether every tick of every trial was shown exactly once, in order."""
    ticks: dict[int, list[int]] = {}
    for report, _ in seen.reports:
        ticks.setdefault(report.trial, []).append(report.tick)
    return all(told == list(range(1, len(told) + 1)) for told in ticks.values())


@pytest.mark.parametrize("kind", ["crash", "segfault"])
def test_a_trial_goes_on_where_its_worker_died(tmp_path: Path, kind: str) -> None:
    whole = sweep_config(tmp_path / "whole", "n_trials=4")
    cut, seen = local(tmp_path / "cut", f"engine.faults=[{kind}@0:4:0,{kind}@2:2:0]"), Recorder()
    assert run_sweep(whole, Recorder()) == run_sweep(cut, seen) == 0
    assert [(r.params, r.losses, r.outcome, r.reason) for r in stored(cut)[1]] == [
        (r.params, r.losses, r.outcome, r.reason) for r in stored(whole)[1]
    ]
    assert told_once(seen) and (0, 1, "worker-0") in seen.starts
    later = [r for r, _ in seen.reports if r.trial == 0 and r.attempt == 1]
    assert [report.tick for report in later] == [4, 5]  # it did not begin anew
    assert not states.folder(cut).exists()


class Looks(Recorder):
    """Remembers which trials have a state whenever a tick is shown."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__()
        self.states: list[list[str]] = []
        self._folder = states.folder(config)

    def reported(self, report: Report, verdict: Verdict) -> None:
        super().reported(report, verdict)
        there = self._folder.iterdir() if self._folder.exists() else ()
        self.states.append(sorted(path.name for path in there))


def test_a_state_is_there_while_its_trial_runs_and_no_longer(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "executor=inline", "executor.state_every_s=0", "n_trials=2",
                          "engine.capacity=2", "pruner=none", "engine.faults=[exception@1:4]",
                          "budget.max_failures=1")  # fmt: skip
    seen = Looks(config)
    run_sweep(config, seen)
    assert seen.states[0] == [] and seen.states[2] == ["0", "1"]
    assert not states.folder(config).exists()


def test_short_trials_leave_no_state(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, "executor=inline", "n_trials=2")
    seen = Looks(config)
    run_sweep(config, seen)
    assert not any(seen.states)


def test_states_of_trials_that_are_over_are_swept_up(tmp_path: Path) -> None:
    """As after a kill between a trial's end and the removal, or of another study of that name."""
    config = local(tmp_path, "executor=inline")
    for name in ("0", "17", "notes"):
        (states.folder(config) / name).mkdir(parents=True)
    assert run_sweep(config, Recorder()) == 0
    assert not states.folder(config).exists()


@pytest.mark.parametrize("kind", ["crash", "exit"])
def test_in_a_pack_the_guilty_fails_alone(tmp_path: Path, kind: str) -> None:
    config = local(tmp_path, "engine.capacity=3", f"engine.faults=[{kind}@1:3]", "pruner=none",
                   "n_trials=6")  # fmt: skip
    seen = Recorder()
    assert run_sweep(config, seen) == 0
    records = stored(config)[1]
    assert [r.number for r in records if r.outcome == "failed"] == [1]
    assert "took its worker down 2 times" in str(records[1].reason)
    assert sum(r.outcome == "complete" for r in records) == 6
    assert told_once(seen)
    attempts = {number: attempt for number, attempt, _ in seen.starts}
    assert (attempts[0], attempts[2]) == (2, 1)  # tried alone; one was set aside meanwhile
    assert not states.folder(config).exists()


def test_a_pack_whose_worker_was_killed_trains_as_a_pack_again(tmp_path: Path) -> None:
    """Each is tried alone for a tick, set aside, and goes on beside the others."""
    typed = ("engine.capacity=3", "pruner=none", "sampler=random", "n_trials=3")
    whole = sweep_config(tmp_path / "whole", *typed)
    cut, seen = local(tmp_path / "cut", *typed, "engine.faults=[crash@1:3:0]"), Recorder()
    assert run_sweep(whole, Recorder()) == run_sweep(cut, seen) == 0
    assert [(r.params, r.losses, r.outcome, r.reason) for r in stored(cut)[1]] == [
        (r.params, r.losses, r.outcome, r.reason) for r in stored(whole)[1]
    ]
    order = [(report.trial, report.tick) for report, _ in seen.reports]
    assert order[-3:] == [(1, 4), (2, 5), (1, 5)] and told_once(seen)
    assert {number: attempt for number, attempt, _ in seen.starts} == {0: 2, 1: 2, 2: 1}


def test_two_of_a_pack_may_be_guilty(tmp_path: Path) -> None:
    config = local(tmp_path, "engine.capacity=4", "engine.faults=[crash@0:1,segfault@2:1]",
                   "pruner=none")  # fmt: skip
    assert run_sweep(config, Recorder()) == 0
    records = stored(config)[1]
    assert [r.number for r in records if r.outcome == "failed"] == [0, 2]
    assert sum(r.outcome == "complete" for r in records) == 4


def test_many_deaths_of_workers_that_get_on_do_not_end_the_sweep(tmp_path: Path) -> None:
    deaths = ",".join(f"crash@{number}:1:0" for number in range(4))
    config = local(tmp_path, f"engine.faults=[{deaths}]")
    assert run_sweep(config, Recorder()) == 0
    assert [r.outcome in ("complete", "pruned") for r in stored(config)[1]] == [True] * 4


def test_the_memory_killers_victim_is_infeasible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(100))
    monkeypatch.setattr(worker_process, "memory_kills", lambda: next(kills))
    config, seen = local(tmp_path, "engine.faults=[crash@1:1]", "train.batch_size=4"), Recorder()
    assert run_sweep(config, seen) == 0
    told = [note.rpartition(" with ")[2] for note in seen.notes if "handed out again" in note]
    assert told == [f"train.micro_batch_size={half}" for half in (2, 1)]
    record = stored(config)[1][1]
    assert record.outcome == "infeasible"
    assert "killed by SIGKILL, by the host's memory killer" in str(record.reason)
    assert len(stored(config)[1]) == 4  # it counts, and the sampler learns from it


def test_the_memory_killers_work_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VMSTAT", "GROUP", "GROUPS"):
        monkeypatch.setattr(worker_process, name, tmp_path / name)
    assert worker_process.memory_kills() is None
    (tmp_path / "VMSTAT").write_text("nr_free_pages 17\noom_kill 3\n")
    assert worker_process.memory_kills() == 3
    (tmp_path / "GROUP").write_text("9:name=systemd:/\n0::/user.slice/mine.scope\n")
    assert worker_process.memory_kills() == 3
    own = tmp_path / "GROUPS" / "user.slice" / "mine.scope"
    own.mkdir(parents=True)
    (own / "memory.events").write_text("oom 2\noom_kill 1\noom_group_kill 0\n")
    assert worker_process.memory_kills() == 1  # what other containers lack is their affair
    assert how_it_ended(-9).endswith("memory killer perhaps")
    assert how_it_ended(-11) == "killed by SIGSEGV"


# --- workers that do not start -----------------------------------------------------------------


def starts(folder: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """Has every worker's process run `action` as it starts; `n` counts them from 0."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(f"""
        import os, sys, time
        if "sweep.executors.child" in sys.orig_argv:
            n = 0
            while True:
                try:
                    os.close(os.open({str(folder)!r} + f"/{{n}}", os.O_CREAT | os.O_EXCL))
                    break
                except FileExistsError:
                    n += 1
            {action}
    """))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_worker_that_cannot_start_is_given_up_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(tmp_path / "site", monkeypatch, "if n in (1, 2): os._exit(7)")
    config = local(tmp_path, "executor.workers=2", "engine.seconds_per_tick=0.2")
    seen = Recorder()
    assert run_sweep(config, seen) == 0
    [given_up] = [note for note in seen.notes if "given up" in note]
    assert "worker-1 on cpu ended: exit code 7" in given_up
    assert {worker for _, _, worker in seen.starts} == {"worker-0"}
    assert len(stored(config)[1]) == 4


def test_a_worker_that_refuses_its_input_is_given_up_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(tmp_path / "site", monkeypatch, OTHER_BASE)
    config = local(tmp_path, "executor.workers=2", "engine.seconds_per_tick=0.2")
    seen = Recorder()
    assert run_sweep(config, seen) == 0
    [given_up] = [note for note in seen.notes if "given up" in note]
    assert "worker-1 on cpu ended: Workers worker-0 and worker-1 do not see the same" in given_up
    assert {worker for _, _, worker in seen.starts} == {"worker-0"}


def test_a_sweep_that_is_done_does_not_wait_for_a_worker_that_still_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(tmp_path / "site", monkeypatch, "if n == 1: time.sleep(600)")
    config = local(tmp_path, "executor.workers=2")
    assert run_sweep(config, Recorder()) == 0
    assert len(stored(config)[1]) == 4


def test_a_dry_run_does_not_wait_for_a_worker_that_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts(tmp_path / "site", monkeypatch, OTHER_BASE)
    assert run_sweep(local(tmp_path, "executor.workers=2", "dry_run=true")) == 0
    told = capsys.readouterr().out
    assert "do not see the same" in told and "it is given up, the others go on" in told
    assert "4 trials, 1 at once on 1 device" in " ".join(told.split())  # as the sweep would be


OTHER_BASE = """
            if n == 1:
                import dataclasses, trials.engines.simulated as engine
                found = engine._setup
                def setup(*given):
                    setup = found(*given)
                    model = dataclasses.replace(setup.model, dtype="bf16")
                    return dataclasses.replace(setup, model=model)
                engine._setup = setup
"""


def test_where_no_worker_can_start_the_sweep_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is killed under its trial, and nothing can take its place."""
    starts(tmp_path / "site", monkeypatch, "if n > 0: os._exit(7)")
    seen = Recorder()
    assert run_sweep(local(tmp_path, "engine.faults=[crash@1:1:0]"), seen) == 1
    assert seen.closed_with and "worker-0 on cpu ended: exit code 7" in seen.closed_with.reason


def test_a_worker_that_works_without_a_word_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = local(tmp_path)
    worker = WorkerProcess(assignment(config, worker="worker-0", device="cpu"), tmp_path / "log")
    try:
        worked = iter([10.0, 10.1, 11.0])
        monkeypatch.setattr(worker_process, "_worked_s", lambda pid: next(worked))
        heard = []
        for _ in range(3):
            worker.heard_at = 0.0
            worker.notice_work()
            heard.append(worker.heard_at > 0)
        assert heard == [True, False, True]
    finally:
        worker.end(at_once=True)
        worker.forget()


def test_a_worker_that_hangs_as_it_starts_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.executors.worker_process.tempfile.tempdir", str(tmp_path))
    starts(tmp_path / "site", monkeypatch, "time.sleep(600)")
    seen = Recorder()
    assert run_sweep(local(tmp_path, "executor.patience_s=2"), seen) == 1
    assert seen.closed_with and "silent for 2 s" in seen.closed_with.reason


HANGS_ONCE = """
            if n == 0:
                import trials.engines.simulated as engine
                taken, fill = [], engine.SimulatedEngine._refill
                def refill(self, driver, slots):
                    if taken and not slots:
                        time.sleep(600)
                    taken.append(1)
                    return fill(self, driver, slots)
                engine.SimulatedEngine._refill = refill
"""


def test_a_worker_that_hangs_between_two_trials_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(tmp_path / "site", monkeypatch, HANGS_ONCE)
    seen = Recorder()
    assert run_sweep(local(tmp_path, "executor.patience_s=2"), seen) == 0
    [replaced] = seen.notes
    assert "worker-0 on cpu ended: silent for 2 s" in replaced and "another takes" in replaced
    assert [number for number, _, _ in seen.starts] == [0, 1, 2, 3]


# --- what a killed run leaves ------------------------------------------------------------------

RUN = """
import subprocess, sys
from sweep.executors import remains
with remains.held() as lock:
    sleeper = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    subprocess.Popen(sleeper, pass_fds=[lock], stdin=0)
    print("ready", flush=True)
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose driver is dead and whose worker lives until the pipe is closed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert run.stdout and run.stdin and run.stdout.readline() == b"ready\n"
    run.wait()
    yield run
    run.stdin.close()
    run.stdout.close()


def test_the_next_run_waits_until_a_killed_ones_workers_are_gone(killed_run: Any) -> None:
    notes: list[str] = []
    remains.wait_for_others(notes.append, patience_s=0.3)
    assert notes == [
        "Waiting for the workers of a killed run to leave the device.",
        "Workers of a killed run do not leave; their memory may be missing here.",
    ]
    killed_run.stdin.close()
    notes.clear()
    remains.wait_for_others(notes.append)
    remains.wait_for_others(pytest.fail)  # nothing is left to wait for
    assert len(notes) <= 1


@pytest.mark.parametrize("later", [0.0, 3600.0])
def test_a_living_runs_workers_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    """Nor where the clock has been set anew, which a process's start seems to follow."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    boot, created = psutil.boot_time() + later, psutil.Process().create_time() + later
    with remains.held() as lock:
        assert lock is not None
        monkeypatch.setattr(psutil, "boot_time", lambda: boot)
        monkeypatch.setattr(psutil.Process, "create_time", lambda _: created)
        remains.wait_for_others(pytest.fail, patience_s=0.0)
    assert not list(tmp_path.rglob("*.json"))


def test_anothers_folder_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"qlora-sweep-{os.getuid()}").symlink_to(tmp_path)
    with remains.held() as lock:
        assert lock is None
    remains.wait_for_others(pytest.fail)
