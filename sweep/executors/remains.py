"""Waits until the workers of a killed run are gone: only then is their memory on the device free.

A run locks a file of its own and hands it down to its workers. The system gives the lock back when
the last of them is gone for good, so nobody need know their numbers, and none is overlooked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import gethostname

import psutil  # type: ignore[import-untyped]

from sweep.processes import lives, started

GONE_S = 60.0  # a killed process gives its memory back within seconds, unless the device hangs
LOOK_S = 0.1
HIGH = 200  # the lock's number: files are closed in order, and the device's come before it


@contextlib.contextmanager
def held() -> Iterator[int | None]:
    """Locks this run's file; yields its descriptor for workers, or null where files cannot lock."""
    try:
        path, handle = _locked()
    except OSError:
        yield None
        return
    try:
        yield handle
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def wait_for_others(note: Callable[[str], None], patience_s: float = GONE_S) -> None:
    """Returns when no worker of a killed run is left, or after a while with a note."""
    end = time.monotonic() + patience_s
    for path in _files_of_the_dead():
        said = False
        while not _let_go(path):
            if time.monotonic() > end:
                note("Workers of a killed run do not leave; their memory may be missing here.")
                return
            if not said:
                note("Waiting for the workers of a killed run to leave the device.")
            said = True
            time.sleep(LOOK_S)


def _folder() -> Path:
    """This user's own on this machine, and nobody else's; raises OSError where it is not."""
    folder = Path(tempfile.gettempdir()) / f"qlora-sweep-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's own")
    return folder


def _locked() -> tuple[Path, int]:
    me = os.getpid()
    path = _folder() / f"{me}-{time.monotonic_ns()}.json"
    with open(path, "x") as file:
        json.dump({"pid": me, "started": started(me)}, file)
        file.flush()
        handle = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            path.unlink()
            raise
    return path, handle


def _files_of_the_dead() -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in sorted(_folder().glob("*.json")) if not _driver_lives(path)]
    return []


def _driver_lives(path: Path) -> bool:
    try:
        said = json.loads(path.read_text())
        return bool(lives(gethostname(), said["pid"], said["started"]))
    except (OSError, psutil.Error, ValueError, KeyError, TypeError):
        return not path.exists() or time.time() - path.stat().st_mtime < GONE_S  # being written


def _let_go(path: Path) -> bool:
    """Whether nobody holds the lock any more; then the file is removed."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except OSError:
        pass  # somebody else has removed it
    return True
