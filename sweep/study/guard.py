"""The database while a sweep depends on it: waited for where that helps, given up where not.

A file that another process has locked, a full disk, a server that restarts: the same call is made
again until it gets through, and a line says what is waited for. A file that was deleted or
replaced, and a lock that another driver took over, end the run: nothing would be kept, or two
drivers would write one study.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError

from sweep.store import servers
from sweep.store.database import shown, sqlite_path, words
from sweep.study.lock import StudyLock
from trials.contract import InputError

WAIT_S = 600.0  # the longest that a database is waited for
PAUSE_S = 0.5  # between two tries
RECENT_S = 1.0  # a look at the lock so long ago will do: nobody takes it over in that time
HOPELESS = ("readonly", "malformed", "not a database", "no such table", "no such column",
            *servers.HOPELESS)  # fmt: skip
EXPECTED = (sa.exc.OperationalError, sa.exc.InterfaceError,
            sa.exc.ProgrammingError, sa.exc.InternalError)  # the last two: of tables and rights
T = TypeVar("T")


class StudyLost(InputError):
    """The study cannot be written to. The message is complete; no traceback is due."""


class Guard:
    """Makes calls to one database. `patience` says how many more seconds a wait may take."""

    def __init__(
        self,
        url: str,
        note: Callable[[str], None],
        patience: Callable[[], float] = lambda: WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock: StudyLock | None = None  # once it is held
        self._url, self._note, self._patience, self._clock = url, note, patience, clock
        self._path = sqlite_path(url)
        self._file: tuple[int, int] | None = None
        self._seen_ours = 0.0

    @property
    def gone(self) -> bool:
        """Whether the file is not there any more, or another is in its place."""
        return self._file is not None and self._path is not None and (
            _identity(self._path) != self._file
        )

    def around(self, target: T) -> T:
        """The same object, its methods called by the guard."""
        return cast(T, _Guarded(target, self))

    def hold(self, lock: StudyLock) -> None:
        """From now on this very file is meant, and the lock must stay ours."""
        self.lock = lock
        self._file = _identity(self._path) if self._path else None

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What the function returns, once the database lets it. It must be repeatable.

        Raises `StudyLost`.
        """
        began, told = self._clock(), False
        while True:
            try:
                self._check()
                result = function(*args, **kwargs)
                break
            except StudyLost:
                raise
            except UpdateFinishedTrialError:
                if not told:
                    raise
                return cast(T, None)  # an earlier try got through, and its answer was lost
            except Exception as error:
                self._judge(error, self._clock() - began)
                if not told:
                    self._note(f"{self._said(error)}. Trying again until it can be used.")
                told = True
                time.sleep(PAUSE_S)
        if told:
            self._note("The database can be used again; the sweep goes on.")
        return result

    def _judge(self, error: Exception, waited: float) -> None:
        """Raises what the error comes to, unless waiting may help."""
        cause = database_error(error)
        if cause is None:
            raise error
        self._check_file()
        opening = isinstance(error, InputError)  # nothing is written yet
        if not isinstance(cause, EXPECTED) or opening and (not passing(error) or _mistyped(cause)):
            raise error
        if not passing(error):
            raise StudyLost(f"{self._said(error)}. {_AGAIN}") from error
        if waited >= self._patience():
            raise StudyLost(f"{self._said(error)}, after {waited:.0f} s. {_AGAIN}") from error

    def _said(self, error: Exception) -> str:
        return f"storage={shown(self._url)} cannot be used: {words(database_error(error) or error)}"

    def _check(self) -> None:
        """By the clock that others read, which goes on while this machine sleeps."""
        self._check_file()
        now = time.time()
        if self.lock is None or abs(now - self._seen_ours) < RECENT_S:
            return
        if other := self.lock.taken_by():
            raise StudyLost(
                f"Study {self.lock.study!r} is not held by this process any more: {other}. "
                "Nothing more is written here; what it has is in the database."
            )
        self._seen_ours = now

    def _check_file(self) -> None:
        if self.gone:
            raise StudyLost(
                f"{self._path} was deleted, moved or replaced while the sweep ran, so nothing that "
                "it finds would be kept. Put the file back if you have it, then type the same "
                "command; without the file, type study=<another name>."
            )


class _Guarded:
    """An object whose methods the guard calls."""

    def __init__(self, target: object, guard: Guard) -> None:
        self._target, self._guard = target, guard

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return functools.partial(self._guard.call, found) if callable(found) else found


_AGAIN = "What was not written is trained again: put that right, then type the same command."


def database_error(error: BaseException) -> sa.exc.DBAPIError | None:
    """What the database said, within the error or what led to it; null where it is another."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, sa.exc.DBAPIError):
        found = found.__cause__
    return found


def passing(error: BaseException) -> bool:
    """Whether it is of a database that may be used again if one waits."""
    cause = database_error(error)
    if not isinstance(cause, (sa.exc.OperationalError, sa.exc.InterfaceError)):
        return False
    return not any(word in str(cause.orig) for word in HOPELESS)


def _mistyped(error: sa.exc.DBAPIError) -> bool:
    """Whether the server's name leads nowhere: in a running sweep, that is the network's fault."""
    return any(word in str(error.orig) for word in servers.NO_SUCH_HOST)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
