"""Runs one sweep: observers, driver and executor together, Ctrl-C, and the exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sweep.config import SweepConfig
from sweep.driver import SweepDriver
from sweep.ending import COMPLETE, FAILED, INTERRUPTED
from sweep.executors import AtOnce, Executor, WorkerError, executor
from sweep.observers import Closed, Observer, Opened, build_observers
from sweep.study import Standing, look


def run_sweep(config: SweepConfig, observer: Observer | None = None) -> int:
    """Runs the sweep to its end; the exit code says how that was.

    0: all trials are done; 1: it failed; 3: a budget is used up; 130: interrupted. Raises
    `InputError` where the user must change something, and then nothing is left behind.
    """
    standing = look(config)
    observer = observer or build_observers(config)
    if standing and standing.counted >= config.limits.n_trials and not standing.running:
        _show_finished(config, standing, observer)
        return COMPLETE
    return _run(config, SweepDriver(config, observer))


def _show_finished(config: SweepConfig, standing: Standing, observer: Observer) -> None:
    """The study has all its trials: nothing is loaded, its result is shown once more."""
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
    more = standing.counted + max(config.limits.n_trials // 2, 1)
    reason = f"the study has all its trials already; type n_trials={more} to extend it"
    observer.closed(Closed(complete=True, reason=reason, records=standing.records))


def _run(config: SweepConfig, driver: SweepDriver) -> int:
    workers = executor(config, driver)
    with _signals(driver, workers):
        try:
            workers.run()
        except WorkerError as error:
            driver.stop(FAILED, str(error))
        except AtOnce:
            pass  # the signal has said why
        except BaseException as error:
            driver.stop(FAILED, f"{type(error).__name__}: {error}")
            raise
        finally:
            ending = driver.close()
    return ending.code


@contextmanager
def _signals(driver: SweepDriver, workers: Executor) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) stops at the next reports, the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may be told
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: _interrupt(driver, workers))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(driver: SweepDriver, workers: Executor) -> None:
    again = driver.ending is not None
    driver.stop(INTERRUPTED, "interrupted")  # the terminal says how to go on
    if again or not driver.is_open:
        workers.kill()
    else:
        driver.note("Stopping at the next reports. Ctrl-C again: at once.")
