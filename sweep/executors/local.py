"""One process per device of this machine; a dead or silent one is replaced.

The first worker prepares alone, so that bad input is met once; then the others start.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from multiprocessing.connection import Connection, wait

from sweep.config import SweepConfig
from sweep.connection import Answering
from sweep.executors import WorkerError, remains
from sweep.executors.devices import shares, threads_of, too_many_for_cpu
from sweep.executors.pipe import Message, answer, receive, send
from sweep.executors.worker_process import WorkerProcess, how_it_ended
from sweep.results.wording import size
from sweep.space import assignment
from trials import host
from trials.contract import InputError, Turn

MOST_BEHIND = 1000  # changes that wait for a moment in which no worker does
LOOK_S = 0.5  # between two looks at processes that say nothing
MOST_FALSE_STARTS = 2  # in a row of one worker, dying with no trial in its hands


class Local:
    """Workers of one sweep on this machine."""

    def __init__(self, config: SweepConfig, driver: Answering) -> None:
        self._config, self._driver = config, driver
        self._take(shares(config))
        driver.most_behind = MOST_BEHIND
        self._workers: dict[Connection, WorkerProcess] = {}
        self._false_starts: Counter[int] = Counter()  # by the worker's index
        self._lock: int | None = None
        self._done = False  # a worker was told so: none is needed for anything new
        self._killed = False

    def run(self) -> None:
        """See `sweep.executors.Executor`."""
        remains.wait_for_others(self._driver.note)
        if self._config.engine.name != "simulated" and (known := too_many_for_cpu(self._devices)):
            self._driver.note(known)
        with remains.held() as self._lock:
            try:
                self._start(0)
                self._serve()
            finally:
                for worker in list(self._workers.values()):
                    self._remove(worker, at_once=True)
                    worker.forget()

    def kill(self) -> None:
        """See `sweep.executors.Executor`."""
        self._killed = True

    def _take(self, workers: list[str]) -> None:
        """Each worker's device from now on."""
        self._devices = workers
        self._driver.devices, self._driver.workers = len(set(workers)), len(workers)

    def _serve(self) -> None:
        while self._workers and not self._killed:
            heard = wait(list(self._workers), timeout=0)
            if not (heard or self._driver.catch_up()):
                heard = wait(list(self._workers), timeout=LOOK_S)
            for ready in heard:
                assert isinstance(ready, Connection)
                self._hear(self._workers[ready])
            self._look()

    def _start(self, index: int) -> None:
        device, name = self._devices[index], f"worker-{index}"
        threads = threads_of(device, self._devices)
        given = assignment(self._config, worker=name, device=device, threads=threads,
                           sharing=self._devices.count(device))
        log = self._config.study_dir / "logs" / f"{name}.log"
        worker = WorkerProcess(given, log, self._lock)
        self._workers[worker.connection] = worker

    def _hear(self, worker: WorkerProcess) -> None:
        """One message of a worker, answered; or its end."""
        try:
            message = receive(worker.connection)
        except (EOFError, OSError):
            self._gone(worker)
            return
        say = message["say"]
        if say in ("report", "finish"):
            self._false_starts[worker.index] = 0
        if say == "refused":
            worker.refusal = message["input_error"]
        elif say == "broken":
            worker.error = message["error"]
        elif say == "prepared":
            self._prepared(worker, message)
        else:
            self._reply(worker, answer(self._driver.connect(worker.name), message))
        worker.heard_at = time.monotonic()  # not before: the answer may have waited for a database

    def _prepared(self, worker: WorkerProcess, message: Message) -> None:
        """A refusal is sent too, so that the worker leaves by itself."""
        first = not self._driver.is_open
        if first:
            self._leave_memory(worker)
        try:
            answer(self._driver.connect(worker.name), message)
        except InputError as error:
            self._reply(worker, {"input_error": str(error)})
            return
        worker.prepared = True
        self._reply(worker, {"log": str(worker.log)})
        for index in range(1, len(self._devices)) if first else ():
            self._start(index)

    def _leave_memory(self, ready: WorkerProcess) -> None:
        """Has no more workers than the host's memory holds, going by the one that is ready."""
        each, free, wanted = ready.own_bytes, host.free_bytes(), len(self._devices)
        if each and (fit := 1 + free // each) < wanted:
            self._take(self._devices[:fit])
            self._driver.note(
                f"{fit} of {wanted} workers start: one takes {size(each)} of this host's memory, "
                f"of which {size(free)} are free"
            )

    def _reply(self, worker: WorkerProcess, reply: Message) -> None:
        self._done = self._done or reply.get("turn") == Turn.DONE.value
        with contextlib.suppress(OSError):  # it died meanwhile: the closed pipe says so next
            send(worker.connection, reply)

    def _look(self) -> None:
        """Ends who is silent, dead without a word, or not needed any more."""
        self._driver.beat()
        over = self._done or self._driver.ending is not None
        patience = self._config.executor.patience_s
        for worker in list(self._workers.values()):
            if not worker.prepared:
                worker.notice_work()
            if over and not worker.prepared:
                self._remove(worker, at_once=True)
                worker.forget()
            elif worker.silent_s > patience:  # also one without a trial, which asks for one
                worker.error = f"silent for {patience:g} s; executor.patience_s=... waits longer"
                self._gone(worker, at_once=True)
            elif worker.process.poll() is not None and not worker.connection.poll():
                self._gone(worker)

    def _gone(self, worker: WorkerProcess, *, at_once: bool = False) -> None:
        """A worker is no more: it left, or its trials are handed out again to another."""
        code = self._remove(worker, at_once=at_once)
        held = self._driver.holds_trials(worker.name)
        if self._done and not held:
            worker.forget()
            return
        if worker.refusal is not None and not self._workers:
            worker.forget()
            raise InputError(worker.refusal)
        starved = code == -signal.SIGKILL and worker.starved
        why = worker.refusal or worker.error or how_it_ended(code, starved=starved)
        self._driver.lost(worker.name, why, memory=starved)
        self._false_starts[worker.index] = 0 if held else self._false_starts[worker.index] + 1
        self._replace(worker, why, killed=code < 0)

    def _replace(self, worker: WorkerProcess, why: str, *, killed: bool) -> None:
        """Another one in its place; where none can start the others go on, as long as there are."""
        refused = worker.refusal is not None  # and would again
        hopeless = self._false_starts[worker.index] >= MOST_FALSE_STARTS
        hopeless = hopeless or refused or not (self._driver.is_open or killed)
        said = f"{worker.name} on {worker.assignment.device} ended: {why}"
        words = f"\n{worker.last_words()}" if hopeless and not refused else ""
        worker.forget()
        if hopeless and not self._workers:
            raise WorkerError(f"{said}{words}")
        if hopeless:
            self._driver.gave_up(worker.name, f"{said}; it is given up, the others go on{words}")
        elif not self._driver.ending:
            if self._false_starts[worker.index]:  # no trial's line has told it
                self._driver.note(f"{said}; another takes its place")
            self._start(worker.index)

    def _remove(self, worker: WorkerProcess, *, at_once: bool) -> int:
        self._workers.pop(worker.connection, None)
        return worker.end(at_once=at_once)
