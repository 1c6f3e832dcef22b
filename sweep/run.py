"""Runs one sweep: observers, driver and executor together, Ctrl-C, and the exit code."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sweep.budget import reached
from sweep.config import Limits, SweepConfig
from sweep.driver import SweepDriver
from sweep.ending import BUDGET, COMPLETE, FAILED, INTERRUPTED, Ending
from sweep.executors import AtOnce, Executor, WorkerError, executor
from sweep.observers import Closed, Observer, Opened, build_observers, stop
from sweep.secrets import masked
from sweep.store.runs import Used, used_by
from sweep.streams import goodbye
from sweep.study import Standing, look
from sweep.study.guard import StudyLost
from sweep.study.identity import refuse_other_inputs
from sweep.tracking.wandb.reference import with_data

STOPPING = "Stopping: every trial ends after its current step. Ctrl-C again: at once."
STUCK_S = 10.0  # after a second Ctrl-C, until the process is ended within whatever it does


def run_sweep(config: SweepConfig, observer: Observer | None = None) -> int:
    """Runs the sweep to its end; the exit code, one of `sweep.ending`, says how that was.

    Raises `InputError` where the user must change something, and then nothing is left behind.
    """
    config = with_data(config)
    standing = look(config)
    ending = _nothing_to_do(config.limits, standing) if standing else None
    if standing and ending and standing.configured is not None:
        refuse_other_inputs(config, standing.configured, standing.setup)
    if config.dry_run:
        from sweep.dry_run import dry_run

        return dry_run(config, standing, ending)
    observer = observer or build_observers(config)
    try:
        if standing and ending:
            _show_again(config, standing, observer, ending)
            return ending.code
        return _run(config, SweepDriver(config, observer))
    except KeyboardInterrupt:  # pressed once more, while all is being closed
        stop(observer)
        raise


def _nothing_to_do(limits: Limits, standing: Standing) -> Ending | None:
    """Why nothing needs to be loaded: the study has all its trials, or used up a budget."""
    if standing.counted >= limits.n_trials and not standing.running:
        more = f"n_trials={standing.counted + max(limits.n_trials // 2, 1)}"
        return Ending(code=COMPLETE, reason="the study has all its trials already", more=more)
    over = reached(limits, _used(limits, standing))
    return Ending(code=BUDGET, reason=over.reason, more=over.more) if over else None


def _used(limits: Limits, standing: Standing) -> Used:
    return used_by(standing.runs, limits.price_per_hour, standing.seconds)


def _show_again(
    config: SweepConfig, standing: Standing, observer: Observer, ending: Ending
) -> None:
    """What the study came to so far, as its last run showed it."""
    if standing.setup:
        observer.opened(
            Opened(
                config=config,
                study_uuid=standing.uuid,
                setup=standing.setup,
                first_rung=standing.first_rung,
                past=standing.records,
            )
        )
    observer.closed(
        Closed(
            complete=ending.code == COMPLETE,
            reason=ending.reason,
            more=ending.more,
            records=standing.records,
            used=_used(config.limits, standing),
        )
    )


def _run(config: SweepConfig, driver: SweepDriver) -> int:
    workers = executor(config, driver)
    try:
        with _signals(driver, workers):
            workers.run()
    except WorkerError as error:
        driver.stop(FAILED, str(error))
    except StudyLost as error:
        driver.lose(error)
    except AtOnce:
        pass  # the signal has said why
    except BaseException as error:
        driver.stop(FAILED, masked(f"{type(error).__name__}: {error}"))
        raise
    finally:
        ending = driver.close()  # a Ctrl-C now: do not wait for observers
    return ending.code


@contextmanager
def _signals(driver: SweepDriver, workers: Executor) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) stops at the next steps, the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may be told
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    stuck = threading.Timer(STUCK_S, _leave)
    stuck.daemon = True
    for number in before:
        signal.signal(number, lambda *_: _interrupt(driver, workers, stuck))
    try:
        yield
    finally:
        stuck.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(driver: SweepDriver, workers: Executor, stuck: threading.Timer) -> None:
    again = driver.ending is not None
    then = "" if driver.is_open else "; the same command goes on"  # else the leaderboard says so
    driver.stop(INTERRUPTED, f"interrupted{then}")
    if again or not driver.is_open:
        if not driver.at_once:  # it may be pressed again while this is answered
            driver.at_once = True
            stuck.start()
        workers.kill()
    else:  # in a thread, for what was interrupted may hold the terminal
        threading.Thread(target=driver.note, args=(STOPPING,), daemon=True).start()


def _leave() -> None:
    """A database that gives no answer would keep the process; no end of it loses anything."""
    os.write(2, f"{goodbye()}\n".encode())
    os._exit(INTERRUPTED)
