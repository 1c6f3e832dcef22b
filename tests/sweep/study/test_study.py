"""Opening a study: what is refused and why, and that a refusal leaves nothing behind."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
from sweeping import Recorder, in_optuna, prepare, ready, run_inline, stored, sweep_config

from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.observers import build_observers
from sweep.run import run_sweep
from sweep.store import Store
from sweep.store.database import sqlite_path
from sweep.study import lock, look, open_study
from trials.contract import InputError, Sample, Setup


def setup_of(config: SweepConfig) -> Setup:
    return prepare(config, SweepDriver(config, Recorder()).connect("w0"))


def refusal(config: SweepConfig) -> str:
    """What a user reads who runs this."""
    with pytest.raises(InputError) as refused:
        run_sweep(config, Recorder())
    return str(refused.value)


def test_nothing_is_written_before_a_worker_has_prepared(
    config: SweepConfig, tmp_path: Path
) -> None:
    assert look(config) is None
    assert list(tmp_path.iterdir()) == []


def test_another_space_is_refused_leaf_by_leaf(config: SweepConfig, tmp_path: Path) -> None:
    run_inline(config)
    space = ("lora.r=choice(4,8)", "lora.dropout=interval(0,0.1)")
    said = refusal(sweep_config(tmp_path, "train.learning_rate=1e-4", space=space))
    assert "lora.r: 'choice(4,8,16,32,64)' then, 'choice(4,8)' now" in said
    assert "train.learning_rate: 'tag(log,interval(2e-5,5e-3))' then, 0.0001 now" in said
    assert "lora.dropout: 0 then, 'interval(0,0.1)' now" in said
    assert "Type study=<another name>" in said and "lora.r='choice(4,8,16,32,64)'" in said


CONDITIONAL = """
train:
  scheduler: choice(constant, linear, cosine)
  warmup:
    space: interval(0, 0.2)
    when: {train.scheduler: %s}
"""


def test_another_condition_is_told(tmp_path: Path) -> None:
    sweeps = [conditional(tmp_path, scheduler) for scheduler in ("[linear, cosine]", "cosine")]
    ready(sweeps[0])[0].close()
    said = refusal(sweeps[1])
    warmup = "'interval(0, 0.2)' when train.scheduler="
    assert f"{warmup}[linear,cosine] (else 0.03) then, {warmup}[cosine] (else 0.03) now" in said
    assert "give it the same files as before" in said


def conditional(tmp_path: Path, scheduler: str) -> SweepConfig:
    """A warm-up that is searched where the scheduler is this."""
    folder = tmp_path / scheduler
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "mine.yaml").write_text(CONDITIONAL % scheduler)
    return sweep_config(tmp_path, "train=default", space=("+search=mine",), config_dir=folder)


@pytest.mark.parametrize(
    "override, told",
    [
        ("seed=1", "seed: 0 then, 1 now"),
        ("budget.ticks=4", "budget.ticks: 5 then, 4 now"),
        ("pruner=median", "pruner: asha then, median now"),
        ("pruner.min_fraction=0.6", "pruner.min_fraction: 0.4 then, 0.6 now"),
        ("train.scheduler=cosine", "train.scheduler: linear then, cosine now"),
        ("model.quantisation=fp4", "model.quantisation: nf4 then, fp4 now"),
        ("data.train_size=50", "data.content_hash: "),
    ],
)
def test_what_changes_a_result_is_refused(
    config: SweepConfig, tmp_path: Path, override: str, told: str
) -> None:
    ready(config)[0].close()
    assert told in refusal(sweep_config(tmp_path, override))
    assert stored(config)[0].n_trials == 8


@pytest.mark.parametrize("done", [True, False])
def test_all_that_differs_is_told_at_once_and_the_way_back_works(
    config: SweepConfig, tmp_path: Path, done: bool
) -> None:
    run_inline(config) if done else ready(config)[0].close()
    (tmp_path / "chat.jsonl").touch()
    other = ("data=chat", f"data.path={tmp_path / 'chat.jsonl'}", "budget.examples=200",
             "model=hub", "model.name=a/b", "model.quantisation=none", "train=default", "seed=3")
    said = refusal(sweep_config(tmp_path, *other))
    assert "seed: 0 then, 3 now" in said and "budget.ticks: 5 then, 8 now" in said
    assert " data=demo data.path=null data.max_length=64 " in said and "model.name=demo" in said
    back = shlex.split(said.partition("go back to: ")[2])
    observer = Recorder()
    run_sweep(sweep_config(tmp_path, *other, *back), observer)
    assert observer.opened_with is not None


@pytest.mark.parametrize(
    "override",
    ["n_trials=9", "train.micro_batch_size=2", "executor.workers=2", "sampler=random",
     "budget.max_hours=5", "engine.capacity=2"],
)  # fmt: skip
def test_what_changes_no_result_may_differ(
    config: SweepConfig, tmp_path: Path, override: str
) -> None:
    ready(config)[0].close()
    ready(sweep_config(tmp_path, override))[0].close()


def test_a_new_database_that_cannot_be_finished_is_removed(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise InputError("not today")

    monkeypatch.setattr(Store, "open_study", broken)
    with pytest.raises(InputError, match="not today"):
        open_study(config, setup_of(config))
    assert list(tmp_path.iterdir()) == []


def test_a_study_cut_short_while_it_was_made_is_taken_over(config: SweepConfig) -> None:
    ready(config)[0].close()
    path = str(sqlite_path(config.storage))
    db = sqlite3.connect(path)
    for kind in ("user", "system"):
        db.execute(f"delete from study_{kind}_attributes")
    db.commit()
    db.close()
    run_inline(config)
    assert len(in_optuna(config)) == 8


def test_a_database_cut_short_while_it_was_made_is_taken_over(config: SweepConfig) -> None:
    config.results_dir.mkdir()
    Store(config.storage, create=True).close()  # our tables are there, Optuna's are not
    assert look(config) is None
    assert run_sweep(config, Recorder()) == 0


def test_somebody_elses_study_is_refused(config: SweepConfig, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    storage = optuna.storages.RDBStorage(config.storage)
    study = optuna.create_study(study_name="test", storage=storage)
    study.tell(study.ask(), 1.0)
    storage.remove_session()
    storage.engine.dispose()
    assert "was not made by sweep" in refusal(config)
    assert len(in_optuna(config)) == 1


def test_two_studies_share_a_database(config: SweepConfig) -> None:
    other = dataclasses.replace(config, study="other")
    one, two = ready(config)[0], ready(other)[0]
    one.close()
    two.close()
    assert stored(config)[0].uuid != stored(other)[0].uuid


def test_a_second_driver_is_refused_and_told_who_holds_the_study(config: SweepConfig) -> None:
    driver, _ = ready(config)
    said = refusal(config)
    assert f"run by process {psutil.Process().pid} on {socket.gethostname()} since" in said
    assert "study=<another name>" in said and "kill" in said
    driver.close()
    ready(config)[0].close()


def test_a_dead_drivers_lock_is_taken_over(config: SweepConfig) -> None:
    ready(config)[0].close()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    hold(config, host=socket.gethostname(), pid=dead.pid, alive_at=1e12)
    ready(config)[0].close()


def test_a_pid_that_another_process_has_by_now_holds_nothing(config: SweepConfig) -> None:
    ready(config)[0].close()
    hold(config, host=socket.gethostname(), pid=psutil.Process().pid, alive_at=1e12)
    ready(config)[0].close()


def test_a_driver_of_another_host_holds_until_it_is_silent(config: SweepConfig) -> None:
    ready(config)[0].close()
    hold(config, host="elsewhere", pid=1, alive_at=time.time())
    assert "process 1 on elsewhere" in refusal(config)
    hold(config, host="elsewhere", pid=1, alive_at=time.time() - lock.STALE_S)
    ready(config)[0].close()


@pytest.mark.parametrize("typed", ["model.quantisation=none", "data.train_size=500"])
def test_a_finished_study_is_not_shown_for_another_model_or_data(
    typed: str, config: SweepConfig, tmp_path: Path
) -> None:
    run_inline(config)
    name = typed.partition("=")[0]
    with pytest.raises(InputError, match=f"{name}: .* then, .* now") as told:
        run_sweep(sweep_config(tmp_path, typed), Recorder())
    assert f"go back to: {name}=" in str(told.value)


def test_what_a_worker_found_may_be_typed_for_a_finished_study(
    config: SweepConfig, tmp_path: Path
) -> None:
    driver = run_inline(config)
    dtype = driver._setup.model.dtype if driver._setup else ""  # what auto came to
    assert run_sweep(sweep_config(tmp_path, f"model.dtype={dtype}"), Recorder()) == 0


@pytest.mark.parametrize("table", ["studies", "sweep_trials"])
def test_a_database_with_foreign_tables_is_refused_untouched(
    table: str, config: SweepConfig, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as db:
        db.execute(f"create table {table} (x int)")
    db.close()
    before = path.read_bytes()
    said = refusal(dataclasses.replace(config, storage=f"sqlite:///{path}"))
    assert repr(table) in said and "storage=<another database>" in said
    assert path.read_bytes() == before


def hold(config: SweepConfig, *, host: str, pid: int, alive_at: float) -> None:
    """Leaves a lock as another driver would."""
    db = sqlite3.connect(str(sqlite_path(config.storage)))
    db.execute(
        "insert or replace into sweep_locks values ('test', 'token', ?, ?, 0, 0, ?)",
        (host, pid, alive_at),
    )
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "storage, told",
    [
        ("sqlite:////dev/null/sweep.db", "is not a folder"),
        ("sqlite:////proc/sweep.db", "/proc cannot be written to"),
        ("postgresql+nothing://host/db", "Type storage=postgresql+psycopg://"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(
    config: SweepConfig, tmp_path: Path, storage: str, told: str
) -> None:
    assert told in refusal(dataclasses.replace(config, storage=storage))
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_a_folder_is_refused(config: SweepConfig, tmp_path: Path) -> None:
    (tmp_path / "sweep.db").mkdir()
    said = refusal(dataclasses.replace(config, storage=f"sqlite:///{tmp_path}/sweep.db"))
    assert f"{tmp_path}/sweep.db is a folder" in said


def left_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_study_writes_over_nothing_that_another_has_left(
    config: SweepConfig, tmp_path: Path
) -> None:
    assert run_sweep(config, build_observers(config)) == 0
    path = sqlite_path(config.storage)
    assert path is not None
    path.rename(tmp_path / "other.db")  # lost, to this command
    before = left_of(config.study_dir)
    said = refusal(config)
    assert f"{config.study_dir} holds a study" in said and "study=<another name>" in said
    assert left_of(config.study_dir) == before and not path.exists()
    known = dataclasses.replace(config, storage=f"sqlite:///{tmp_path}/other.db")
    assert run_sweep(known, Recorder()) == 0
    shutil.rmtree(config.study_dir)
    assert run_sweep(config, Recorder()) == 0


@pytest.mark.parametrize("name", ["", "trials", "logs", "adapters", "states"])
def test_a_file_or_a_dead_link_where_a_study_has_a_folder_is_refused(
    config: SweepConfig, tmp_path: Path, name: str
) -> None:
    place = config.study_dir / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "nowhere")
    assert f"{place} is a link that leads nowhere" in refusal(config)
    place.unlink()
    place.write_text("mine")
    said = refusal(config)
    assert str(place) in said and place.read_text() == "mine"


def test_a_folder_where_a_study_has_a_file_is_refused(config: SweepConfig) -> None:
    (config.study_dir / "report.html").mkdir(parents=True)
    assert "a study has a file there" in refusal(config)


def test_a_file_that_is_no_database_is_refused_and_left_alone(
    config: SweepConfig, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes, all of them, since the beginning of time")
    said = refusal(dataclasses.replace(config, storage=f"sqlite:///{path}"))
    assert "file is not a database" in said and path.read_text().startswith("my notes")


def test_a_database_of_an_older_version_is_renewed_and_goes_on(
    config: SweepConfig, tmp_path: Path
) -> None:
    run_inline(config)
    with sqlite3.connect(str(sqlite_path(config.storage))) as db:
        db.executescript("""
            insert into study_user_attributes (study_id, key, value_json)
                select study_id, key, value_json from study_system_attributes where key = 'sweep';
            delete from study_system_attributes where key = 'sweep';
            drop view sweep_sample; drop table sweep_samples; drop table sweep_runs;
            alter table sweep_ticks drop column sample_seconds;
            alter table sweep_trials drop column sample_seconds;
            alter table sweep_trials add column samples text not null default '[]';
            update sweep_trials set samples =
                '[{"prompt": "p", "reference": "r", "generated": "g"}]' where number = 3;
        """)
    study, before = stored(config)
    assert len(before) == 8 and before[3].sample_seconds == 0
    store = Store(config.storage)
    written = Sample(prompt="p", reference="r", generated="g")
    assert store.samples(study.uuid, 3) == {before[3].ticks: (written,)}
    assert store.samples(study.uuid, 4) == {}
    store.close()
    assert run_sweep(sweep_config(tmp_path, "n_trials=9", "executor=inline"), Recorder()) == 0
    assert stored(config)[1][:8] == before and len(stored(config)[1]) == 9
