"""Database servers beside SQLite: which are known, what their drivers need, when to give one up.

Whatever depends on the kind of a server, or on the name of its driver, is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import sqlalchemy as sa

from sweep.names import unknown
from sweep.secrets import masked
from trials.contract import InputError

MYSQL = ("mysql", "mariadb")
KNOWN = {  # and how one types it
    "sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}  # fmt: skip
PACKAGES = {  # modules whose package has another name, or needs more than its name
    "MySQLdb": "mysqlclient", "mysql": "mysql-connector-python", "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
}  # fmt: skip

# Without these a server that vanished is waited for without a word: for hours, or for ever.
_LIBPQ = {
    "connect_timeout": 10, "tcp_user_timeout": 30_000, "keepalives_idle": 10,
    "keepalives_interval": 10, "keepalives_count": 3,
    "client_encoding": "utf8",  # a database made in the locale C would give bytes
}  # fmt: skip
_MYSQL = {"connect_timeout": 10, "read_timeout": 30, "write_timeout": 30, "charset": "utf8mb4"}
_ARGUMENTS = {"psycopg": _LIBPQ, "psycopg2": _LIBPQ, "pymysql": _MYSQL, "mysqldb": _MYSQL}
_LOCKS = {  # seconds, as for a locked SQLite file: then the driver is told, and says so
    "postgresql": "set lock_timeout = '5s'",
    **dict.fromkeys(MYSQL, "set innodb_lock_wait_timeout = 5, lock_wait_timeout = 5"),
}
_ALONE = {  # PostgreSQL ends it with its transaction; MySQL's holds for a whole server
    "postgresql": ("select pg_advisory_xact_lock(7737632)", "select 1"),
    **dict.fromkeys(MYSQL, ("select get_lock(left(concat('sweep ', database()), 64), 20)",
                            "select release_lock(left(concat('sweep ', database()), 64))")),
}  # fmt: skip

_LOGIN = (
    "Type the right user and password; @ : / and % within them are typed as %40 %3A %2F and %25."
)
_MAKE = "Make it there, or type storage=<another database>."
_GRANT = "Have the owner of the database grant it, or type storage=<another database>."
_ADVICE = {  # what no waiting mends, and what does
    "authentication failed": _LOGIN,
    "no password supplied": _LOGIN,
    "Access denied": _LOGIN,
    "Unknown database": _MAKE,
    "does not exist": _MAKE,
    "doesn't exist": _MAKE,
    "permission denied": _GRANT,
    "command denied": _GRANT,
    "not permitted": _GRANT,
    "'cryptography' package": "Type pip install cryptography.",
    "pg_hba.conf": "The server lets nobody in from here: its pg_hba.conf says who may.",
}
HOPELESS = tuple(_ADVICE)
NO_SUCH_HOST = ("Name or service not known", "nodename nor servname", "Unknown server host")


def check(url: sa.URL, typed: str) -> None:
    """Raises `InputError` for a URL that cannot be of a database, or whose driver is missing."""
    said, name = f"storage={masked(typed)}", url.get_backend_name()
    if name not in KNOWN:
        raise InputError(f"{said}: {unknown('database', name, KNOWN)}")
    if name != "sqlite" and typed.count("@") > 1:
        raise InputError(f"{said}: a @ within a password, or a name, is typed as %40.")
    if name in MYSQL and not url.database:
        raise InputError(f"{said} names no database. Type its name behind the host: /database.")
    _check_driver(url, said)


def _check_driver(url: sa.URL, said: str) -> None:
    driver, way = url.drivername, f"Type storage={KNOWN[url.get_backend_name()]}://..."
    try:
        dialect = url.get_dialect()
    except sa.exc.NoSuchModuleError:
        raise InputError(f"{said}: there is no driver {driver}. {way}") from None
    if dialect.is_async:
        raise InputError(f"{said}: {driver} is a driver for asynchronous programs. {way}")
    try:
        dialect.import_dbapi()
    except ImportError as error:
        module = error.name or url.get_driver_name()
        name = PACKAGES.get(module.partition(".")[0], module)
        raise InputError(f"{said} needs the package {name}. Type pip install {name}.") from None


def options(url: sa.URL) -> dict[str, Any]:
    """Keyword arguments for `create_engine`; what the URL says of a connection has precedence."""
    known = _ARGUMENTS.get(url.get_driver_name(), {})
    arguments = {name: value for name, value in known.items() if name not in url.query}
    return {"pool_pre_ping": True, "connect_args": arguments}


def speak_of_locks(engine: sa.Engine) -> None:
    """Has a server raise where another client's lock is in the way, not wait without a word."""
    if (statement := _LOCKS.get(engine.dialect.name)) is None:
        return

    def say(connection: Any, record: object) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(statement)
        connection.commit()

    sa.event.listen(engine, "connect", say)
    engine.dispose()  # connections made before know nothing of it


@contextmanager
def one_at_a_time(engine: sa.Engine) -> Iterator[None]:
    """Sweeps that start together on a new database must not all make its tables.

    For SQLite see `sweep.study.places`.
    """
    if engine.dialect.name not in _ALONE:
        yield
        return
    take, give_back = _ALONE[engine.dialect.name]
    with engine.connect() as db:
        db.exec_driver_sql(take)
        try:
            yield
        finally:
            with suppress(sa.exc.DBAPIError):
                db.exec_driver_sql(give_back)


def check_new(engine: sa.Engine, said: str) -> None:
    """Raises `InputError` where no tables can be made, or could not hold every text."""
    if engine.dialect.name != "postgresql":
        return
    with engine.connect() as db:
        encoding, schema, may = db.exec_driver_sql(
            "select current_setting('server_encoding'), current_schema(), "
            "has_schema_privilege(current_schema(), 'create')"
        ).one()
    if encoding not in ("UTF8", "SQL_ASCII"):
        raise InputError(
            f"storage={said}: its encoding is {encoding}, which cannot hold every text. "
            "Type createdb -E UTF8 -T template0 <name>, and use that one."
        )
    if not may:
        where = f"schema {schema}" if schema else "any schema of the search path"
        raise InputError(f"storage={said}: no tables may be made in {where}. {_GRANT}")


def advice(why: str) -> str:
    """What to do after this word of a server; empty where there is nothing to say."""
    return next((f". {way}" for words, way in _ADVICE.items() if words in why), "")
