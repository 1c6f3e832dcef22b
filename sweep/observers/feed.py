"""A process fed with JSON lines: `put` never waits, and nothing it does can fail a sweep.

The other side may be slow, stuck or dead. Events wait in a bounded queue; when that is full those
that may be lost are lost, and counted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sweep

LIMIT = 5_000  # droppable events waiting; more than a stuck receiver is worth
GRACE_S = 2.0  # between being told to end and being killed


class Feed:
    """Starts `python -m module` and sends it events. `note` hears each trouble once.

    The process answers with JSON lines, handed to `answered`. It must end when its input does.
    """

    def __init__(
        self,
        module: str,
        log: Path,
        note: Callable[[str], None],
        answered: Callable[[Mapping[str, Any]], None],
        limit: int = LIMIT,
    ) -> None:
        self.dropped = 0
        self._note, self._answered, self._log, self._limit = note, answered, log, limit
        self._events: deque[Mapping[str, Any] | None] = deque()
        self._wake = threading.Condition()
        self._ending = self._broken = False
        self._process = _start(module, log)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, event: Mapping[str, Any], *, droppable: bool = False) -> None:
        """Queues an event; returns at once."""
        with self._wake:
            if self._broken:
                return
            if not droppable or len(self._events) < self._limit:
                self._events.append(event)
                self._wake.notify()
                return
            self.dropped += 1
            first = self.dropped == 1
        if first:
            self._note("W&B does not keep up: some points will be missing there. All are stored.")

    def close(self, timeout_s: float) -> bool:
        """Ends the input and waits for the process; False if it had to be ended instead.

        True, too, if it broke down before: that is noted already.
        """
        with self._wake:
            self._ending = True
            self._events.append(None)
            self._wake.notify()
        try:
            self._process.wait(timeout_s)
            self._join()  # its last answers
        except BaseException:  # out of time, or a user who does not want to wait
            self.stop()
            return False
        return True

    def stop(self) -> None:
        """Ends the process, and those that it started, now."""
        if self._process.poll() is not None:
            return
        with self._wake:
            self._ending = True
            self._events.append(None)
            self._wake.notify()
        _signal_group(self._process, signal.SIGTERM)
        try:
            self._process.wait(GRACE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        _signal_group(self._process, signal.SIGKILL)  # what it left behind, too
        self._process.wait(GRACE_S)
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(GRACE_S)

    def _write(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                while (event := self._next()) is not None:
                    pipe.write(json.dumps(event).encode() + b"\n")
                    pipe.flush()
        except (OSError, ValueError):
            pass  # the process ended: the reader says so

    def _next(self) -> Mapping[str, Any] | None:
        with self._wake:
            while not self._events:
                self._wake.wait()
            return self._events.popleft()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                self._answer(line)
        code = self._process.wait()
        if not self._ending or code > 0:
            self._break(code)

    def _answer(self, line: bytes) -> None:
        try:
            self._answered(json.loads(line))
        except ValueError:
            pass  # not ours

    def _break(self, code: int) -> None:
        with self._wake:
            self._broken = True
            self._events.clear()
            self._events.append(None)
            self._wake.notify()
        self._note(f"W&B's process ended early (exit code {code}); the sweep goes on. {self._log}")


def _start(module: str, log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is the driver's, which then closes the input."""
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(Path(sweep.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)},
            start_new_session=True,
        )


def _signal_group(process: subprocess.Popen[bytes], which: signal.Signals) -> None:
    try:
        os.killpg(process.pid, which)
    except (ProcessLookupError, PermissionError):
        pass
