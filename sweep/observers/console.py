"""The terminal: a live table where there is one, plain lines with a time where there is not.

Nothing that a user, a model or a data set wrote is obeyed as markup or as a control sequence.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from sweep.config import SweepConfig
from sweep.observers import Closed, Opened
from sweep.observers.closing import closing
from sweep.observers.console_table import Loading, Preparing, Running
from sweep.observers.opening import headline, opening
from sweep.observers.tally import Tally
from sweep.results import wording
from sweep.results.wording import clean, here
from sweep.streams import Steady
from trials.contract import Report, TrialConfig, TrialResult, Verdict

SPINNING_PER_S = 8.0  # pictures while there is little to draw
DRAWING_PER_S = 2.0  # of the table: 10 to 40 ms each, taken from the driver
WORTH_SAYING_S = 0.1  # work before the first trial that took less leaves no line
PROGRESS_EVERY_S = 10.0  # between two plain lines on the same long work
PLAIN_WIDTH = 120  # cells of tables where there is no terminal to ask


def log_file(config: SweepConfig) -> Path:
    """Where the plain lines of all runs of the study are kept."""
    return config.study_dir / "logs" / "sweep.log"


def build_console(config: SweepConfig, stream: IO[str] | None = None) -> LiveConsole | PlainConsole:
    """The console that suits the stream (standard output); says its first line at once."""
    goes_on = None if config.dry_run else f"the sweep goes on, see {here(log_file(config))}"
    steady = Steady(stream or sys.stdout, goes_on)
    stream = cast(IO[str], steady)
    if stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown"):
        return LiveConsole(config, stream)
    return PlainConsole(config, stream)


class LiveConsole:
    """A table that stays in place while what is worth keeping scrolls above it."""

    def __init__(self, config: SweepConfig, stream: IO[str], width: int | None = None) -> None:
        self.console = Console(file=stream, highlight=False, markup=False, width=width)
        self.tally: Tally | None = None
        self._config = config
        self._lock = threading.RLock()  # the refreshing thread reads what the driver's writes
        self._loading: dict[str, Loading] = {}
        self._began = time.monotonic()
        self._preparing = Preparing()
        self._print(Text(headline(config), "bold"))
        self._live = self._start_live(SPINNING_PER_S)

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Long work of a worker; the finished piece before it stays on the screen."""
        with self._lock:
            last = self._loading.get(worker)
            if last is not None and last.what == what:
                last.done, last.total = done, total
                return
            self._loading[worker] = Loading(what, done, total)
        if last is not None and self.tally is None and last.seconds >= WORTH_SAYING_S:
            self._print(last.finished())

    def opened(self, opened: Opened) -> None:
        """Says what was found; the table follows."""
        with self._lock:
            waiting = [] if self.tally else list(self._loading.values())
            self._loading.clear()
        self._live.stop()
        for loading in waiting[:1]:
            self._print(loading.finished())
        self._print(Text())
        self._print(opening(opened))
        with self._lock:
            self.tally = Tally(opened)
        self._live = self._start_live(DRAWING_PER_S)

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """A row more."""
        with self._lock:
            self._loading.pop(worker, None)
            if self.tally:
                self.tally.started(trial, params, worker)

    def reported(self, report: Report, verdict: Verdict) -> None:
        """A tick more."""
        with self._lock:
            if self.tally:
                self.tally.reported(report, verdict)

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """A trial that ended."""
        with self._lock:
            if self.tally:
                self.tally.finished(trial, result)

    def closed(self, closed: Closed) -> None:
        """The leaderboard takes the table's place."""
        self._live.stop()
        opened = self.tally.opened if self.tally else None
        page = closing(self._config, opened, closed, time.monotonic() - self._began)
        if page is not None:
            self.page(page)

    def page(self, page: RenderableType) -> None:
        """What takes the place of the table, or of the work before it."""
        self._live.stop()
        self.console.print(page, crop=False)  # commands stay whole, to be copied

    def stop(self) -> None:
        """Gives the terminal back."""
        self._live.stop()

    def note(self, text: str) -> None:
        """A line above the table."""
        self._print(Text(clean(text), "yellow"))

    def _print(self, item: RenderableType) -> None:
        self.console.print(item)

    def _start_live(self, refreshes_per_s: float) -> Live:
        live = Live(
            get_renderable=self._view,
            console=self.console,
            refresh_per_second=refreshes_per_s,
            transient=True,
        )
        live.start(refresh=True)
        return live

    def _view(self) -> RenderableType:
        with self._lock:
            height = self.console.height
            if self.tally is None:
                return self._preparing.view(list(self._loading.items()), self._began)
            elapsed = time.monotonic() - self._began
            return Running(self.tally, list(self._loading.items()), elapsed, height)


class PlainConsole:
    """One line for each event, with its time and without control codes: for pipes, files and CI."""

    def __init__(
        self,
        config: SweepConfig,
        stream: IO[str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        width = None if os.environ.get("COLUMNS") else PLAIN_WIDTH
        self.console = Console(
            file=stream,
            width=width,
            color_system=None,
            force_terminal=False,
            highlight=False,
            markup=False,
        )
        self.tally: Tally | None = None
        self._config, self._now = config, now
        self._said: dict[str, tuple[str, float]] = {}  # worker -> work, when last said
        self._began = time.monotonic()
        self.note(headline(config))

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """A line when work begins, then one every few seconds."""
        last, said = self._said.get(worker, ("", 0.0))
        if last == what and time.monotonic() - said < PROGRESS_EVERY_S:
            return
        self._said[worker] = (what, time.monotonic())
        how_far = f" {done:,}" + (f" of {total:,}" if total else "") if done else ""
        self.note(f"{worker}: {what}{how_far}")

    def opened(self, opened: Opened) -> None:
        """Says what was found."""
        self.tally = Tally(opened)
        self.page(opening(opened))

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """A trial and its parameters."""
        if self.tally:
            self.tally.started(trial, params, worker)
        again = f" again (attempt {trial.attempt + 1})" if trial.attempt else ""
        self.note(f"trial {trial.number} started{again} on {worker}: {wording.params(params)}")

    def reported(self, report: Report, verdict: Verdict) -> None:
        """A tick and its loss."""
        if self.tally is None:
            return
        self.tally.reported(report, verdict)
        baseline = self.tally.opened.setup.baseline_loss
        self.note(
            f"trial {report.trial} tick {report.tick}/{self.tally.ticks}: "
            f"loss {wording.loss(report.eval_loss)} "
            f"({wording.below(baseline, report.eval_loss)} the untouched base), "
            f"{report.examples:,} examples, {wording.duration(report.seconds)}"
        )

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """A trial's outcome and what is left."""
        if self.tally is None:
            return
        before = self.tally.best
        record = self.tally.finished(trial, result)
        news = ", the best so far" if self.tally.best is not before else ""
        ending = wording.ending(trial.number, record.outcome, record.reason)
        loss = "" if record.reason else f", loss {wording.loss(record.eval_loss)}"
        left = self.tally.remaining_s()
        about = f", about {wording.duration(left)} left" if left else ""
        used = "".join(f", {part}" for part in self.tally.budgets())
        trials = f"{self.tally.done:,} of {self.tally.total:,} trials"
        self.note(f"{ending}{loss}{news} ({trials}{about}{used})")

    def closed(self, closed: Closed) -> None:
        """The leaderboard and what to go on with."""
        opened = self.tally.opened if self.tally else None
        page = closing(self._config, opened, closed, time.monotonic() - self._began)
        if page is not None:
            self.page(page)

    def stop(self) -> None:
        """There is nothing to give back."""

    def page(self, page: RenderableType) -> None:
        """Lines without control codes."""
        with self.console.capture() as capture:
            self.console.print(page, crop=False)
        lines = (line.rstrip() for line in capture.get().splitlines())
        self.console.print(Text("\n".join(lines)), soft_wrap=True)

    def note(self, text: str) -> None:
        """One line with its time."""
        line = f"{self._now():%H:%M:%S}  {clean(text)}"
        self.console.print(Text(line), soft_wrap=True)
