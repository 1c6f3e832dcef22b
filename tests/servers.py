"""Databases on real servers, for tests that want one; they are skipped where there is none.

QLORA_SWEEP_TEST_POSTGRES_URL=postgresql://user:password@127.0.0.1/postgres
QLORA_SWEEP_TEST_MYSQL_URL=mysql+pymysql://user:password@127.0.0.1/mysql

Each test makes a database of its own and drops it, so that user must be allowed to.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

KINDS = ("postgres", "mysql")


@contextmanager
def own_database(kind: str) -> Iterator[str]:
    """The URL of an empty database, which is gone afterwards."""
    variable = f"QLORA_SWEEP_TEST_{kind.upper()}_URL"
    if (admin := os.environ.get(variable)) is None:
        pytest.skip(f"no server: set {variable}")
    name = f"sweep_test_{uuid.uuid4().hex[:12]}"
    ask(admin, f"create database {name}")
    try:
        yield sa.make_url(admin).set(database=name).render_as_string(hide_password=False)
    finally:
        ask(admin, f"drop database {name}" + (" with (force)" if kind == "postgres" else ""))


def ask(url: str, *statements: str) -> Sequence[Any]:
    """Another client's statements, each for itself; the rows of the last one."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as db:
        for statement in statements:
            found = db.exec_driver_sql(statement)
        return found.all() if found.returns_rows else ()


def cut_off(url: str) -> None:
    """Ends every connection to the database but one's own, as a server does that restarts."""
    name = sa.make_url(url).database
    if url.startswith("postgresql"):
        ask(url, "select pg_terminate_backend(pid) from pg_stat_activity "
                 f"where datname = '{name}' and pid <> pg_backend_pid()")  # fmt: skip
        return
    found = ask(url, "select id from information_schema.processlist "
                     f"where db = '{name}' and id <> connection_id()")  # fmt: skip
    ask(url, "select 1", *(f"kill {row[0]}" for row in found))
