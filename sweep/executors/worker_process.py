"""One local worker: its process, its pipe, its log."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from sweep.executors.pipe import send
from trials.contract import Assignment, to_json

TAIL_LINES = 15  # of a log, in a message
LEAVE_S = 10.0  # for a process whose pipe is closed to end by itself


class WorkerProcess:
    """A worker's process, started at once."""

    def __init__(self, assignment: Assignment, log: Path) -> None:
        self.assignment = assignment
        self.log = log  # once the study exists
        self.prepared = False
        self.dismissed = False  # its last question was answered with DONE
        self.refusal: str | None = None  # its InputError
        self.error: str | None = None  # its last exception
        self.heard_at = time.monotonic()
        self._early = tempfile.TemporaryFile()  # what it says before there is a study; no name
        self.process, self.connection = _start(self._early)
        with contextlib.suppress(OSError):  # it died at once: the closed pipe says so
            send(self.connection, {"assignment": to_json(assignment)})

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.assignment.worker

    @property
    def silent_s(self) -> float:
        """Seconds since it last said something."""
        return time.monotonic() - self.heard_at

    def end(self, *, at_once: bool) -> int:
        """Sees the process out, by force if need be; its exit code."""
        self.connection.close()
        try:
            if at_once:
                self._kill()
            return self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return self.process.wait()

    def forget(self) -> None:
        """Nothing worth keeping was said."""
        self._early.close()

    def last_words(self) -> str:
        """The end of its log, and where that is; what had no place yet is kept now."""
        path = self.log if self.prepared else self._keep_early()
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            return "\n".join([*(f"  {line}" for line in lines), f"Its log: {path}"])
        return f"Its log: {path}"

    def _keep_early(self) -> Path:
        handle, name = tempfile.mkstemp(prefix=f"sweep-{self.name}-", suffix=".log")
        with open(handle, "wb") as kept:
            self._early.seek(0)
            shutil.copyfileobj(self._early, kept)
        return Path(name)

    def _kill(self) -> None:
        """Ends the process and all that it started: it leads a session of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", by the host's memory killer perhaps" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def _start(output: IO[bytes]) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    here = str(Path(__file__).parents[2])  # so that it finds this very package
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "sweep.executors.child", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the driver only
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        )
    return process, Connection(ours.detach())
