"""A process fed with JSON lines: `put` never waits, and nothing it does can fail a sweep.

The other side may be slow, stuck or dead. Events only say what to look at, so one that already
waits is not queued twice, and the queue stays short however slow the other side is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sweep

GRACE_S = 2.0  # between being told to end and being killed


class Feed:
    """Starts `python -m module` and sends it events. `note` hears once that it broke down.

    The process answers with JSON lines, handed to `answered`. It must end when its input does.
    `name` is the other side as users know it.
    """

    def __init__(
        self,
        module: str,
        name: str,
        log: Path,
        note: Callable[[str], None],
        answered: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.broken = False  # the process ended before it was told to
        self._name, self._note, self._answered, self._log = name, note, answered, log
        self._events: dict[bytes, None] = {}  # in order, each once
        self._wake = threading.Condition()
        self._ending = False
        self._process = _start(module, log)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, event: Mapping[str, Any]) -> None:
        """Queues an event, unless the same one waits already; returns at once."""
        with self._wake:
            if not self._ending:
                self._events.setdefault(json.dumps(event).encode() + b"\n")
                self._wake.notify()

    def close(self, timeout_s: float) -> bool:
        """Ends the input and waits for the process; False if it had to be ended instead.

        True, too, if it broke down before: that is noted already.
        """
        self._end()
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
        self._end()
        _signal_group(self._process, signal.SIGTERM)
        try:
            self._process.wait(GRACE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass  # then without asking
        _signal_group(self._process, signal.SIGKILL)  # what it left behind, too
        self._process.wait(GRACE_S)
        self._join()

    def _end(self) -> None:
        with self._wake:
            self._ending = True
            self._wake.notify()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(GRACE_S)

    def _write(self) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as pipe:
                while (event := self._next()) is not None:
                    pipe.write(event)
                    pipe.flush()
        except (OSError, ValueError):
            pass  # the process ended: the reader says so

    def _next(self) -> bytes | None:
        with self._wake:
            while not self._events and not self._ending:
                self._wake.wait()
            event = next(iter(self._events), None)
            if event is not None:
                del self._events[event]
            return event

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
            self.broken = self._ending = True
            self._events.clear()
            self._wake.notify()
        self._note(
            f"{self._name}'s process ended early (exit code {code}); the sweep goes on. {self._log}"
        )


def environment() -> dict[str, str]:
    """For a process of ours: it finds this package, and no client of a process above it."""
    paths = [str(Path(sweep.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    shared = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return shared | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def _start(module: str, log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is the driver's, which then closes the input."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
            start_new_session=True,
        )


def _signal_group(process: subprocess.Popen[bytes], which: signal.Signals) -> None:
    try:
        os.killpg(process.pid, which)
    except (ProcessLookupError, PermissionError):
        pass  # it is gone, and its number may be somebody else's
