"""What every executor promises, then what only separate processes can: outliving a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeping import Recorder, in_optuna, stored, sweep_config

from sweep.config import SweepConfig
from sweep.ending import BUDGET, COMPLETE
from sweep.executors.devices import (
    devices,
    shares,
    threads_of,
    too_many_for_cpu,
    visible_gpus,
)
from sweep.executors.worker_process import WorkerProcess
from sweep.observers import Closed
from sweep.run import run_sweep
from sweep.space import assignment
from trials.contract import Assignment, InputError, Report, Verdict

EXECUTORS = ("inline", "local")


@pytest.fixture(params=EXECUTORS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., SweepConfig]:
    def make(*overrides: str) -> SweepConfig:
        return sweep_config(tmp_path, f"executor={request.param}", "n_trials=4", *overrides)

    return make


def local(tmp_path: Path, *overrides: str) -> SweepConfig:
    return sweep_config(tmp_path, "executor=local", "n_trials=4", *overrides)


Make = Callable[..., SweepConfig]


def test_a_sweep_runs_to_its_total_and_the_same_command_goes_no_further(make: Make) -> None:
    config, seen, again = make(), Recorder(), Recorder()
    assert run_sweep(config, seen) == 0
    assert run_sweep(config, again) == 0
    assert len(seen.results) == 4 and again.starts == []
    assert again.closed_with and again.closed_with.more == "n_trials=6"
    assert again.opened_with and len(again.closed_with.records) == 4
    assert run_sweep(make("n_trials=6"), Recorder()) == 0
    assert [record.number for record in stored(config)[1]] == list(range(6))


def test_both_executors_give_the_same_sweep(tmp_path: Path) -> None:
    sweeps = [sweep_config(tmp_path / e, f"executor={e}", "n_trials=4") for e in EXECUTORS]
    for config in sweeps:
        assert run_sweep(config, Recorder()) == 0
    one, two = ([(r.params, r.losses, r.reason) for r in stored(c)[1]] for c in sweeps)
    assert one == two


def test_several_slots_in_one_worker(make: Make) -> None:
    config, seen = make("engine.capacity=3"), Recorder()
    assert run_sweep(config, seen) == 0
    assert [start[0] for start in seen.starts[:3]] == [0, 1, 2]
    assert len(seen.results) == 4


def test_bad_input_leaves_nothing_behind(make: Make, tmp_path: Path) -> None:
    config = make("lora.target_modules=nose_proj")
    with pytest.raises(InputError, match="nose_proj.*no such module"):
        run_sweep(config, Recorder())
    assert list(tmp_path.iterdir()) == []


def test_a_batch_larger_than_a_tick_of_epochs_is_told_once_the_data_is_known(
    make: Make, tmp_path: Path
) -> None:
    config = make("budget.examples=null", "budget.epochs=0.1", "data.train_size=200")
    with pytest.raises(InputError, match=r"budget\.epochs=0\.1 of 200 examples"):
        run_sweep(config, Recorder())
    assert list(tmp_path.iterdir()) == []


def test_a_study_whose_time_is_used_up_starts_no_worker(make: Make) -> None:
    config, seen = make("budget.max_hours=1e-9"), Recorder()
    assert run_sweep(config, Recorder()) == BUDGET
    assert run_sweep(config, seen) == BUDGET
    assert seen.loading == [] and seen.closed_with and not seen.closed_with.complete
    assert "budget.max_hours=1e-09 is used up" in seen.closed_with.reason
    assert str(seen.closed_with.more).startswith("budget.max_hours=")
    assert run_sweep(make(), Recorder()) == COMPLETE


def test_ctrl_c_at_the_end_does_not_wait_for_observers(make: Make) -> None:
    config = make()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, Lingers())
    assert all(trial.state.is_finished() for trial in in_optuna(config))
    assert run_sweep(config, Recorder()) == COMPLETE  # and holds no lock


class Lingers(Recorder):
    """Has still something to do at the end, when the user presses Ctrl-C."""

    def closed(self, closed: Closed) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)


def test_an_out_of_memory_and_an_exception_cost_one_trial_each(make: Make) -> None:
    config = make("engine.faults=[oom@1:2,exception@2:1,nan@3:1]")
    assert run_sweep(config, Recorder()) == 0
    outcomes = [record.outcome for record in stored(config)[1]]
    assert outcomes[1:4] == ["infeasible", "failed", "diverged"] and len(outcomes) == 5


def test_ctrl_c_stops_at_the_next_report(make: Make) -> None:
    config = make("engine.seconds_per_tick=0.05")
    seen = SendsSignal(signal.SIGINT)
    assert run_sweep(config, seen) == 130
    assert [r.outcome.value for r in seen.results] == ["stopped"]
    assert seen.closed_with and seen.closed_with.reason == "interrupted"
    assert run_sweep(config, Recorder()) == 0
    assert len(stored(config)[1]) == 4


class SendsSignal(Recorder):
    """Presses Ctrl-C, so to speak, at the first report."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number: int | None = number

    def reported(self, report: Report, verdict: Verdict) -> None:
        number, self._number = self._number, None
        if number is not None:
            os.kill(os.getpid(), number)


# --- processes of their own --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["crash", "exit"])
def test_a_dead_worker_is_replaced_and_its_trial_tried_again(tmp_path: Path, kind: str) -> None:
    config, seen = local(tmp_path, f"engine.faults=[{kind}@1:2:0]"), Recorder()
    assert run_sweep(config, seen) == 0
    assert (1, 1, "worker-0") in seen.starts
    assert [r.outcome for r in stored(config)[1]].count("failed") == 0
    how = "killed by SIGKILL" if kind == "crash" else "exit code 3"
    assert any(how in note for note in seen.notes)
    ticks = [report.tick for report, _ in seen.reports if report.trial == 1]
    assert ticks == sorted(set(ticks))  # none is told twice


def test_a_trial_that_kills_two_workers_fails_alone(tmp_path: Path) -> None:
    config = local(tmp_path, "engine.faults=[crash@1:1]")
    assert run_sweep(config, Recorder()) == 0
    records = stored(config)[1]
    assert [r.outcome for r in records].count("failed") == 1 and len(records) == 5
    assert "took its worker down 2 times" in str(records[1].reason)


def test_a_silent_worker_is_killed(tmp_path: Path) -> None:
    config = local(tmp_path, "engine.faults=[hang@0:2:0]", "executor.patience_s=3")
    seen = Recorder()
    assert run_sweep(config, seen) == 0
    assert any("silent for 3 s" in note for note in seen.notes)


def test_workers_share_a_device(tmp_path: Path) -> None:
    config = local(tmp_path, "executor.workers=2", "engine.seconds_per_tick=0.05", "n_trials=6")
    seen = Recorder()
    assert run_sweep(config, seen) == 0
    assert {worker for _, _, worker in seen.starts} == {"worker-0", "worker-1"}
    assert len(stored(config)[1]) == 6
    logs = sorted(path.name for path in (config.study_dir / "logs").iterdir())
    assert logs == ["worker-0.log", "worker-1.log"]


def test_sigterm_is_one_ctrl_c(tmp_path: Path) -> None:
    config = local(tmp_path, "engine.seconds_per_tick=0.05")
    assert run_sweep(config, SendsSignal(signal.SIGTERM)) == 130


def test_ctrl_c_twice_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    config = local(tmp_path, "engine.faults=[hang@1:2:0]")
    impatient = threading.Thread(target=_press_twice, args=(config,))
    impatient.start()
    began = time.monotonic()
    assert run_sweep(config, Recorder()) == 130
    assert time.monotonic() - began < 30
    impatient.join()
    assert run_sweep(config, Recorder()) == 0
    records = stored(config)[1]
    assert [r.outcome in ("complete", "pruned") for r in records] == [True] * 4
    assert all(trial.state.is_finished() for trial in in_optuna(config))


def _press_twice(config: SweepConfig) -> None:
    """Waits until trial 1 hangs, then presses Ctrl-C twice."""
    while not (config.study_dir / "logs" / "worker-0.log").exists() or not _hanging(config):
        time.sleep(0.1)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)


def _hanging(config: SweepConfig) -> bool:
    records = stored(config)[1]
    return len(records) == 2 and records[1].ticks == 1


def test_a_killed_driver_takes_its_workers_along_and_the_next_one_goes_on(tmp_path: Path) -> None:
    config = local(tmp_path)
    command = [
        sys.executable, "-m", "sweep", "engine=simulated", "tracking=none", "device=cpu",
        "study=test", "n_trials=4", "engine.seconds_per_tick=0.2",
        "lora.r=choice(4,8,16,32,64)", "train.learning_rate=tag(log,interval(2e-5,5e-3))",
        f"results_dir={tmp_path / 'results'}",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
    while driver.poll() is None and not _first_report(config):
        time.sleep(0.1)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert workers and not alive
    seen = Recorder()
    assert run_sweep(config, seen) == 0
    assert seen.starts[0][:2] == (0, 1)
    assert [r.outcome in ("complete", "pruned") for r in stored(config)[1]] == [True] * 4


def _first_report(config: SweepConfig) -> bool:
    try:
        return stored(config)[1][0].ticks > 0
    except (InputError, IndexError, StopIteration):
        return False


def test_a_worker_that_cannot_start_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that breaks at import, as a wrong CUDA build does."""
    broken = tmp_path / "broken" / "ctypes"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcuda is of another make')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    monkeypatch.setattr("sweep.executors.worker_process.tempfile.tempdir", str(tmp_path))
    seen = Recorder()
    assert run_sweep(local(tmp_path), seen) == 1
    said = seen.closed_with.reason if seen.closed_with else ""
    assert "worker-0 on cpu ended: exit code 1" in said
    assert "ImportError: libcuda is of another make" in said
    log = Path(said.rpartition("Its log: ")[2])
    assert "libcuda" in log.read_text() and not (tmp_path / "results").exists()


# --- devices -----------------------------------------------------------------------------------


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.executors.devices._installed_gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices("auto") == devices("cuda") == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert devices("cpu") == ["cpu"] and devices("cuda:2") == ["cuda:2"]


@pytest.mark.parametrize("visible, count", [("0,2", 2), ("", 0), ("-1", 0), ("1,-1,0", 1)])
def test_visible_devices_are_respected(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setattr("sweep.executors.devices._installed_gpus", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == count


def test_without_a_gpu_auto_is_the_cpu_and_cuda_stays_for_the_worker_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sweep.executors.devices._installed_gpus", lambda: 0)
    assert devices("auto") == ["cpu"] and devices("cuda") == ["cuda"]


def test_shares_of_devices_and_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sweep.executors.devices._installed_gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("sweep.executors.devices._cores", lambda: 8)
    assert shares(local(tmp_path, "device=cuda")) == ["cuda:0", "cuda:1"]
    assert shares(local(tmp_path, "device=cuda", "executor.workers=3")) == [
        "cuda:0", "cuda:1", "cuda:0"]
    assert shares(local(tmp_path, "device=cuda", "n_trials=1")) == ["cuda:0"]
    assert len(shares(local(tmp_path, "device=cpu", "executor.workers=100"))) == 4  # trials
    assert threads_of("cpu", ["cpu"] * 3) == 2 and threads_of("cpu", ["cpu"]) is None
    assert threads_of("cuda:0", ["cuda:0"] * 2) is None
    assert too_many_for_cpu(["cpu"] * 8) is too_many_for_cpu(["cuda:0"] * 9) is None
    assert "9 workers share 8 CPU cores: executor.workers=8" in str(too_many_for_cpu(["cpu"] * 9))


def test_no_more_workers_start_than_the_hosts_memory_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[str] = []

    def told(config: SweepConfig, **what: Any) -> Assignment:
        started.append(what["worker"])
        return assignment(config, **what)

    monkeypatch.setattr("sweep.executors.local.assignment", told)
    monkeypatch.setattr(WorkerProcess, "own_bytes", 3 * 2**30)
    monkeypatch.setattr("trials.host.free_bytes", lambda: 4 * 2**30)
    config, seen = local(tmp_path, "executor.workers=4"), Recorder()
    assert run_sweep(config, seen) == 0
    assert started == ["worker-0", "worker-1"]
    assert ("2 of 4 workers start: one takes 3.0 GiB of this host's memory, of which 4.0 GiB are "
            "free") in seen.notes


def test_each_worker_knows_how_many_share_its_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sweep.executors.devices._installed_gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given: dict[str, tuple[str, int]] = {}

    def told(config: SweepConfig, **what: Any) -> Assignment:
        made = assignment(config, **what)
        given[made.worker] = made.device, made.sharing
        return made

    monkeypatch.setattr("sweep.executors.local.assignment", told)
    config = local(tmp_path, "device=cuda", "executor.workers=3", "engine.seconds_per_tick=0.05")
    assert run_sweep(config, Recorder()) == 0
    assert given == {
        "worker-0": ("cuda:0", 2), "worker-1": ("cuda:1", 1), "worker-2": ("cuda:0", 2)}
