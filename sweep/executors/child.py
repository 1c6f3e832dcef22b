"""A worker's own process: started by `sweep.executors.local` with the number of its pipe.

It dies with its driver (by signal on Linux, and by the closed pipe), and Ctrl-C and SIGTERM are the
driver's affair alone. What it prints goes to a nameless file, and to the study's log once there is
a study.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from sweep.executors.pipe import PipeDriver, receive, send
from trials.contract import Assignment, InputError, from_json
from trials.worker import work

PR_SET_PDEATHSIG = 1  # of Linux's prctl
DRIVER_GONE = 4  # exit code


class LoggingDriver(PipeDriver):
    """Moves this process's output from the nameless file to the study's log."""

    def log_to(self, path: str | None) -> None:
        """Carries over what was printed so far, then appends."""
        if path is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as log:
            log.write(os.pread(1, os.fstat(1).st_size, 0))
            log.flush()
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)


def main(pipe: int, parent: int, lock: int | None = None) -> int:
    """Works until the driver has no more; the exit code is 0 only then.

    The run's lock, see `sweep.executors.remains`, is held by being open.
    """
    _die_with(parent)
    for number in (pipe, *([] if lock is None else [lock])):
        os.set_inheritable(number, False)  # else a process that it starts keeps it open
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's, a scheduler's: sent to all
        signal.signal(number, signal.SIG_IGN)
    with Connection(pipe) as connection:
        try:
            given = from_json(Assignment, receive(connection)["assignment"])
            work(given, LoggingDriver(connection))
            return 0
        except InputError as error:
            send(connection, {"say": "refused", "input_error": str(error)})
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return DRIVER_GONE
        except Exception as error:
            traceback.print_exc()
            send(connection, {"say": "broken", "error": f"{type(error).__name__}: {error}"})
    return 1


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when the driver dies, also when it died just now."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(DRIVER_GONE)


if __name__ == "__main__":
    code = main(*map(int, sys.argv[1:]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # libraries would tidy up for seconds what dies with the process
