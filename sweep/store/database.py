"""Database URLs: the file behind one, how to show one, and how every engine on one is made."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sweep.secrets import masked
from sweep.store import servers
from trials.contract import InputError

BUSY_TIMEOUT_S = 5.0  # how long a locked SQLite file is waited for without a word


def shown(url: str) -> str:
    """A database URL without its password, wherever in it that is."""
    return masked(_parsed(masked(url)).render_as_string(hide_password=True))


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL; null for another database or one in memory."""
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def engine_options(url: str) -> dict[str, Any]:
    """Keyword arguments for `create_engine`: how long a file or a server may keep it waiting."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    return servers.options(parsed)


def connect(url: str) -> sa.Engine:
    """An engine on the database. Raises `InputError` if the URL or its driver is not usable."""
    servers.check(_parsed(url), url)
    engine = sa.create_engine(url, **engine_options(url))
    servers.speak_of_locks(engine)
    return engine


def unusable(url: str, error: Exception) -> InputError:
    """What a database said when it was opened, and what to type."""
    why = words(error)
    return InputError(f"storage={shown(url)} cannot be used: {why}{servers.advice(why)}")


def words(error: BaseException) -> str:
    """What a database said, in one line, without the statement that it was given."""
    said, _, _ = str(getattr(error, "orig", None) or error).partition("\nLINE ")
    return " ".join(said.split())


def _parsed(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except sa.exc.ArgumentError:
        raise InputError(
            f"storage={masked(url)!r} is not a database URL. Type for example "
            "storage=sqlite:///results/sweep.db"
        ) from None


def hurry(engine: sa.Engine) -> None:
    """While a driver writes, SQLite keeps a write-ahead log: a commit then waits for no disk.

    A killed process loses nothing; a power cut loses the last moments, not the file. Readers and
    the writer do not block each other. Nothing changes on other databases.
    """
    if engine.dialect.name != "sqlite":
        return
    sa.event.listen(engine, "connect", _write_ahead)
    engine.dispose()  # connections made before know nothing of it


def settle(engine: sa.Engine) -> None:
    """Leaves one plain file behind, if nobody else has it open."""
    if engine.dialect.name == "sqlite":
        with contextlib.suppress(sa.exc.OperationalError), engine.connect() as db:
            db.exec_driver_sql("pragma busy_timeout = 0")
            db.exec_driver_sql("pragma journal_mode = delete")
    engine.dispose()


def _write_ahead(connection: Any, record: object) -> None:
    with contextlib.suppress(sqlite3.OperationalError):  # some file systems cannot: then without
        connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = normal")


def upsert(
    db: sa.Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    row: Mapping[str, Any],
    first: Mapping[str, Any] | None = None,
) -> None:
    """Updates the row with this key or inserts it; `first` is written on insertion only."""
    written = {name: storable(value) for name, value in row.items()}
    where = {_at(name): value for name, value in key.items()}
    if db.execute(_update(table, tuple(key)), {**where, **written}).rowcount == 0:
        once = {name: storable(value) for name, value in (first or {}).items()}
        db.execute(table.insert(), {**key, **written, **once})


@functools.cache
def _update(table: sa.Table, key: tuple[str, ...]) -> sa.Update:
    """Made once: making a statement takes as long as executing it."""
    return table.update().where(*(table.c[name] == sa.bindparam(_at(name)) for name in key))


def _at(name: str) -> str:
    return f"at_{name}"  # apart from the column's new value


def storable(value: Any) -> Any:
    """A text without what some database cannot hold: NUL, and halves of a character."""
    if not isinstance(value, str) or value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode()
