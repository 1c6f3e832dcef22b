"""What must be true of a study that has ended, whatever was killed on the way."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy as sa

STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "diverged": "PRUNED", "infeasible": "PRUNED"}
CLOSE = 1e-12  # Optuna keeps a loss's repr, we keep its bits


def faults(
    results: Path, n_trials: int, study: str = "chaos", url: str | None = None
) -> list[str]:
    """What is wrong with the study in `results`, one line each; empty where nothing is.

    It is the only one in its database, `url` where that is not the folder's own.
    """
    with database(results, url) as db:
        told = optuna_trials(results, study, url)
        checks = (
            _ended_once(db, n_trials),
            _ticks_once(db),
            _agree(db, told),
            _left_over(db, results, study),
            _listed(db, results / study / "trials.csv"),
        )
        return [line for check in checks for line in check]


@contextmanager
def database(results: Path, url: str | None) -> Iterator[sa.Connection]:
    """A connection to the study's database."""
    engine = sa.create_engine(url or f"sqlite:///{results}/sweep.db")
    try:
        with engine.connect() as db:
            yield db
    finally:
        engine.dispose()


def optuna_trials(
    results: Path, study: str = "chaos", url: str | None = None
) -> list[optuna.trial.FrozenTrial]:
    """The trials as Optuna has them."""
    storage = optuna.storages.RDBStorage(url or f"sqlite:///{results}/sweep.db")
    try:
        return optuna.load_study(study_name=study, storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


def outcomes(results: Path, url: str | None = None) -> list[tuple[Any, ...]]:
    """What each trial was and came to: equal for two studies with the same trials."""
    with database(results, url) as db:
        rows = _rows(
            db,
            "select number, params, outcome, reason, eval_loss, first_rung_loss, ticks, examples, "
            "tokens from sweep_trials where outcome != 'stopped' order by number",
        )
        ticks = _rows(
            db, "select number, tick, eval_loss, examples, tokens from sweep_ticks order by 1, 2"
        )
        curves = _rows(db, "select number, tick, points from sweep_curves order by attempt")
    latest = {(number, tick): json.loads(points) for number, tick, points in curves}
    steps = [(place, [p[:-1] for p in points]) for place, points in sorted(latest.items())]
    plain = [tuple(row) for row in (*rows, *ticks)]
    return [*plain, *steps]  # without each step's speed, which is the machine's


def _rows(db: sa.Connection, query: str) -> Sequence[sa.Row[Any]]:
    return db.execute(sa.text(query)).all()


def _ended_once(db: sa.Connection, n_trials: int) -> Iterator[str]:
    rows = _rows(db, "select number, outcome from sweep_trials order by number")
    ended = [row.number for row in rows if row.outcome in STATES]
    if ended != list(range(n_trials)):
        yield f"ended: {ended}, not each of {n_trials} once"
    for row in rows:
        if row.outcome not in (*STATES, "stopped"):
            yield f"trial {row.number} is {row.outcome}"


def _ticks_once(db: sa.Connection) -> Iterator[str]:
    rows = _rows(db, "select number, tick from sweep_ticks")
    by_trial: dict[int, Counter[int]] = {}
    for row in rows:
        by_trial.setdefault(row.number, Counter())[row.tick] += 1
    query = "select number, ticks from sweep_trials where outcome != 'stopped'"
    for number, ticks in _rows(db, query):
        found = by_trial.get(number, Counter())
        if found != Counter(range(1, ticks + 1)):
            yield f"trial {number} ended at tick {ticks} and has {dict(found)}"


def _agree(db: sa.Connection, told: list[optuna.trial.FrozenTrial]) -> Iterator[str]:
    """Our tables and Optuna's."""
    query = "select number, outcome, eval_loss from sweep_trials where outcome != 'stopped'"
    rows = {row.number: row for row in _rows(db, query)}
    if sorted(rows) != [trial.number for trial in told]:
        yield f"we have {sorted(rows)}, Optuna has {[t.number for t in told]}"
    ticks: dict[int, dict[int, float]] = {}
    for number, tick, loss in _rows(db, "select number, tick, eval_loss from sweep_ticks"):
        ticks.setdefault(number, {})[tick] = loss
    for trial in told:
        row = rows[trial.number]
        if trial.state.name != STATES.get(row.outcome):
            yield f"trial {trial.number}: {row.outcome} here, {trial.state.name} in Optuna"
        if trial.values and abs(trial.values[0] - row.eval_loss) > CLOSE:
            yield f"trial {trial.number}: {row.eval_loss} here, {trial.values[0]} in Optuna"
        if trial.intermediate_values != ticks.get(trial.number, {}):
            here, there = ticks.get(trial.number), trial.intermediate_values
            yield f"trial {trial.number}: ticks {here} here, {there} in Optuna"


def _left_over(db: sa.Connection, results: Path, study: str) -> Iterator[str]:
    """A living lock, a file written aside, the state of a trial that has ended."""
    for (pid,) in _rows(db, "select pid from sweep_locks"):
        if psutil.pid_exists(pid):  # a dead one's hinders nobody
            yield f"a lock of process {pid} is left"
    for path in results.rglob("*"):
        if path.name.startswith(".") or (path.is_file() and "state" in str(path.parent.name)):
            yield f"left over: {path.relative_to(results)}"


def _listed(db: sa.Connection, path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    query = "select number, outcome from sweep_trials where outcome != 'stopped' order by number"
    known = [(str(number), outcome) for number, outcome in _rows(db, query)]
    listed = sorted(((row["number"], row["outcome"]) for row in rows), key=lambda r: int(r[0]))
    if listed != known:
        yield f"{path.name} has {listed}"
