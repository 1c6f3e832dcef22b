"""How long workers wait for the driver, as a share of their time.

    python -m tests.benchmarks.driver_overhead [--trials 2000] [--seconds 10]

Every trial here takes no time at all: so many simulated trials are live at once in one study, the
driver (ask, report, tell, our tables, all observers but W&B's process) is called as workers would
call it, and each call is timed. The share is computed for trials of `--seconds`: what a trial waits
in all for its own calls, and for those of the others that come at the same moment (the driver
answers one after the other: with a load of x, one waits x / (1 - x) / 2 service times on average).
What can wait until nobody does, is done here at the end of each trial, and is not waited for.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sweep.config import SweepConfig, compose
from sweep.driver import SweepDriver
from sweep.executors.local import MOST_BEHIND
from sweep.observers import build_observers
from sweep.space import assignment
from tests.benchmarks.tables import table
from trials.contract import TrialResult
from trials.engines.simulated import prepare

COLUMNS = ("live trials", "trials so far", "ask ms", "report ms", "finish ms", "later ms",
           "s per trial", "of it CPU", "driver's load", "workers wait")
MILESTONES = (50, 150, 500, 1000, 1500, 2000)  # trials


def main() -> None:
    """Prints one table for each number of live trials."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--few", type=int, default=150, help="trials with fewer live ones")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a real trial")
    parser.add_argument("--live", type=int, nargs="+", default=[1, 16, 64])
    given = parser.parse_args()
    print(table(COLUMNS, []), end="")
    for live in given.live:
        trials = given.trials if live == max(given.live) else given.few
        with tempfile.TemporaryDirectory() as folder:
            measure(configuration(Path(folder), trials, live), live, given.seconds)


def configuration(folder: Path, trials: int, live: int) -> SweepConfig:
    """The widest search there is, with the defaults of a real sweep."""
    return compose(
        ["+search=full", "engine=simulated", f"engine.capacity={live}", "engine.seconds_per_tick=0",
         "tracking=none", "device=cpu", f"n_trials={trials}", f"results_dir={folder}"]
    )  # fmt: skip


def measure(config: SweepConfig, live: int, seconds: float) -> None:
    """Plays a whole sweep with `live` trials at once and prints what each call took."""
    with contextlib.redirect_stdout(io.StringIO()):
        observers = build_observers(config)
    driver = SweepDriver(config, observers)
    driver.most_behind = MOST_BEHIND
    link = Timed(driver, config.limits.n_trials)
    with contextlib.redirect_stdout(io.StringIO()):
        given = assignment(config, worker="worker-0", device="cpu")
        engine, setup = prepare(given, link)
        link.prepared(setup)
        link.restart()
        engine.run(link)
        driver.close()
    for row in link.rows:
        print(f"| {' | '.join(row.cells(live, seconds))} |", flush=True)


class Timed:
    """A driver whose calls are timed by name; `rows` has a row for each milestone."""

    def __init__(self, driver: SweepDriver, trials: int) -> None:
        self._driver, self._whole = driver.connect("worker-0"), driver
        self._milestones = deque(sorted({trials, *(n for n in MILESTONES if n < trials)}))
        self._done = self._since = 0
        self.rows: list[Row] = []
        self.restart()

    def restart(self) -> None:
        """Forgets what was timed."""
        self._since = self._done
        self.took: dict[str, list[float]] = {}
        self.cpu = 0.0

    def finish(self, result: TrialResult) -> None:
        """Ends a trial, and perhaps a row."""
        self._timed(self._driver.finish, result)
        while self._timed(self._whole.catch_up):
            pass
        self._done += 1
        if self._milestones and self._done >= self._milestones[0]:
            self._milestones.popleft()
            self.rows.append(Row(self._done, self._done - self._since, self))
            self.restart()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._timed, getattr(self._driver, name))

    def _timed(self, call: Callable[..., Any], *args: Any) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return call(*args)
        finally:
            self.cpu += time.process_time() - cpu
            self.took.setdefault(call.__name__, []).append(time.perf_counter() - began)


class Row:
    """Mean times of the calls since the last row."""

    def __init__(self, done: int, trials: int, link: Timed) -> None:
        took = link.took
        self.done, self.cpu = done, link.cpu / trials
        self.mean = {name: sum(times) / len(times) for name, times in took.items()}
        self.later = sum(took["catch_up"]) / trials
        self.per_trial = sum(map(sum, took.values())) / trials

    def cells(self, live: int, seconds: float) -> list[str]:
        """The row as printed; the share is of a trial of so many seconds."""
        load = live * self.per_trial / seconds
        queue = load / (1 - load) / 2 if load < 1 and live > 1 else 0.0
        share = (self.per_trial - self.later) * (1 + queue) / seconds
        times = [f"{self.mean[name] * 1e3:.1f}" for name in ("next_trial", "report", "finish")]
        times.append(f"{self.later * 1e3:.1f}")
        waiting = f"{share:.2%}" if load < 1 else "too slow"
        return [str(live), f"{self.done:,}", *times, f"{self.per_trial:.3f}", f"{self.cpu:.3f}",
                f"{load:.0%}", waiting]


if __name__ == "__main__":
    main()
