"""The tables of `sweep.store`, portable over SQLite, PostgreSQL and MySQL.

Keyed by study uuid, trial number, attempt and tick: SQLite reuses the ids of deleted rows. JSON is
text that any database can read; a training curve is one JSON list for each tick, which on SQLite
the view `sweep_curve` unrolls: `select * from sweep_curve where number = 7`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
    inspect,
)
from sqlalchemy.dialects import mysql

VERSION = 1

LONG = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")  # MySQL's TEXT ends at 64 KiB
# MySQL would take the database's own, which may lack most characters.
UTF8: dict[str, Any] = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}
metadata = MetaData()


def _key(name: str, kind: Any) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


OPTUNA = {"studies": {"study_id", "study_name"}, "trials": {"trial_id", "study_id", "number"}}


def foreign(db: Connection) -> str | None:
    """The first table that has the name of one of ours, or of Optuna's, and is none."""
    wanted = {table.name: set(table.columns.keys()) for table in metadata.sorted_tables} | OPTUNA
    inspector = inspect(db)
    for name in sorted(set(inspector.get_table_names()) & set(wanted)):
        if wanted[name] - {column["name"] for column in inspector.get_columns(name)}:
            return name
    return None


schema = Table("sweep_schema", metadata, Column("version", Integer, primary_key=True), **UTF8)

studies = Table(
    "sweep_studies",
    metadata,
    _key("study_uuid", String(36)),
    Column("study", String(512), nullable=False),
    Column("n_trials", Integer, nullable=False),
    Column("ticks", Integer, nullable=False),
    Column("first_rung", Integer, nullable=False),
    Column("baseline_loss", Double),
    Column("baseline_accuracy", Double),
    Column("baseline_samples", LONG, nullable=False),
    Column("model", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("dimensions", LONG, nullable=False),
    Column("results_dir", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("versions", LONG, nullable=False),
    Column("setup", LONG, nullable=False),
    **UTF8,
)

trials = Table(
    "sweep_trials",
    metadata,
    _key("study_uuid", String(36)),
    _key("number", Integer),
    _key("attempt", Integer),
    Column("outcome", String(16), nullable=False),
    Column("reason", LONG),
    Column("params", LONG, nullable=False),
    Column("eval_loss", Double),
    Column("eval_accuracy", Double),
    Column("first_rung_loss", Double),
    Column("ticks", Integer, nullable=False, default=0),
    Column("examples", BigInteger, nullable=False, default=0),
    Column("tokens", BigInteger, nullable=False, default=0),
    Column("seconds", Double, nullable=False, default=0.0),
    Column("eval_seconds", Double, nullable=False, default=0.0),
    Column("sample_seconds", Double, nullable=False, default=0.0, server_default="0"),
    Column("memory_bytes", BigInteger, nullable=False, default=0),
    Column("trainable_parameters", BigInteger, nullable=False, default=0),
    Column("utilisation", Double),
    Column("adapter", Text),
    Column("worker", String(255), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("device", Text, nullable=False),
    Column("versions", LONG, nullable=False),
    Column("config", LONG, nullable=False),
    **UTF8,
)

ticks = Table(
    "sweep_ticks",
    metadata,
    _key("study_uuid", String(36)),
    _key("number", Integer),
    _key("attempt", Integer),
    _key("tick", Integer),
    Column("eval_loss", Double),  # null: not finite
    Column("eval_accuracy", Double),
    Column("examples", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("eval_seconds", Double, nullable=False),
    Column("sample_seconds", Double, nullable=False, default=0.0, server_default="0"),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("utilisation", Double),
    Column("worker", String(255), nullable=False),
    Column("slot", Integer, nullable=False),
    Column("reported_at", Double, nullable=False),
    **UTF8,
)

curves = Table(
    "sweep_curves",
    metadata,
    _key("study_uuid", String(36)),
    _key("number", Integer),
    _key("attempt", Integer),
    _key("tick", Integer),  # the tick that these optimizer steps led to
    # [[examples, train_loss, learning_rate, grad_norm, tokens_per_s], ...]
    Column("points", LONG, nullable=False),
    **UTF8,
)

samples = Table(
    "sweep_samples",
    metadata,
    _key("study_uuid", String(36)),
    _key("number", Integer),
    _key("attempt", Integer),
    _key("tick", Integer),  # how far the trial was
    Column("samples", LONG, nullable=False),  # [{prompt, reference, generated}, ...]
    **UTF8,
)

runs = Table(
    "sweep_runs",
    metadata,
    _key("study_uuid", String(36)),
    _key("run", Integer),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("devices", Integer, nullable=False),
    Column("price_per_hour", Double),
    Column("started_at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("trials", LONG, nullable=False),  # {number: [seconds, device seconds]}, not ended ones
    **UTF8,
)

locks = Table(
    "sweep_locks",
    metadata,
    _key("study", String(512)),
    Column("token", String(36), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", Double, nullable=False),
    Column("since", Double, nullable=False),
    Column("alive_at", Double, nullable=False),
    **UTF8,
)

event.listen(
    metadata,
    "after_create",
    DDL(  # type: ignore[no-untyped-call]
        "create view if not exists sweep_curve as select study_uuid, number, attempt, tick, "
        "point.key as step, point.value ->> 0 as examples, point.value ->> 1 as train_loss, "
        "point.value ->> 2 as learning_rate, point.value ->> 3 as grad_norm, "
        "point.value ->> 4 as tokens_per_s from sweep_curves, json_each(points) as point"
    ).execute_if(dialect="sqlite"),
)

event.listen(
    metadata,
    "after_create",
    DDL(  # type: ignore[no-untyped-call]
        "create view if not exists sweep_sample as select s.study_uuid, number, attempt, tick, "
        "own.key as place, own.value ->> 'prompt' as prompt, own.value ->> 'reference' as "
        "reference, (select base.value ->> 'generated' from sweep_studies as study, "
        "json_each(study.baseline_samples) as base where study.study_uuid = s.study_uuid and "
        "base.key = own.key) as base, own.value ->> 'generated' as generated "
        "from sweep_samples as s, json_each(s.samples) as own"
    ).execute_if(dialect="sqlite"),
)
