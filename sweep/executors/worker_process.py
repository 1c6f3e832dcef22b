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

import psutil  # type: ignore[import-untyped]

from sweep.executors.pipe import send
from trials.contract import Assignment, to_json

TAIL_LINES = 15  # of a log, in a message
LEAVE_S = 10.0  # for a process whose pipe is closed to end by itself
WORK_S = 0.5  # of CPU time: what is stuck uses none, a slow download some
VMSTAT = Path("/proc/vmstat")  # of the machine, other containers' processes included
GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# How long a thread of OpenMP's looks out for work before it sleeps. By itself it hardly ever does,
# and beside other busy processes a trial then takes several times as long.
SPIN = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "30000"}


class WorkerProcess:
    """A worker's process, started at once. `lock` is the run's, for `remains`."""

    def __init__(self, assignment: Assignment, log: Path, lock: int | None = None) -> None:
        self.assignment = assignment
        self.log = log  # once the study exists
        self.prepared = False
        self.refusal: str | None = None  # its InputError
        self.error: str | None = None  # its last exception
        self.heard_at = time.monotonic()
        self._worked_s = 0.0
        self._memory_kills = memory_kills()
        self._early = tempfile.TemporaryFile()  # what it says before there is a study; no name
        self.process, self.connection = _start(self._early, lock)
        with contextlib.suppress(OSError):  # it died at once: the closed pipe says so
            send(self.connection, {"assignment": to_json(assignment)})

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.assignment.worker

    @property
    def index(self) -> int:
        """Its place among the run's workers."""
        return int(self.name.rpartition("-")[2])

    @property
    def silent_s(self) -> float:
        """Seconds since it last said something that is still to be heard."""
        return 0.0 if self.connection.poll() else time.monotonic() - self.heard_at

    def notice_work(self) -> None:
        """Takes computing, loading and downloading for signs of life: preparing can be silent."""
        worked_s = _worked_s(self.process.pid)
        if worked_s >= self._worked_s + WORK_S:
            self._worked_s, self.heard_at = worked_s, time.monotonic()

    @property
    def starved(self) -> bool:
        """Whether the host's memory killer was at work while it lived."""
        now = memory_kills()
        return now is not None and self._memory_kills is not None and now > self._memory_kills

    @property
    def own_bytes(self) -> int | None:
        """The host's memory that nobody shares with it; null: the system does not tell."""
        try:
            return int(psutil.Process(self.process.pid).memory_full_info().uss)
        except psutil.Error:
            return None

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


def how_it_ended(code: int, *, starved: bool = False) -> str:
    """An exit code in words. `starved`: the host's memory killer was at work."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name != "SIGKILL":
        return f"killed by {name}"
    return f"killed by {name}, by the host's memory killer{'' if starved else ' perhaps'}"


def memory_kills() -> int | None:
    """How many processes Linux has killed for lack of memory; null: unknown.

    Of this container or session, where the system counts them apart, else of the machine.
    """
    for counters in (_own_counters, VMSTAT.read_text):
        with contextlib.suppress(OSError, ValueError):
            for line in counters().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None


def _own_counters() -> str:
    """Those of this process's control group, version 2; raises OSError where there is none."""
    entries = GROUP.read_text().splitlines()
    path = next((entry[3:] for entry in entries if entry.startswith("0::")), "/")
    return (GROUPS / path.lstrip("/") / "memory.events").read_text()


def _worked_s(pid: int) -> float:
    """CPU seconds of a process and of all that it started."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += times.user + times.system
    return total


def _start(
    output: IO[bytes], lock: int | None
) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    here = str(Path(__file__).parents[2])  # so that it finds this very package
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "sweep.executors.child", str(theirs.fileno())]
    handed_down = [theirs.fileno(), *([] if lock is None else [lock])]
    with theirs:
        process = subprocess.Popen(
            [*command, str(os.getpid()), *(str(number) for number in handed_down[1:])],
            pass_fds=handed_down,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the driver only
            env={**SPIN, **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        )
    return process, Connection(ours.detach())
