"""Our tables beside Optuna's, in the same database: what Optuna has no place for.

Reading needs neither Optuna nor torch, and works while a sweep writes. Every write is repeatable.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from sweep.processes import lives
from sweep.store import older, samples, schema
from sweep.store.database import (
    connect,
    hurry,
    settle,
    shown,
    sqlite_path,
    storable,
    unusable,
    upsert,
)
from sweep.store.records import StudyRecord as StudyRecord
from sweep.store.records import TrialRecord as TrialRecord
from sweep.store.records import finite, study_record, trial_record
from sweep.store.records import study_of as study_of
from sweep.store.runs import RunRecord as RunRecord
from sweep.store.runs import read_runs, write_run
from trials.contract import (
    CurvePoint,
    InputError,
    Outcome,
    Report,
    Sample,
    Setup,
    TrialConfig,
    TrialResult,
    from_json,
    to_json,
)

RUNNING = "running"
ALIVE_S = 60.0  # a driver writes its seconds three times in that; a silent one may be dead


class NothingThere(InputError):
    """There is no such database, or no sweep in it."""


class Store:
    """The tables of one database. `create` makes those missing; without it nothing is written.

    What the database of an older version lacks is added in any case, see `sweep.store.older`.
    Raises `InputError` where there is no such database, or one of a newer version than this.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        path = sqlite_path(url)
        if path is not None and not create and not path.is_file():
            raise NothingThere(f"There is no database {path}. A sweep makes it: python -m sweep.")
        self._writes = create
        self.engine = connect(url)
        try:
            if create:
                hurry(self.engine)
            self._check_version(url, create)
        except BaseException:
            self.engine.dispose()
            raise

    def _check_version(self, url: str, create: bool) -> None:
        try:
            if create:
                schema.metadata.create_all(self.engine)
            with self.engine.begin() as db:
                version = sa.select(sa.func.max(schema.schema.c.version))
                known = sa.inspect(db).has_table(schema.schema.name)
                found = db.scalar(version) if known else None
                if found is not None and found <= schema.VERSION:
                    older.renew(db)
                foreign = schema.foreign(db)
                if found is None and create:
                    db.execute(schema.schema.insert().values(version=schema.VERSION))
        except (sa.exc.DBAPIError, TypeError, RuntimeError) as error:  # or a driver lacks something
            raise unusable(url, error) from error
        if foreign and (found is None or found <= schema.VERSION):
            raise InputError(
                f"{shown(url)} has a table {foreign!r} that is neither sweep's nor Optuna's. "
                "Type storage=<another database>."
            )
        if found is None and not create:
            raise NothingThere(f"There are no sweeps in {shown(url)}.")
        if found is not None and found > schema.VERSION:
            raise InputError(
                f"{shown(url)} was written by a newer sweep (tables of version {found}, this one "
                f"knows {schema.VERSION}). Upgrade: pip install --upgrade qlora-sweep"
            )

    def close(self) -> None:
        """Gives the connections back."""
        if self._writes:
            settle(self.engine)
        self.engine.dispose()

    # --- writing: the driver's process alone -----------------------------------------------------

    def open_study(self, record: StudyRecord, setup: Setup) -> None:
        """Writes or renews a study's row; its start, seconds and first rung stay what they were."""
        row = {
            "study": record.study, "n_trials": record.n_trials, "ticks": record.ticks,
            "baseline_loss": finite(record.baseline_loss), "model": record.model,
            "baseline_accuracy": record.baseline_accuracy, "data": record.data,
            "device": record.device,
            "dimensions": to_json(record.dimensions), "results_dir": record.results_dir,
            "versions": to_json(dict(record.versions)), "setup": to_json(setup),
        }  # fmt: skip
        first: dict[str, Any] = {
            "first_rung": record.first_rung, "started_at": record.started_at,
            "seconds": record.seconds,
        }  # fmt: skip
        kept = row if setup.baseline_samples else first  # a run without samples leaves them
        kept["baseline_samples"] = to_json(setup.baseline_samples)
        with self.engine.begin() as db:
            upsert(db, schema.studies, {"study_uuid": record.uuid}, row, first)

    def spent(self, uuid: str, seconds: float, run: RunRecord | None = None) -> None:
        """Sets the wall-clock seconds that a study has used over all runs, and this run's part."""
        with self.engine.begin() as db:
            upsert(db, schema.studies, {"study_uuid": uuid}, {"seconds": seconds})
            if run is not None:
                write_run(db, uuid, run)

    def start(
        self, uuid: str, trial: TrialConfig, params: Mapping[str, Any], worker: str, setup: Setup
    ) -> None:
        """A trial, or its next attempt, goes to a worker."""
        row = {
            "outcome": RUNNING, "params": to_json(dict(params)), "worker": worker,
            "started_at": time.time(), "device": setup.device.name,
            "versions": to_json(setup.device.versions), "config": to_json(trial),
        }  # fmt: skip
        table = schema.trials
        earlier = [table.c.study_uuid == uuid, table.c.number == trial.number,
                   table.c.attempt < trial.attempt]  # fmt: skip
        with self.engine.begin() as db:
            if trial.attempt > 0:
                _stop_running(db, earlier, "continued by the next attempt")
            upsert(db, table, _trial_key(uuid, trial.number, trial.attempt), row)

    def leave(self, uuid: str, reason: str) -> None:
        """What still runs when the driver leaves is stopped, to be continued."""
        with self.engine.begin() as db:
            _stop_running(db, [schema.trials.c.study_uuid == uuid], reason)

    def tick(self, uuid: str, report: Report, *, first_rung: int) -> None:
        """A trial reached a tick."""
        key = _trial_key(uuid, report.trial, report.attempt)
        shared = {
            "eval_loss": finite(report.eval_loss), "eval_accuracy": report.eval_accuracy,
            "examples": report.examples, "tokens": report.tokens, "seconds": report.seconds,
            "eval_seconds": report.eval_seconds, "sample_seconds": report.sample_seconds,
            "memory_bytes": report.memory_bytes, "utilisation": report.utilisation,
        }  # fmt: skip
        now = {**shared, "worker": report.worker, "slot": report.slot, "reported_at": time.time()}
        trial = {**shared, "ticks": report.tick}
        if report.tick == first_rung:
            trial["first_rung_loss"] = finite(report.eval_loss)
        with self.engine.begin() as db:
            upsert(db, schema.ticks, {**key, "tick": report.tick}, now)
            upsert(db, schema.trials, key, trial)
            self._curve(db, key, report.tick, report.history)
            samples.keep(db, key, report.tick, report.samples)

    def finish(self, uuid: str, result: TrialResult, *, first_rung_loss: float | None) -> None:
        """A trial ended, or was stopped to be continued."""
        key = _trial_key(uuid, result.trial, result.attempt)
        row = {
            "outcome": result.outcome.value, "reason": result.reason, "ticks": result.ticks,
            "eval_loss": finite(result.eval_loss), "eval_accuracy": result.eval_accuracy,
            "examples": result.examples, "tokens": result.tokens, "seconds": result.seconds,
            "eval_seconds": result.eval_seconds, "sample_seconds": result.sample_seconds,
            "memory_bytes": result.memory_bytes, "adapter": result.adapter,
            "trainable_parameters": result.trainable_parameters, "finished_at": time.time(),
            "first_rung_loss": finite(first_rung_loss),
        }  # fmt: skip
        with self.engine.begin() as db:
            upsert(db, schema.trials, key, row)
            self._curve(db, key, result.ticks + 1, result.history)
            samples.keep(db, key, result.ticks, result.samples)

    @staticmethod
    def _curve(
        db: sa.Connection, key: Mapping[str, Any], tick: int, points: Sequence[CurvePoint]
    ) -> None:
        if points:
            rows = to_json([_point(point) for point in points])
            upsert(db, schema.curves, {**key, "tick": tick}, {"points": rows})

    # --- reading: anyone, at any time ------------------------------------------------------------

    def studies(self) -> list[StudyRecord]:
        """All studies, the oldest first."""
        with self.engine.connect() as db:
            rows = db.execute(sa.select(schema.studies).order_by(schema.studies.c.started_at))
            return [study_record(row) for row in rows.mappings()]

    def runs(self, uuid: str) -> list[RunRecord]:
        """A study's runs, the first one first; none of the time before they were kept."""
        with self.engine.connect() as db:
            return read_runs(db, uuid)

    def setup(self, uuid: str) -> Setup:
        """What the study's worker found when it last prepared. Raises ValueError on an old form."""
        table = schema.studies
        with self.engine.connect() as db:
            text = db.scalar(sa.select(table.c.setup).where(table.c.study_uuid == uuid))
        return from_json(Setup, str(text))

    def beaten_at(self, study: str) -> float | None:
        """When the driver at work on the study last wrote its seconds; None where none is."""
        table = schema.locks
        with self.engine.connect() as db:
            row = db.execute(sa.select(table).where(table.c.study == study)).first()
        if row is None or time.time() - row.alive_at >= ALIVE_S:
            return None
        gone = lives(row.host, row.pid, row.process_started) is False
        return None if gone else float(row.alive_at)

    def trials(self, uuid: str, number: int | None = None) -> list[TrialRecord]:
        """The study's trials (or one) by number: the latest attempt, the ticks of all attempts."""
        rest = [c for c in schema.trials.c if c.name not in ("config", "versions")]
        ticks = schema.ticks.c
        chosen = sa.select(ticks.number, ticks.tick, ticks.eval_loss)
        with self.engine.connect() as db:
            rows = db.execute(_of(sa.select(*rest), schema.trials, uuid, number)).mappings().all()
            losses = db.execute(_of(chosen, schema.ticks, uuid, number)).all()
        by_trial: dict[int, dict[int, float]] = {}
        for number, tick, loss in losses:
            by_trial.setdefault(number, {})[tick] = math.nan if loss is None else loss
        latest = {row["number"]: row for row in rows}
        return [trial_record(row, by_trial.get(number, {})) for number, row in latest.items()]

    def curves(self, uuid: str, number: int) -> list[CurvePoint]:
        """A trial's training curve, one point for each optimizer step."""
        table = schema.curves
        with self.engine.connect() as db:
            chosen = sa.select(table.c.tick, table.c.points)
            rows = db.execute(_of(chosen, table, uuid, number)).all()
        by_tick = {tick: points for tick, points in rows}  # a later attempt's, where there are two
        return [
            CurvePoint(examples=p[0], **dict(zip(_MEASURES, map(float, p[1:]), strict=True)))
            for _, points in sorted(by_tick.items())
            for p in json.loads(points)
        ]

    def trial_config(self, uuid: str, number: int) -> TrialConfig:
        """A trial's complete configuration, its latest attempt. Raises `InputError` if unknown."""
        chosen = sa.select(schema.trials.c.config)
        with self.engine.connect() as db:
            found = db.scalars(_of(chosen, schema.trials, uuid, number)).all()
        if not found:
            raise InputError(f"There is no trial {number} in this study.")
        return from_json(TrialConfig, str(found[-1]))

    def samples(self, uuid: str, number: int) -> dict[int, tuple[Sample, ...]]:
        """What a trial's model wrote for the evaluation prompts, by tick; the end's is the last."""
        with self.engine.connect() as db:
            return samples.by_tick(db, uuid, number)

    def baseline_samples(self, uuid: str) -> tuple[Sample, ...]:
        """What the untouched base wrote for the same prompts."""
        with self.engine.connect() as db:
            return samples.baseline(db, uuid)


_MEASURES = ("train_loss", "learning_rate", "grad_norm", "tokens_per_s")


def _stop_running(
    db: sa.Connection, where: Sequence[sa.ColumnElement[bool]], reason: str
) -> None:
    table = schema.trials
    stopped = table.update().where(*where, table.c.outcome == RUNNING)
    db.execute(stopped.values(outcome=Outcome.STOPPED.value, reason=storable(reason)))


def _trial_key(uuid: str, number: int, attempt: int) -> dict[str, Any]:
    return {"study_uuid": uuid, "number": number, "attempt": attempt}


def _point(point: CurvePoint) -> list[float]:
    return [point.examples, *(getattr(point, name) for name in _MEASURES)]


def _of(
    query: sa.Select[Any], table: sa.Table, uuid: str, number: int | None
) -> sa.Select[Any]:
    """The rows of a study, or of one trial, by number, later attempts later."""
    query = query.where(table.c.study_uuid == uuid).order_by(table.c.number, table.c.attempt)
    return query if number is None else query.where(table.c.number == number)
