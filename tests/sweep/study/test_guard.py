"""The rest of the world fails: the database is locked, full, gone or somebody else's."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from sweeping import Recorder, in_optuna, ready, run_inline, stored, sweep_config

from sweep.config import SweepConfig
from sweep.ending import COMPLETE, FAILED
from sweep.observers import Observers
from sweep.observers.files import Files
from sweep.run import run_sweep
from sweep.store import database
from sweep.store.database import sqlite_path
from sweep.study import guard
from sweep.study.guard import StudyLost
from trials.contract import InputError, Report, TrialConfig, TrialResult, Verdict

HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("begin exclusive")
print("held", flush=True)
sys.stdin.readline()
db.execute("rollback")
"""
FULL, READ_ONLY = "database or disk is full", "attempt to write a readonly database"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits as a sweep does, only shorter."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(guard, "PAUSE_S", 0.02)
    monkeypatch.setattr(guard, "RECENT_S", 0.0)


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return sweep_config(tmp_path, "executor=inline")


class Meddler(Recorder):
    """An observer that does something to the world after so many reports, or at the end."""

    def __init__(self, act: Callable[[], object], after: int = 7) -> None:
        super().__init__()
        self._act, self._after = act, after

    def reported(self, report: Report, verdict: Verdict) -> None:
        super().reported(report, verdict)
        if len(self.reports) == self._after:
            self._act()

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        super().finished(trial, result)
        if len(self.results) == -self._after:
            self._act()


@contextmanager
def locked(path: Path | None) -> Iterator[subprocess.Popen[str]]:
    """Another process is writing and does not come to an end; a line on its input ends it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        yield holder


def let_go(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin
    holder.stdin.write("\n")
    holder.stdin.flush()


def test_a_locked_database_is_waited_for_with_a_word(config: SweepConfig) -> None:
    class LetsGo(Recorder):
        def note(self, text: str) -> None:
            super().note(text)
            if "locked" in text:
                let_go(holder)

    observer = LetsGo()
    driver, link = ready(config, observer)
    trial = link.next_trial()
    assert isinstance(trial, TrialConfig)
    told = Report(trial=trial.number, attempt=0, tick=1, eval_loss=1.0, examples=240, tokens=1,
                  seconds=0.1)  # fmt: skip
    with locked(sqlite_path(config.storage)) as holder:
        assert not link.report(told).stop
    with locked(sqlite_path(config.storage)) as holder:
        assert isinstance(link.next_trial(), TrialConfig)
    driver.close()
    waited, again = observer.notes[:2]
    assert "database is locked" in waited and "Trying again" in waited and "goes on" in again
    assert [trial.number for trial in in_optuna(config)] == [0, 1]
    assert in_optuna(config)[0].intermediate_values == {1: 1.0}


def test_a_database_locked_at_the_start_is_waited_for(
    config: SweepConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(config)[0].close()
    with locked(sqlite_path(config.storage)) as holder:
        waits = iter([lambda: let_go(holder)])
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda s: next(waits, lambda: sleep(s))())
        assert run_sweep(config, Recorder()) == COMPLETE
    assert "database is locked" in capsys.readouterr().err


def test_a_database_locked_for_good_ends_the_run_and_the_next_one_goes_on(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.driver.WAIT_S", 0.3)
    monkeypatch.setattr("sweep.driver.LAST_WAIT_S", 0.1)
    holding: list[Any] = []

    def lock_it() -> None:
        holding.append(locked(sqlite_path(config.storage)))
        holding.append(holding[0].__enter__())

    observer = Meddler(lock_it)
    assert run_sweep(config, observer) == FAILED
    assert observer.closed_with and "database is locked" in observer.closed_with.reason
    assert "type the same command" in observer.closed_with.reason
    let_go(holding[1])
    holding[0].__exit__(None, None, None)
    die(config)
    assert run_sweep(config, Recorder()) == COMPLETE
    same_as_undisturbed(config)


class Faulty(sqlite3.Connection):
    """A connection to a file whose disk says no."""

    saying: str | None = None

    def cursor(self, *args: Any, **kwargs: Any) -> sqlite3.Cursor:
        if Faulty.saying:
            raise sqlite3.OperationalError(Faulty.saying)
        return super().cursor(*args, **kwargs)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[Faulty]:
    """The disk of all databases: set `saying` to what it refuses with."""
    options = {"timeout": 0.05, "factory": Faulty}
    for module in ("sweep.store.database", "sweep.study"):
        monkeypatch.setattr(f"{module}.engine_options", lambda url: {"connect_args": options})
    monkeypatch.setattr(Faulty, "saying", None)
    return Faulty


@pytest.mark.parametrize("saying", [FULL, "disk I/O error", "unable to open database file"])
def test_a_disk_that_recovers_costs_nothing(
    saying: str, config: SweepConfig, disk: type[Faulty]
) -> None:
    class Cleans(Meddler):
        def note(self, text: str) -> None:
            super().note(text)
            disk.saying = None

    observer = Cleans(lambda: setattr(disk, "saying", saying))
    assert run_sweep(config, observer) == COMPLETE
    assert saying in observer.notes[0] and len(observer.notes) == 2
    same_as_undisturbed(config)


@pytest.mark.parametrize("saying", [FULL, READ_ONLY])
@pytest.mark.parametrize("after", [7, -2])
def test_a_disk_that_stays_so_ends_the_run_and_the_next_one_goes_on(
    after: int, saying: str, config: SweepConfig, disk: type[Faulty],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sweep.driver.WAIT_S", 0.1)
    monkeypatch.setattr("sweep.driver.LAST_WAIT_S", 0.0)
    observer = Meddler(lambda: setattr(disk, "saying", saying), after)
    assert run_sweep(config, observer) == FAILED
    assert observer.closed_with and saying in observer.closed_with.reason
    disk.saying = None
    die(config)
    assert run_sweep(config, Recorder()) == COMPLETE
    same_as_undisturbed(config)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replace(folder: Path) -> None:
    shutil.copy(folder / "sweep.db", folder / "copy.db")
    (folder / "copy.db").replace(folder / "sweep.db")


@pytest.mark.parametrize("after", [7, -8], ids=["within", "after the last trial"])
@pytest.mark.parametrize("act", [remove, move, replace])
def test_a_database_that_is_not_there_any_more_ends_the_run(
    act: Callable[[Path], None], after: int, config: SweepConfig
) -> None:
    observer = Meddler(lambda: act(config.results_dir), after)
    assert run_sweep(config, observer) == FAILED
    assert observer.closed_with and not observer.closed_with.complete
    assert "was deleted, moved or replaced" in observer.closed_with.reason
    assert run_sweep(config, Recorder()) == COMPLETE
    assert len(in_optuna(config)) == 8


def test_a_results_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    """The database lies elsewhere."""
    config = sweep_config(tmp_path, "executor=inline", f"storage=sqlite:///{tmp_path}/db/sweep.db")
    notes: list[str] = []
    observer = Observers([Files(), Meddler(lambda: remove(config.results_dir))], note=notes.append)
    assert run_sweep(config, observer) == COMPLETE
    [note] = notes
    assert "Files failed for now" in note and "No such file or directory" in note
    assert (config.study_dir / "trials.csv").read_text().count("\n") == 9
    assert (config.study_dir / "trials" / "7.json").is_file()
    same_as_undisturbed(config)


def test_a_driver_that_was_overtaken_writes_nothing_more(config: SweepConfig) -> None:
    observer = Meddler(lambda: overtake(config))
    assert run_sweep(config, observer) == FAILED
    assert observer.closed_with
    assert "process 7 on elsewhere took it over" in observer.closed_with.reason
    assert len(observer.reports) == 7
    assert sum(record.ticks for record in stored(config)[1]) == 7
    assert stored(config)[1][-1].outcome == "running"  # the other's, by now
    with closing(sqlite3.connect(str(sqlite_path(config.storage)))) as db:
        assert db.execute("select host from sweep_locks").fetchall() == [("elsewhere",)]


def test_who_was_asleep_looks_before_it_writes(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "RECENT_S", 1.0)
    driver, link = ready(config)
    now = time.time()
    overtake(config)
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    with pytest.raises(StudyLost, match="elsewhere"):
        link.next_trial()
    driver.close()


def overtake(config: SweepConfig) -> None:
    """Another host's driver takes the study."""
    with closing(sqlite3.connect(str(sqlite_path(config.storage)))) as db:
        db.execute("update sweep_locks set token = 'other', host = 'elsewhere', pid = 7")
        db.commit()


def test_a_clock_set_back_leaves_the_sweep_and_its_lock_as_they_were(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, late = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() - late[0])

    def set_back() -> None:
        late[0] = 7200.0
        with pytest.raises(InputError, match="is being run by process"):
            run_sweep(config, Recorder())

    assert run_sweep(config, Meddler(set_back)) == COMPLETE
    study, records = stored(config)
    assert study.seconds >= 0 and all(record.seconds >= 0 for record in records)
    same_as_undisturbed(config)


@pytest.mark.parametrize("boot", [0.0, 3600.0])
def test_a_process_is_known_by_its_start_whatever_the_clock_says(
    boot: float, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, _ = ready(config)
    times = psutil.boot_time() + boot
    created = psutil.Process().create_time() + boot  # both follow the clock
    monkeypatch.setattr(psutil, "boot_time", lambda: times)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: created)
    with pytest.raises(InputError, match="is being run by process"):
        run_sweep(config, Recorder())
    driver.close()


def test_a_sign_of_life_from_the_future_holds_nothing(config: SweepConfig) -> None:
    ready(config)[0].close()
    with closing(sqlite3.connect(str(sqlite_path(config.storage)))) as db:
        row = ("test", "token", "elsewhere", 1, 0, 0, time.time() + 7200)
        db.execute("insert into sweep_locks values (?, ?, ?, ?, ?, ?, ?)", row)
        db.commit()
    ready(config)[0].close()


class Bad(Exception):
    """What a driver raises."""


@pytest.mark.parametrize(
    "kind, saying",
    [
        (sa.exc.ProgrammingError, 'relation "sweep_ticks" does not exist\nLINE 1: UPDATE sweep_'),
        (sa.exc.InternalError, "cannot execute UPDATE in a read-only transaction"),
        (sa.exc.OperationalError, 'FATAL: database "sweeps" does not exist'),
        (sa.exc.OperationalError, "FATAL: password authentication failed for user"),
        (sa.exc.OperationalError, "(1045, \"Access denied for user 'me'@'host'\")"),
    ],
)
def test_what_no_waiting_mends_ends_the_run_at_once_and_in_order(
    kind: type[sa.exc.DBAPIError], saying: str, config: SweepConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: Any, **__: Any) -> None:
        raise kind("update", {}, Bad(saying))

    observer = Meddler(lambda: monkeypatch.setattr("sweep.store.upsert", refuse))
    assert run_sweep(config, observer) == FAILED
    assert observer.notes == [] and observer.closed_with
    assert saying.partition("\n")[0] in observer.closed_with.reason
    assert "type the same command" in observer.closed_with.reason
    assert "LINE" not in observer.closed_with.reason
    monkeypatch.undo()
    die(config)
    assert run_sweep(config, Recorder()) == COMPLETE
    same_as_undisturbed(config)


@pytest.mark.parametrize(
    "saying",
    [
        "server closed the connection unexpectedly",
        "FATAL: the database system is starting up",
        "failed to resolve host: Name or service not known",  # it was known a moment ago
        "(2013, 'Lost connection to MySQL server during query')",
    ],
)
def test_a_server_that_comes_back_costs_nothing(
    saying: str, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise sa.exc.OperationalError("update", {}, Bad(saying))

    class ComesBack(Meddler):
        def note(self, text: str) -> None:
            super().note(text)
            monkeypatch.setattr("sweep.store.upsert", database.upsert)

    observer = ComesBack(lambda: monkeypatch.setattr("sweep.store.upsert", refuse))
    assert run_sweep(config, observer) == COMPLETE
    assert saying in observer.notes[0] and len(observer.notes) == 2
    same_as_undisturbed(config)


@pytest.mark.parametrize(
    "saying, way",
    [
        ('connection failed: FATAL: password authentication failed for user "me"', "%40"),
        ("(1049, \"Unknown database 'sweeps'\")", "Make it there"),
        ("permission denied for schema public", "Have the owner of the database grant it"),
        ("failed to resolve host 'nohost': [Errno -2] Name or service not known", ""),
    ],
)
def test_what_no_waiting_mends_is_refused_before_anything_starts(
    saying: str, way: str, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(config)[0].close()

    def refuse(*_: Any, **__: Any) -> None:
        raise sa.exc.OperationalError("connect", {}, Bad(saying))

    monkeypatch.setattr("sweep.store.older.renew", refuse)
    with pytest.raises(InputError) as told:
        run_sweep(config, Recorder())
    assert saying in str(told.value) and way in str(told.value)
    assert not isinstance(told.value, StudyLost)


def die(config: SweepConfig) -> None:
    """What the end of the process does to a lock that could not be given back."""
    with closing(sqlite3.connect(str(sqlite_path(config.storage)))) as db:
        db.execute("delete from sweep_locks")
        db.commit()


def same_as_undisturbed(config: SweepConfig) -> None:
    """The study has the trials that it would have had."""
    calm = sweep_config(config.results_dir.parent / "calm")
    run_inline(calm)
    for mine, theirs in zip(stored(config)[1], stored(calm)[1], strict=True):
        for name in ("number", "params", "outcome", "reason", "losses", "eval_loss", "examples"):
            assert getattr(mine, name) == getattr(theirs, name)
    assert [t.values for t in in_optuna(config)] == [t.values for t in in_optuna(calm)]
