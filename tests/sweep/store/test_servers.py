"""What holds for servers, and needs none: our SQL in their dialects, URLs, drivers, patience."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn, CreateTable
from sweeping import ready, stored, sweep_config, take

from sweep.store import Store, schema
from sweep.store.database import engine_options, shown
from trials.contract import InputError, Outcome, TrialResult

DIALECTS = ("postgresql", "mysql", "mariadb")
TABLES = schema.metadata.sorted_tables
MOST_KEY_BYTES = 3072  # of an index in MySQL, where a character has up to four


def dialect(name: str) -> Any:
    drivers = {"postgresql": "psycopg"}
    return sa.make_url(f"{name}+{drivers.get(name, 'pymysql')}://").get_dialect()()


@pytest.mark.parametrize("name", DIALECTS)
def test_a_server_is_asked_for_tables_alone(name: str) -> None:
    """What is beside them, SQLite alone understands."""
    asked: list[str] = []
    driver = "psycopg" if name == "postgresql" else "pymysql"
    mock = sa.create_mock_engine(
        f"{name}+{driver}://", lambda sql, *_: asked.append(str(sql.compile(dialect=mock.dialect)))
    )
    schema.metadata.create_all(mock, checkfirst=False)
    assert len(asked) == len(TABLES)
    assert all(statement.strip().startswith("CREATE TABLE sweep_") for statement in asked)


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("name", DIALECTS)
def test_every_table_can_be_made(name: str, table: sa.Table) -> None:
    made = str(CreateTable(table).compile(dialect=dialect(name)))
    assert ("CHARSET=utf8mb4" in made) is (name != "postgresql")
    for column in table.columns:
        if isinstance(column.type, sa.String) and not isinstance(column.type, sa.Text):
            assert column.type.length, f"{column}: MySQL has no VARCHAR without a length"
    keys = [column.type for column in table.primary_key if isinstance(column.type, sa.String)]
    assert sum(4 * (kind.length or MOST_KEY_BYTES) for kind in keys) <= MOST_KEY_BYTES
    for column in table.columns:  # as `sweep.store.older` adds those that came later
        assert column.name in str(CreateColumn(column).compile(dialect=dialect(name)))


@pytest.mark.parametrize("name", ["mysql", "mariadb"])
def test_texts_of_any_length_have_room(name: str) -> None:
    columns = [(table.name, column) for table in TABLES for column in table.columns]
    long = [f"{table}.{c.name}" for table, c in columns if c.type is schema.LONG]
    assert {"sweep_trials.config", "sweep_trials.reason", "sweep_curves.points",
            "sweep_samples.samples", "sweep_studies.setup"} <= set(long)  # fmt: skip
    assert schema.LONG.compile(dialect=dialect(name)) == "LONGTEXT"


@pytest.mark.parametrize(
    "url, told",
    [
        ("oracle://me:hush@host/db", "database 'oracle' is unknown. Known: "),
        ("postgres://me:hush@host/db", "Did you mean 'postgresql'?"),
        ("mysql+nothing://me:hush@host/db", "no driver mysql+nothing. Type storage=mysql+pymysql://..."),
        ("mysql+pymysql://me:hush@host", "names no database. Type its name behind the host"),
        ("mariadb+pymysql://me:hush@host/", "names no database"),
        ("postgresql://me:a@b/hush:c@host/db", "a @ within a password"),
        ("postgresql+asyncpg://me:hush@host/db", "is a driver for asynchronous programs"),
        ("mysql+aiomysql://me:hush@host/db", "Type storage=mysql+pymysql://..."),
    ],
)
def test_a_url_that_cannot_be_is_refused_wherever_it_is_typed(
    url: str, told: str, tmp_path: Path
) -> None:
    for refuse in (lambda: Store(url), lambda: sweep_config(tmp_path, f"storage='{url}'")):
        with pytest.raises(InputError) as error:
            refuse()
        assert told in str(error.value) and "hush" not in str(error.value)


@pytest.mark.parametrize(
    "url, module, package",
    [
        ("postgresql+psycopg2://me:hush@host/db", "psycopg2", "psycopg2-binary"),
        ("postgresql+psycopg://me:hush@host/db", "psycopg", "'psycopg[binary]'"),
        ("mysql://me:hush@host/db", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql://me:hush@host/db", "pymysql", "pymysql"),
        ("mariadb+pymysql://me:hush@host/db", "pymysql", "pymysql"),
        ("mysql+mysqlconnector://me:hush@host/db", "mysql", "mysql-connector-python"),
    ],
)
def test_a_database_without_its_driver_says_what_to_install(
    url: str, module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # whether it is there or not
    for refuse in (lambda: Store(url), lambda: sweep_config(tmp_path, f"storage={url}")):
        with pytest.raises(InputError) as told:
            refuse()
        assert f"pip install {package}" in str(told.value) and "hush" not in str(told.value)


def test_a_silent_server_is_not_waited_for_without_end() -> None:
    for url in ("postgresql+psycopg://host/db", "postgresql+psycopg2://host/db"):
        asked = engine_options(url)["connect_args"]
        assert asked["connect_timeout"] == 10 and asked["tcp_user_timeout"] == 30_000
    for url in ("mysql+pymysql://host/db", "mysql+mysqldb://host/db", "mariadb+pymysql://host/db"):
        asked = engine_options(url)["connect_args"]
        assert asked["connect_timeout"] == 10 and asked["read_timeout"] == 30


def test_what_the_url_says_of_a_connection_has_precedence() -> None:
    url = "postgresql+psycopg://host/db?connect_timeout=60"
    asked = engine_options(url)["connect_args"]
    assert "connect_timeout" not in asked and "tcp_user_timeout" in asked


def test_a_password_with_a_separator_in_it_is_not_shown_in_part() -> None:
    assert shown("postgresql://me:p@ss/w:hush#?%&=1@host/db") == "postgresql://me:***@host/db"


def test_a_text_that_no_server_takes_is_written_without_what_it_cannot(tmp_path: Path) -> None:
    """PostgreSQL has no NUL, and half of a character is none anywhere."""
    config = sweep_config(tmp_path, "executor=inline")
    driver, link = ready(config)
    trial = take(link)
    link.finish(
        TrialResult(
            trial=trial.number, attempt=0, outcome=Outcome.FAILED, eval_loss=None, worker="w0",
            reason="é \0 \ud800 😀",
        )
    )  # fmt: skip
    driver.close()
    assert stored(config)[1][0].reason == "é ␀ ? 😀"
