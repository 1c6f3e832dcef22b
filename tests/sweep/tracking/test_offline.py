"""W&B without a server: complete runs on disk, whatever was cut short, killed or stuck."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest
import sweeping
from tracked import FAULTS, OFFLINE, Run, by_number, command, losses, runs, swept, tables, ticks

from sweep.config import SweepConfig
from sweep.store import Store
from sweep.tracking.__main__ import main as tracking
from sweep.tracking.marks import Marks
from sweep.tracking.observer import Tracking
from sweep.tracking.wandb import key_known, mode, run_id, sync_command
from sweep.tracking.wandb.server import base_url
from trials.contract import CONTINUE, Driver, Outcome, Report, TrialConfig, TrialResult

KEY = "0123456789" * 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A whole sweep, followed offline: some trials complete, pruned, diverged and failed."""
    made = sweeping.sweep_config(tmp_path_factory.mktemp("whole"), *OFFLINE, FAULTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        assert swept(made) == []
    return made


@pytest.fixture(scope="module")
def found(config: SweepConfig) -> dict[int | str, Run]:
    return by_number(config)


def test_each_trial_is_a_run_and_so_is_the_untouched_base(
    config: SweepConfig, found: dict[int | str, Run]
) -> None:
    _, records = tables(config)
    assert set(found) == {"baseline", *(record.number for record in records)}
    for record in records:
        run = found[record.number]
        assert (run.name, run.group, run.job_type) == (f"test-{record.number}", "test", "trial")
        assert set(run.tags) == {"sweep", "demo", "cpu"}
        assert run.exit_code == (1 if record.outcome == "failed" else 0)
        assert run.summary["outcome"] == record.outcome
        assert run.summary.get("reason", None) == record.reason
    assert {"complete", "pruned", "diverged", "failed"} <= {r.outcome for r in records}


def test_a_run_has_the_numbers_of_the_tables(
    config: SweepConfig, found: dict[int | str, Run]
) -> None:
    for record in tables(config)[1]:
        run = found[record.number]
        finite = [(e, x) for e, x in ticks(config, record.number) if x == x]
        assert losses(run.history) == finite
        examples = [row["examples"] for row in run.history if "train_loss" in row]
        assert examples == sorted(set(examples)) and len(examples) >= len(finite)
        assert run.summary["peak_memory_bytes"] == record.memory_bytes
        assert run.summary["trainable_parameters"] == record.trainable_parameters
        assert run.config["lora"]["r"] == record.params["lora.r"]
        assert run.config["train"]["learning_rate"] == record.params["train.learning_rate"]
        assert run.config["number"] == record.number and "attempt" not in run.config
    best = min((r for r in tables(config)[1] if r.eval_loss), key=lambda r: r.eval_loss or 0)
    assert found[best.number].summary["eval_loss"] == best.eval_loss


def test_the_devices_of_the_workers_are_history(found: dict[int | str, Run]) -> None:
    rows = [row for row in found[0].history if "eval_loss" in row]
    assert all(0 <= row["utilisation"] <= 1 and row["peak_memory_bytes"] > 0 for row in rows)


def test_samples_are_a_table_beside_what_the_base_writes(
    config: SweepConfig, found: dict[int | str, Run]
) -> None:
    uuid, records = tables(config)
    number = next(r.number for r in records if r.outcome == "complete")
    table = found[number].history[-1]
    assert table["samples/_type"] == "table-file"
    file = next((config.study_dir / "wandb").rglob(Path(table["samples/path"]).name))
    written = json.loads(file.read_text())
    assert written["columns"] == ["prompt", "reference", "base", "generated"]
    store = Store(config.storage)
    try:
        samples, base = store.samples(uuid, number), store.baseline_samples(uuid)
    finally:
        store.close()
    last = samples[max(samples)]
    assert written["data"] == [
        [s.prompt, s.reference, b.generated, s.generated] for s, b in zip(last, base, strict=True)
    ]
    assert found["baseline"].history[-1]["samples/_type"] == "table-file"


def test_the_data_set_is_logged_once_and_used_by_every_trial(found: dict[int | str, Run]) -> None:
    assert "dataset" in found["baseline"].logged
    trials = [run for number, run in found.items() if number != "baseline"]
    assert all("dataset" in run.used and "dataset" not in run.logged for run in trials)


def test_runs_cut_short_or_missed_are_written_again_whole(tmp_path: Path) -> None:
    config = sweeping.sweep_config(tmp_path, *OFFLINE, "n_trials=3")
    swept(config)
    uuid, records = tables(config)
    whole = {number: losses(run.history) for number, run in by_number(config).items()}
    for number in (0, 1):  # as a crash leaves one, and as one that was never begun
        begun = f"offline-run-*-{run_id(uuid, number)}/*.wandb"
        for file in (config.study_dir / "wandb").glob(begun):
            file.write_bytes(file.read_bytes()[:200])
    marks = config.study_dir / "wandb" / "logged.jsonl"
    kept = [x for x in marks.read_text().splitlines() if json.loads(x)[1] not in ("0", "1")]
    marks.write_text("\n".join(kept) + '\n["half a li')
    before = set((config.study_dir / "wandb").glob(f"offline-run-*-{run_id(uuid, 2)}"))
    argv = ["test", "--offline", "--storage", config.storage]
    assert "has all of test" in command(*argv)
    assert {n: losses(run.history) for n, run in by_number(config).items()} == whole
    assert set((config.study_dir / "wandb").glob(f"offline-run-*-{run_id(uuid, 2)}")) == before
    assert all(Marks(marks, uuid).given(str(r.number), ("offline",)) for r in records)
    assert not Marks(marks, "another study").given("0", ("offline",))


def test_a_continued_trial_is_one_whole_run(tmp_path: Path) -> None:
    """Its next attempt goes on at tick 3; that of a trial trained anew is `test_online`'s."""
    config = sweeping.sweep_config(tmp_path, *OFFLINE)
    notes: list[str] = []
    driver, link = sweeping.ready(config, Tracking("wandb", notes.append))
    trial = _take(link)
    for tick in (1, 2):
        link.report(_report(trial, tick))
    driver.stop(3, "interrupted")
    driver.close()
    driver, link = sweeping.ready(config, Tracking("wandb", notes.append))
    again = _take(link)
    assert (again.number, again.attempt) == (trial.number, 1)
    _train(link, again, first=3)
    driver.close()
    history = by_number(config)[trial.number].history
    assert losses(history) == ticks(config, trial.number) and len(losses(history)) == 5
    examples = [row["examples"] for row in history]
    assert examples == sorted(examples) and notes == []


def _take(link: Driver) -> TrialConfig:
    trial = link.next_trial()
    assert isinstance(trial, TrialConfig)
    return trial


def _train(link: Driver, trial: TrialConfig, first: int = 1) -> None:
    for tick in range(first, 6):
        last = _report(trial, tick)
        assert link.report(last) == CONTINUE
    link.finish(
        TrialResult(trial=trial.number, attempt=trial.attempt, outcome=Outcome.COMPLETE,
                    eval_loss=last.eval_loss, ticks=5, examples=last.examples)
    )  # fmt: skip


def _report(trial: TrialConfig, tick: int) -> Report:
    examples = trial.budget.examples // trial.budget.ticks * tick
    return Report(trial=trial.number, attempt=trial.attempt, tick=tick, eval_loss=1.1 - 0.1 * tick,
                  examples=examples, tokens=100, seconds=1.0, worker="w0")  # fmt: skip


def test_a_killed_process_is_told_once_and_its_trials_are_written_at_the_end(
    tmp_path: Path,
) -> None:
    config = sweeping.sweep_config(tmp_path, *OFFLINE)
    notes: list[str] = []
    driver, link = sweeping.ready(config, Tracking("wandb", notes.append))
    _process().kill()
    deadline = time.monotonic() + 10
    while not notes and time.monotonic() < deadline:
        time.sleep(0.01)
    _train(link, _take(link))
    driver.close()
    assert len(notes) == 1 and "ended early" in notes[0]
    assert losses(by_number(config)[0].history) == ticks(config, 0)


def test_a_stuck_process_holds_nothing_up_and_loses_nothing(tmp_path: Path) -> None:
    config = sweeping.sweep_config(tmp_path, *OFFLINE, "tracking.close_timeout_s=0.2")
    notes: list[str] = []
    driver, link = sweeping.ready(config, Tracking("wandb", notes.append))
    (process := _process()).suspend()
    trial = _take(link)
    for _ in range(3000):  # more than a pipe holds, were each one sent
        driver._observer.reported(_report(trial, 1), CONTINUE)
    _train(link, trial)
    driver.close()
    assert not process.is_running()
    assert len(notes) == 1
    assert "was ended" in notes[0] and "python -m sweep.tracking test" in notes[0]
    command("--offline", "--storage", config.storage)
    assert losses(by_number(config)[0].history) == ticks(config, 0)


def _process() -> psutil.Process:
    """The tracker's."""
    children = psutil.Process().children()
    return next(c for c in children if "sweep.tracking.process" in c.cmdline())


def test_secrets_go_nowhere(config: SweepConfig) -> None:
    files = [p for p in config.study_dir.rglob("*") if p.is_file()]
    written = b"".join(p.read_bytes() for p in files)
    assert runs(config) and KEY.encode() not in written
    assert sys.executable.encode() not in written  # no command line either


def test_the_command_says_what_it_needs(
    config: SweepConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tracking(["test", "--storage", config.storage]) == 2
    assert "wandb login" in capsys.readouterr().err
    assert tracking(["tst", "--storage", config.storage]) == 2
    assert "'test'" in capsys.readouterr().err
    running = sweeping.sweep_config(tmp_path)
    driver, _ = sweeping.ready(running)
    assert tracking(["test", "--offline", "--storage", running.storage]) == 2
    assert "is running" in capsys.readouterr().err
    driver.close()


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


def test_offline_says_how_to_sync(config: SweepConfig) -> None:
    assert sync_command(config) == f"wandb sync {config.study_dir}/wandb/offline-run-*"
