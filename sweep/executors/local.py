"""One process per device of this machine; a dead or silent one is replaced.

The first worker prepares alone, so that bad input is met once; then the others start.
"""

from __future__ import annotations

import contextlib
import time
from multiprocessing.connection import Connection, wait

from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.executors import WorkerError
from sweep.executors.devices import devices, shares, threads_of
from sweep.executors.pipe import Message, answer, receive, send
from sweep.executors.worker_process import WorkerProcess, how_it_ended
from sweep.space import assignment
from trials.contract import InputError, Turn

LOOK_S = 0.5  # between two looks at processes that say nothing
MOST_FALSE_STARTS = 2  # workers in a row that die without a trial in their hands


class Local:
    """Workers of one sweep on this machine."""

    def __init__(self, config: SweepConfig, driver: SweepDriver) -> None:
        self._config, self._driver = config, driver
        self._devices = shares(devices(config.device), config.executor.workers)
        self._workers: dict[Connection, WorkerProcess] = {}
        self._false_starts = 0
        self._killed = False

    def run(self) -> None:
        """See `sweep.executors.Executor`."""
        try:
            self._start(0)
            while self._workers and not self._killed:
                for ready in wait(list(self._workers), timeout=LOOK_S):
                    assert isinstance(ready, Connection)
                    self._hear(self._workers[ready])
                self._look()
        finally:
            for worker in list(self._workers.values()):
                self._remove(worker, at_once=True)
                worker.forget()

    def kill(self) -> None:
        """See `sweep.executors.Executor`."""
        self._killed = True

    def _start(self, index: int) -> None:
        device, name = self._devices[index], f"worker-{index}"
        threads = threads_of(device, self._devices)
        given = assignment(self._config, worker=name, device=device, threads=threads)
        worker = WorkerProcess(given, self._config.study_dir / "logs" / f"{name}.log")
        self._workers[worker.connection] = worker

    def _hear(self, worker: WorkerProcess) -> None:
        """One message of a worker, answered; or its end."""
        try:
            message = receive(worker.connection)
        except (EOFError, OSError):
            self._gone(worker)
            return
        worker.heard_at = time.monotonic()
        say = message["say"]
        if say == "refused":
            worker.refusal = message["input_error"]
        elif say == "broken":
            worker.error = message["error"]
        elif say == "prepared":
            self._prepared(worker, message)
        else:
            self._reply(worker, answer(self._driver.connect(worker.name), message))

    def _prepared(self, worker: WorkerProcess, message: Message) -> None:
        """A refusal is sent too, so that the worker leaves by itself."""
        first = not self._driver.is_open
        try:
            answer(self._driver.connect(worker.name), message)
        except InputError as error:
            self._reply(worker, {"input_error": str(error)})
            return
        worker.prepared = True
        self._reply(worker, {"log": str(worker.log)})
        for index in range(1, len(self._devices)) if first else ():
            self._start(index)

    def _reply(self, worker: WorkerProcess, reply: Message) -> None:
        worker.dismissed = reply.get("turn") == Turn.DONE.value
        with contextlib.suppress(OSError):  # it died meanwhile: the closed pipe says so next
            send(worker.connection, reply)

    def _look(self) -> None:
        """Ends who is silent, dead without a word, or not needed any more."""
        self._driver.beat()
        patience = self._config.executor.patience_s
        for worker in list(self._workers.values()):
            busy = not worker.prepared or self._driver.holds_trials(worker.name)
            if self._driver.ending and not worker.prepared:
                self._remove(worker, at_once=True)
                worker.forget()
            elif busy and worker.silent_s > patience:
                worker.error = f"silent for {patience:g} s; executor.patience_s=... waits longer"
                self._gone(worker, at_once=True)
            elif worker.process.poll() is not None and not worker.connection.poll():
                self._gone(worker)

    def _gone(self, worker: WorkerProcess, *, at_once: bool = False) -> None:
        """A worker is no more: it left, or its trials are handed out again to another."""
        code = self._remove(worker, at_once=at_once)
        if worker.refusal is not None:
            worker.forget()
            raise InputError(worker.refusal)
        held = self._driver.holds_trials(worker.name)
        if worker.dismissed and not held:
            worker.forget()
            return
        why = worker.error or how_it_ended(code)
        self._driver.lost(worker.name, why)
        self._false_starts = 0 if held else self._false_starts + 1
        hopeless = not self._driver.is_open or self._false_starts >= MOST_FALSE_STARTS
        words = worker.last_words() if hopeless else ""
        worker.forget()
        if hopeless:
            where = f"{worker.name} on {worker.assignment.device}"
            raise WorkerError(f"{where} ended: {why}\n{words}")
        if not self._driver.ending:
            self._start(int(worker.name.rpartition("-")[2]))

    def _remove(self, worker: WorkerProcess, *, at_once: bool) -> int:
        self._workers.pop(worker.connection, None)
        return worker.end(at_once=at_once)
