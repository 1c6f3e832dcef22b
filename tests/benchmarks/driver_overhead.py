"""How long workers wait for the driver, as a share of their time; goal: below 1 %.

    python tests/benchmarks/driver_overhead.py [--trials 2000] [--seconds 10]

Every trial here takes no time at all: so many simulated trials are live at once in one study, the
driver (ask, report, tell, our tables, all observers but W&B's process) is called as workers would
call it, and each call is timed. The share is computed for trials of `--seconds`: what a trial waits
in all for its own calls, and for those of the others that come at the same moment (the driver
answers one after the other: with a load of x, one waits x / (1 - x) / 2 service times on average).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweep.config import SweepConfig, compose
from sweep.driver import SweepDriver
from sweep.observers import build_observers
from sweep.space import assignment
from trials.contract import Driver, TrialConfig
from trials.engines.simulated import SimulatedEngine, Slot, prepare


def main() -> None:
    """Prints one table for each number of live trials."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--few", type=int, default=150, help="trials with fewer live ones")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a real trial")
    parser.add_argument("--live", type=int, nargs="+", default=[1, 16, 64])
    given = parser.parse_args()
    print(
        "live trials  so far    ask ms  report ms  finish ms  s per trial  of it CPU  load  waiting"
    )
    for live in given.live:
        trials = given.trials if live == max(given.live) else given.few
        with tempfile.TemporaryDirectory() as folder:
            measure(configuration(Path(folder), trials), live, given.seconds)


def configuration(folder: Path, trials: int) -> SweepConfig:
    """The widest search there is, with the defaults of a real sweep."""
    return compose(
        ["+search=full", "engine=simulated", "tracking=none", "device=cpu", f"n_trials={trials}",
         f"results_dir={folder}"]
    )  # fmt: skip


def measure(config: SweepConfig, live: int, seconds: float) -> None:
    """Plays a whole sweep with `live` trials at once and prints what each call took."""
    with contextlib.redirect_stdout(io.StringIO()):
        observers = build_observers(config)
    driver = SweepDriver(config, observers)
    link = Timed(driver.connect("worker-0"))
    with contextlib.redirect_stdout(io.StringIO()):
        given = assignment(config, worker="worker-0", device="cpu")
        engine, setup = prepare(given, link)
        link.prepared(setup)
        rows = play(engine, link, live, config.limits.n_trials)
        driver.close()
    for row in rows:
        print(row.text(live, seconds), flush=True)


class Timed:
    """A driver whose calls are timed by name."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.took: dict[str, list[float]] = {}
        self.cpu = 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._driver, name)

        def timed(*args: Any) -> Any:
            began, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*args)
            finally:
                self.cpu += time.process_time() - cpu
                self.took.setdefault(name, []).append(time.perf_counter() - began)

        return timed


class Row:
    """Mean times of the calls since the last row."""

    def __init__(self, done: int, trials: int, link: Timed) -> None:
        took = link.took
        self.done, self.cpu = done, link.cpu / trials
        self.mean = {name: sum(times) / len(times) for name, times in took.items()}
        self.per_trial = sum(map(sum, took.values())) / trials

    def text(self, live: int, seconds: float) -> str:
        """The row as printed; the share is of a trial of so many seconds."""
        load = live * self.per_trial / seconds
        queue = load / (1 - load) / 2 if load < 1 and live > 1 else 0.0
        share = self.per_trial * (1 + queue) / seconds
        ask, report, finish = (self.mean[n] * 1e3 for n in ("next_trial", "report", "finish"))
        waiting = f"{share:7.2%}" if load < 1 else "too slow"
        return (
            f"{live:11d}  {self.done:6d}  {ask:8.1f}  {report:9.1f}  {finish:9.1f}  "
            f"{self.per_trial:11.3f}  {self.cpu:9.3f}  {load:4.0%}  {waiting}"
        )


def play(engine: SimulatedEngine, link: Timed, live: int, trials: int) -> list[Row]:
    """Trials in turn, tick by tick; a row at each milestone."""
    slots: deque[Slot] = deque()
    milestones = deque(n for n in (50, 150, 500, 1000, 1500, 2000) if n <= trials)
    rows, since, done = [], 0, 0
    link.took, link.cpu = {}, 0.0
    while True:
        while len(slots) < live and isinstance(trial := link.next_trial(), TrialConfig):
            slots.append(Slot(trial))
        if not slots:
            return rows
        slot = slots.popleft()
        if engine._lives_on(link, slot):
            slots.append(slot)
            continue
        done += 1
        if milestones and done >= milestones[0]:
            milestones.popleft()
            rows.append(Row(done, done - since, link))
            since = done
            link.took, link.cpu = {}, 0.0


if __name__ == "__main__":
    main()
