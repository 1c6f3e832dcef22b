"""The process that talks to W&B: reads events as JSON lines, writes one run for each trial.

python -m sweep.observers.wandb_process < events      (started by `sweep.observers.wandb`)

It ends when its input does, once it has written what arrived; ORPHAN_S after its driver's death at
the latest. Where the server refuses or does not answer, it goes on offline and says so once.
"""

from __future__ import annotations

import glob
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from sweep.observers.wandb_server import unreachable

INIT_TIMEOUT_S = 15.0  # for the server to answer; below what the driver waits for at the end
FINISH_TIMEOUT_S = 15.0  # for a run's upload; the rest stays on disk to be synced
ORPHAN_S = 20.0  # to write down what has arrived after the driver's death
Mode = Literal["online", "offline"]
QUEUE_LIMIT = 500  # events read ahead; the others wait in the driver
NICENESS = 5  # training goes first


@dataclass(slots=True)
class Writer:
    """Turns events into runs. A run that fails is left out; the others go on."""

    answers: IO[str]
    session: dict[str, Any] = field(default_factory=dict)
    runs: dict[int, Any] = field(default_factory=dict)  # trial number -> live run
    started: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    logged: dict[int, int] = field(default_factory=dict)  # trial number -> examples logged so far
    offline: bool = False
    stuck: bool = False  # the server was there and is not any more
    troubles: int = 0

    def show(self, event: dict[str, Any]) -> None:
        """One event. Trouble is said once and never raised."""
        try:
            getattr(self, f"_{event.pop('kind')}")(**event)
        except Exception as error:
            self.troubles += 1
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if self.troubles == 1:
                why = _short(f"{type(error).__name__}: {error}")
                self.answer(note=f"W&B: {why}; the sweep goes on")

    def close(self) -> None:
        """Ends the runs that are still live: trials that were stopped without a word."""
        for number in list(self.runs):
            self._end(number, failed=False)

    def answer(self, **answer: Any) -> None:
        """Says something to the driver, which may be gone."""
        try:
            print(json.dumps(answer), file=self.answers, flush=True)
        except OSError:
            pass

    def _open(self, **session: Any) -> None:
        self.session = session
        self.offline = session["mode"] == "offline"
        os.environ["WANDB_MODE"] = session["mode"]  # offline, its telemetry stays silent too

    def _started(self, trial: int, attempt: int, **run: Any) -> None:
        self.started[trial] = run
        if trial in self.runs:
            return  # a later attempt of a trial that this process knows: the same run goes on
        if attempt and self.offline:
            _discard(self.session["dir"], run["id"])
        self.runs[trial] = self._init(run)
        self.logged[trial] = int(self.runs[trial].summary.get("examples") or 0)

    def _reported(self, trial: int, tick: int, rows: list[dict[str, Any]]) -> None:
        past = self.started[trial]["past"][: tick - 1]
        if not self.logged[trial]:
            self._log(trial, [{"examples": int(e), "eval_loss": x} for e, x in past])
        self._log(trial, rows)

    def _finished(
        self, trial: int, rows: list[dict[str, Any]], summary: dict[str, Any], failed: bool
    ) -> None:
        if trial not in self.runs:
            return
        self._log(trial, rows)
        self.runs[trial].summary.update(summary)
        self._end(trial, failed)

    def _log(self, trial: int, rows: list[dict[str, Any]]) -> None:
        """Logs what is new: a later attempt trains again what an earlier one has logged."""
        last = self.logged[trial]
        for row in rows:
            if row["examples"] > last:
                self.runs[trial].log(row)
                self.logged[trial] = max(self.logged[trial], row["examples"])

    def _init(self, run: Mapping[str, Any]) -> Any:
        if not self.offline and (trouble := unreachable()):
            self._go_offline(trouble)  # asked first: a run id that failed online is taken
        if not self.offline:
            try:
                return _new_run(self.session, run, "online")
            except Exception as error:
                self._go_offline(f"{type(error).__name__}: {error}")
        return _new_run(self.session, run, "offline")

    def _go_offline(self, trouble: str) -> None:
        self.offline = self.stuck = True
        os.environ["WANDB_MODE"] = "offline"
        print(trouble, file=sys.stderr, flush=True)
        self.answer(note=f"W&B goes on offline: {_short(trouble)}", unsent="offline")

    def _end(self, number: int, failed: bool) -> None:
        run = self.runs.pop(number)
        online = not run.offline
        began = time.monotonic()
        run.finish(exit_code=int(failed))
        if online and time.monotonic() - began >= FINISH_TIMEOUT_S:
            self.stuck = True
            self.answer(unsent=run.id)


def main() -> int:
    """Reads events until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to end
    events, answers = _private_streams()
    os.nice(NICENESS)
    os.environ.update(WANDB_CONSOLE="off", WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")
    writer = Writer(answers)
    for event in _events(events):
        writer.show(event)
    writer.close()
    if writer.stuck:
        os._exit(0)  # W&B's own end would wait for the server
    return 0


def _events(source: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The events, read by a thread so that the driver's death is noticed."""
    waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUE_LIMIT)
    threading.Thread(target=_read, args=(source, waiting), daemon=True).start()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    while (event := waiting.get()) is not None:
        yield event


def _read(source: IO[bytes], waiting: queue.Queue[dict[str, Any] | None]) -> None:
    for line in source:
        try:
            event = json.loads(line)
        except ValueError:
            break  # half a line: the driver died while it wrote
        waiting.put(event)
    waiting.put(None)


def _end_with(driver: int) -> None:
    """Ends this process some time after its driver, whatever it is waiting for."""
    while os.getppid() == driver:
        time.sleep(1.0)
    time.sleep(ORPHAN_S)
    os._exit(1)


def _private_streams() -> tuple[IO[bytes], IO[str]]:
    """Events and answers, out of reach of other code, which reads nothing and prints to the log."""
    events, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return events, answers


def _new_run(session: Mapping[str, Any], run: Mapping[str, Any], mode: Mode) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        finish_timeout=FINISH_TIMEOUT_S,
        init_timeout=INIT_TIMEOUT_S,
        save_code=False,
        silent=True,
        symlink=False,
        use_dot_wandb=False,
        x_disable_meta=True,  # the command line and what is in it stays here
        x_disable_stats=True,  # of the driver's machine: the wrong one
        x_save_requirements=False,
    )
    started = wandb.init(
        allow_val_change=True,
        config=dict(run["config"]),
        dir=session["dir"],
        entity=session["entity"],
        group=session["group"],
        id=run["id"],
        job_type="trial",
        mode=mode,
        name=run["name"],
        project=session["project"],
        reinit="create_new",
        resume="allow" if mode == "online" else None,
        settings=settings,
        tags=session["tags"],
    )
    started.define_metric("examples")
    started.define_metric("*", step_metric="examples")
    return started


def _discard(folder: str, run_id: str) -> None:
    """Deletes what a crash left of a run: synced after its successor, it would overwrite it."""
    for old in glob.glob(os.path.join(glob.escape(folder), "wandb", f"offline-run-*-{run_id}")):
        shutil.rmtree(old, ignore_errors=True)


def _short(text: str) -> str:
    return " ".join(text.split())[:200]


if __name__ == "__main__":
    sys.exit(main())
