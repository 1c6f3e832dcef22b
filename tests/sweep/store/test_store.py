"""Our tables: what is written comes back, twice written is once there, and SQL alone reads it."""

from __future__ import annotations

import dataclasses
import math
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sweeping import Recorder, prepare

from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.space import overlay
from sweep.store import NothingThere, Store, StudyRecord, finite, schema
from sweep.store.database import shown, sqlite_path
from trials.contract import (
    CurvePoint,
    InputError,
    Outcome,
    Report,
    Sample,
    Setup,
    TrialConfig,
    TrialResult,
)

UUID = "0123"
POINT = CurvePoint(
    examples=8, train_loss=1.5, learning_rate=1e-4, grad_norm=0.1, tokens_per_s=900.0
)


@pytest.fixture
def setup(config: SweepConfig) -> Setup:
    return prepare(config, SweepDriver(config, Recorder()).connect("w0"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'sweep.db'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url, create=True)
    yield store
    store.close()


@pytest.fixture
def trial(config: SweepConfig, setup: Setup) -> TrialConfig:
    params = {"lora.r": 8, "train.learning_rate": 1e-4}
    return overlay(config, setup, params, number=3, attempt=0)


def report(tick: int, loss: float, attempt: int = 0) -> Report:
    return Report(trial=3, attempt=attempt, tick=tick, eval_loss=loss, examples=240 * tick,
                  tokens=1000 * tick, seconds=2.0 * tick, eval_seconds=0.1 * tick,
                  memory_bytes=2**33, utilisation=0.9, eval_accuracy=0.5, worker="w0", slot=2,
                  history=(POINT,))  # fmt: skip


def record(**changes: object) -> StudyRecord:
    values: dict[str, object] = dict(
        study="test", uuid=UUID, n_trials=8, ticks=5, first_rung=2, baseline_loss=1.2,
        baseline_accuracy=0.3, model="demo", data="demo", device="cpu", dimensions=("lora.r",),
        results_dir="/results", started_at=100.0, seconds=0.0, versions={"python": "3"},
    )  # fmt: skip
    return StudyRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_a_study_comes_back_and_keeps_its_beginning(store: Store, setup: Setup) -> None:
    store.open_study(record(), setup)
    assert store.studies() == [record()]
    store.spent(UUID, 60.0)
    store.open_study(record(n_trials=20, started_at=999.0, first_rung=4), setup)
    assert store.studies() == [record(n_trials=20, seconds=60.0)]
    assert store.setup(UUID) == setup


def test_a_trial_comes_back(store: Store, trial: TrialConfig, setup: Setup) -> None:
    store.start(UUID, trial, {"lora.r": 8}, "w0", setup)
    for tick, loss in enumerate((0.9, 0.8), start=1):
        store.tick(UUID, report(tick, loss), first_rung=2)
    found = store.trials(UUID)[0]
    assert (found.outcome, found.ticks, found.losses) == ("running", 2, (0.9, 0.8))
    assert (found.eval_loss, found.first_rung_loss, found.memory_bytes) == (0.8, 0.8, 2**33)
    sample = Sample(prompt="p", reference="r", generated="g")
    result = TrialResult(trial=3, attempt=0, outcome=Outcome.PRUNED, eval_loss=0.8, ticks=2,
                         examples=480, tokens=2000, seconds=4.0, trainable_parameters=7,
                         reason="not good", samples=(sample,), worker="w0")  # fmt: skip
    store.finish(UUID, result, first_rung_loss=0.8)
    found = store.trials(UUID, 3)[0]
    assert (found.outcome, found.reason, found.trainable_parameters) == ("pruned", "not good", 7)
    assert found.params == {"lora.r": 8} and found.finished_at and found.utilisation == 0.9
    assert store.trial_config(UUID, 3) == trial
    assert store.samples(UUID, 3) == {2: (sample,)}


def test_samples_stand_next_to_the_untouched_base(
    store: Store, trial: TrialConfig, setup: Setup
) -> None:
    base, early, late, last = (
        Sample(prompt="<b>p</b>", reference="r\u202e", generated=text)
        for text in ("nothing", "e", "l", "\x00\U0001f600' --")
    )
    store.open_study(record(), dataclasses.replace(setup, baseline_samples=(base,)))
    store.start(UUID, trial, {}, "w0", setup)
    first = dataclasses.replace(report(1, 0.9), samples=(early,), sample_seconds=0.5)
    store.tick(UUID, first, first_rung=1)
    store.start(UUID, dataclasses.replace(trial, attempt=1), {}, "w0", setup)
    store.tick(UUID, dataclasses.replace(first, attempt=1, samples=(late,)), first_rung=1)
    result = TrialResult(trial=3, attempt=1, outcome=Outcome.COMPLETE, eval_loss=0.9, ticks=5,
                         samples=(last,), sample_seconds=0.75)  # fmt: skip
    store.finish(UUID, result, first_rung_loss=0.9)
    assert store.samples(UUID, 3) == {1: (late,), 5: (last,)}
    assert store.samples(UUID, 4) == {}
    assert store.trials(UUID, 3)[0].sample_seconds == 0.75
    store.open_study(record(), dataclasses.replace(setup, baseline_samples=()))  # samples=0 now
    assert store.baseline_samples(UUID) == (base,)
    with store.engine.connect() as db:
        shown = db.execute(sa.text(
            "select tick, prompt, reference, base, generated from sweep_sample where attempt = 1"
        )).all()  # fmt: skip
    assert shown[0] == (1, "<b>p</b>", "r\u202e", "nothing", "l") and shown[1][0] == 5


def test_writing_twice_is_writing_once(store: Store, trial: TrialConfig, setup: Setup) -> None:
    result = TrialResult(trial=3, attempt=0, outcome=Outcome.COMPLETE, eval_loss=0.9, ticks=1)
    for _ in range(2):
        store.start(UUID, trial, {}, "w0", setup)
        store.tick(UUID, report(1, 0.9), first_rung=1)
        store.finish(UUID, result, first_rung_loss=0.9)
    assert len(store.trials(UUID)) == 1 and store.trials(UUID)[0].losses == (0.9,)
    assert store.curves(UUID, 3) == [POINT]


def test_the_latest_attempt_stands_with_the_ticks_of_all(
    store: Store, trial: TrialConfig, setup: Setup
) -> None:
    store.start(UUID, trial, {}, "w0", setup)
    store.tick(UUID, report(1, 0.9), first_rung=1)
    store.start(UUID, dataclasses.replace(trial, attempt=1), {}, "w1", setup)
    store.tick(UUID, report(2, 0.8, attempt=1), first_rung=1)
    found = store.trials(UUID)
    assert [(f.attempt, f.worker, f.losses) for f in found] == [(1, "w1", (0.9, 0.8))]
    assert store.curves(UUID, 3) == [POINT, POINT]
    store.leave(UUID, "interrupted")
    assert store.trials(UUID)[0].outcome == "stopped"


def test_curves_after_the_last_tick_and_not_finite(
    store: Store, trial: TrialConfig, setup: Setup
) -> None:
    bad = CurvePoint(
        examples=16, train_loss=math.nan, learning_rate=1e-4, grad_norm=math.inf, tokens_per_s=1.0
    )
    store.start(UUID, trial, {}, "w0", setup)
    store.tick(UUID, report(1, math.nan), first_rung=1)
    result = TrialResult(trial=3, attempt=0, outcome=Outcome.DIVERGED, eval_loss=math.nan,
                         ticks=1, history=(bad,))  # fmt: skip
    store.finish(UUID, result, first_rung_loss=math.nan)
    points = store.curves(UUID, 3)
    assert points[0] == POINT and math.isnan(points[1].train_loss)
    assert points[1].grad_norm == math.inf
    found = store.trials(UUID)[0]
    assert found.eval_loss is None and found.first_rung_loss is None and math.isnan(found.losses[0])


def test_plain_sql_reads_a_curve(
    store: Store, url: str, trial: TrialConfig, setup: Setup
) -> None:
    store.start(UUID, trial, {}, "w0", setup)
    store.tick(UUID, report(1, 0.9), first_rung=1)
    db = sqlite3.connect(str(sqlite_path(url)))
    try:
        rows = db.execute("select tick, examples, train_loss, grad_norm from sweep_curve")
        assert rows.fetchall() == [(1, 8, 1.5, 0.1)]
    finally:
        db.close()


def test_a_reader_sees_and_hinders_nothing(
    store: Store, url: str, trial: TrialConfig, setup: Setup
) -> None:
    reader = Store(url)
    store.open_study(record(), setup)
    with reader.engine.connect() as db:
        db.execute(sa.select(schema.studies)).fetchone()  # a reader in the middle of a query
        store.start(UUID, trial, {}, "w0", setup)
    assert [found.number for found in reader.trials(UUID)] == [3]
    reader.close()


def test_a_writer_waits_for_another(store: Store, url: str, setup: Setup) -> None:
    other = sqlite3.connect(str(sqlite_path(url)), check_same_thread=False, isolation_level=None)
    other.execute("begin immediate")
    threading.Timer(0.5, lambda: other.execute("commit")).start()
    began = time.monotonic()
    store.open_study(record(), setup)
    assert time.monotonic() - began > 0.3
    time.sleep(0.3)
    other.close()


def test_a_closed_database_is_one_file(url: str, tmp_path: Path) -> None:
    Store(url, create=True).close()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.db"]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NothingThere, match="no database"):
        Store(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(tmp_path / "other.db").close()
    with pytest.raises(NothingThere, match="no sweeps"):
        Store(f"sqlite:///{tmp_path / 'other.db'}")


def test_a_newer_version_is_refused(url: str) -> None:
    Store(url, create=True).close()
    db = sqlite3.connect(str(sqlite_path(url)))
    db.execute("insert into sweep_schema values (99)")
    db.commit()
    db.close()
    with pytest.raises(InputError, match="newer sweep.*version 99.*pip install --upgrade"):
        Store(url)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("certainly not a database, but long enough to be one")
    with pytest.raises(InputError, match="file is not a database"):
        Store(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(InputError, match="is not a database URL"):
        Store("nonsense")


def test_a_database_that_cannot_be_reached_is_said_without_a_traceback(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some drivers call that an error of the interface, not of the database."""

    def unreachable(engine: sa.Engine) -> None:
        raise sa.exc.InterfaceError("connect", {}, OSError("no route to host"))

    monkeypatch.setattr(schema.metadata, "create_all", unreachable)
    with pytest.raises(InputError, match="cannot be used: no route to host"):
        Store(url, create=True)


def test_a_password_is_never_shown() -> None:
    assert "secret" not in shown("postgresql://user:secret@host/db")


def test_only_finite_numbers_reach_the_database() -> None:
    assert finite(math.nan) is finite(math.inf) is finite(None) is None and finite(0.0) == 0.0


def test_two_thousand_trials_are_read_quickly(store: Store) -> None:
    with store.engine.begin() as db:
        base = {
            "study_uuid": UUID, "attempt": 0, "outcome": "complete", "params": '{"lora.r": 8}',
            "worker": "w0", "started_at": 1.0, "device": "cpu", "versions": "{}",
            "config": "{}",
        }  # fmt: skip
        db.execute(schema.trials.insert(), [{**base, "number": n} for n in range(2000)])
        tick = dataclasses.asdict(report(1, 0.9))
        names = {c.name for c in schema.ticks.c} & set(tick)
        rows = [
            {**{name: tick[name] for name in names}, "study_uuid": UUID, "number": n,
             "attempt": 0, "tick": k, "reported_at": 1.0}
            for n in range(2000) for k in range(1, 6)
        ]  # fmt: skip
        db.execute(schema.ticks.insert(), rows)
    began = time.monotonic()
    found = store.trials(UUID)
    assert len(found) == 2000 and len(found[7].losses) == 5
    assert time.monotonic() - began < 2.0


def test_reading_needs_neither_optuna_nor_torch() -> None:
    code = "import sys, sweep.store; print([name in sys.modules for name in sys.argv[1:]])"
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", code, "optuna", "torch"],
        capture_output=True, check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert found.stdout.split() == [b"[False,", b"False]"]
