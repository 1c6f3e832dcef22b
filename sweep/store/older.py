"""Databases of an earlier version of this program: whoever opens one first adds what it lacks.

A column that came later may be null or has a default of the database's own, see `schema`. What is
done here may be done again, should it be cut short.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

from sweep.store import schema


def renew(db: sa.Connection) -> None:
    """Brings our tables up to date; touches nothing where they are."""
    there = _columns(db)
    lacking = [
        column
        for table in schema.metadata.sorted_tables
        for column in table.columns
        if column.name not in there.get(table.name, ())
    ]
    if lacking:
        schema.metadata.create_all(db)
    for column in lacking:
        if column.table.name in there and (column.nullable or column.server_default is not None):
            added = CreateColumn(column).compile(dialect=db.dialect)
            db.execute(sa.text(f"alter table {column.table.name} add column {added}"))
    if "samples" in there.get(schema.trials.name, ()):
        _move_samples(db)


def _columns(db: sa.Connection) -> dict[str, set[str]]:
    """The columns of our tables, as far as those are there."""
    inspector = sa.inspect(db)
    names = set(inspector.get_table_names()) & set(schema.metadata.tables)
    return {name: {column["name"] for column in inspector.get_columns(name)} for name in names}


def _move_samples(db: sa.Connection) -> None:
    """A trial's last samples were once a column beside its result."""
    db.execute(
        sa.text(
            "insert into sweep_samples (study_uuid, number, attempt, tick, samples) "
            "select study_uuid, number, attempt, ticks, samples from sweep_trials as t "
            "where samples <> '[]' and not exists (select 1 from sweep_samples as s where "
            "s.study_uuid = t.study_uuid and s.number = t.number and s.attempt = t.attempt)"
        )
    )
    db.execute(sa.text("alter table sweep_trials drop column samples"))
