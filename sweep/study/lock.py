"""One driver per study: a row that says who holds it, and that it is still alive."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass

import sqlalchemy as sa

from sweep.processes import lives, started
from sweep.store import schema
from trials.contract import InputError

STALE_S = 600.0  # a driver of another host is taken for dead after so long without a sign of life
BEAT_S = 2.0  # between two signs of life; a killed run is counted up to its last one


@dataclass
class StudyLock:
    """Held by this process from `take` until `release`."""

    engine: sa.Engine
    study: str
    token: str
    beaten: float = 0.0

    def beat(self) -> bool:
        """Gives a sign of life where the last one is a while ago; says whether it did.

        By the clock that others read: after a machine's sleep, or a clock set back, at once.
        """
        now = time.time()
        if abs(now - self.beaten) < BEAT_S:
            return False
        self.touch(now)
        return True

    def touch(self, now: float) -> None:
        """Gives a sign of life."""
        mine = schema.locks.update().where(*self._mine())
        with self.engine.begin() as db:
            db.execute(mine.values(alive_at=now))
        self.beaten = now

    def taken_by(self) -> str | None:
        """Who holds the study by now; null while this process does."""
        table = schema.locks.c
        query = sa.select(table.token, table.pid, table.host).where(table.study == self.study)
        with self.engine.connect() as db:
            row = db.execute(query).first()
        if row is None:
            return "its lock was removed"
        taken = f"process {row.pid} on {row.host} took it over after a long silence"
        return None if row.token == self.token else taken

    def release(self) -> None:
        """Lets the next driver in."""
        with self.engine.begin() as db:
            db.execute(schema.locks.delete().where(*self._mine()))

    def _mine(self) -> list[sa.ColumnElement[bool]]:
        return [schema.locks.c.study == self.study, schema.locks.c.token == self.token]


def take(engine: sa.Engine, study: str) -> StudyLock:
    """Locks the study for this process; a dead driver's lock is taken over.

    Raises `InputError` that names the holder where another driver lives.
    """
    now, me = time.time(), os.getpid()
    lock = StudyLock(engine, study, str(uuid.uuid4()), now)
    row = {"study": study, "token": lock.token, "host": socket.gethostname(), "pid": me,
           "process_started": started(me), "since": now, "alive_at": now}  # fmt: skip
    dead = refuse_if_held(engine, study)
    try:
        with engine.begin() as db:
            db.execute(schema.locks.delete().where(schema.locks.c.token == dead))
            db.execute(schema.locks.insert().values(**row))
    except sa.exc.IntegrityError:  # another driver came between
        refuse_if_held(engine, study)
        raise
    return lock


def refuse_if_held(engine: sa.Engine, study: str) -> str | None:
    """Raises `InputError` where a living driver holds the study; writes nothing.

    Returns a dead driver's token, or null where there is no lock.
    """
    with engine.connect() as db:
        query = sa.select(schema.locks).where(schema.locks.c.study == study)
        row = db.execute(query).mappings().first()
    if row is None or not _alive(row):
        return None if row is None else str(row["token"])
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["since"]))
    here = row["host"] == socket.gethostname()
    free = time.strftime("%H:%M:%S", time.localtime(row["alive_at"] + STALE_S))
    way = (
        f"If it should not run: kill {row['pid']}"
        if here
        else f"If that process is dead, type the same command again after {free}"
    )
    raise InputError(
        f"Study {study!r} is being run by process {row['pid']} on {row['host']} since {since}. "
        f"Wait for it, or type study=<another name>. {way}."
    )


def _alive(row: sa.RowMapping) -> bool:
    known = lives(row["host"], row["pid"], row["process_started"])
    # A sign of life from the far future is of a clock that was wrong then. Should its driver live
    # after all, it finds its lock taken and stops.
    return abs(time.time() - float(row["alive_at"])) < STALE_S if known is None else known
