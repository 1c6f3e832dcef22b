"""The live table: what runs now, the best so far, the latest that ended, the time left."""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sweep.observers.tally import Tally
from sweep.results import leaderboard, wording
from sweep.results.leaderboard import Board
from sweep.results.wording import clean, duration
from sweep.store import TrialRecord

SPARE_LINES = 11  # of the terminal's height, for all but rows and a line left free
LOADING_SHOWN = 4  # workers


@dataclass(slots=True)
class Loading:
    """Long work of one worker; `total` 0 when unknown."""

    what: str
    done: int
    total: int
    since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.since

    def finished(self) -> Text:
        """The line that stays once it is done."""
        return Text("✓ ", "green") + Text(f"{clean(self.what)}  {self.seconds:.1f} s", "dim")


class Preparing:
    """What is shown before there is anything to put into a table."""

    def __init__(self) -> None:
        self._spinner = Spinner("dots", style="cyan")

    def view(self, loading: Sequence[tuple[str, Loading]], began: float) -> RenderableType:
        """A line for each worker that is loading, or that the workers are starting."""
        if not loading:
            starting = Loading("starting the workers", 0, 0, began)
            return loading_row([("", starting)], self._spinner)
        return loading_row(loading[:LOADING_SHOWN], self._spinner)


def loading_row(loading: Sequence[tuple[str, Loading]], spinner: Spinner) -> RenderableType:
    """Spinner, what, bar and time of each worker's work."""
    now = time.monotonic()
    grid = Table.grid(padding=(0, 1))
    for worker, work in loading:
        frame = spinner.render(now)
        bar: RenderableType = Text("")
        how_far = f"{work.done:,}" if work.done else ""
        if work.total:
            bar = ProgressBar(total=work.total, completed=min(work.done, work.total), width=24)
            how_far = f"{work.done:,}/{work.total:,}"
        name = f"{clean(worker)} {clean(work.what, limit=48)}".strip()
        grid.add_row(frame, Text(name), bar, Text(how_far), Text(duration(work.seconds), "dim"))
    return grid


class Running:
    """One picture of the sweep; never higher than the terminal, so that it does not flicker."""

    def __init__(
        self,
        tally: Tally,
        loading: Sequence[tuple[str, Loading]],
        elapsed_s: float,
        height: int,
    ) -> None:
        self.tally, self.loading = tally, loading
        self.elapsed_s, self.height = elapsed_s, height
        self.used = tally.budgets()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tally = self.tally
        yield _line(self._title())
        bar = ProgressBar(total=max(1, tally.total), completed=min(tally.done, tally.total))
        yield Padding(bar, 0)
        yield _line(self._best())
        if self.used:
            yield _line(Text(f"used {' · '.join(self.used)}", "dim"))
        if self.loading:
            yield loading_row(self.loading[:LOADING_SHOWN], _SPINNER)
        yield Text()
        yield self._table(options.max_width)

    def _title(self) -> Text:
        tally = self.tally
        left = tally.remaining_s()
        counts = [
            f"{tally.done:,} of {tally.total:,} trials",
            f"{duration(self.elapsed_s)} elapsed",
            "time left not known yet" if left is None else f"about {duration(left)} left",
        ]
        for outcome in ("pruned", "diverged", "infeasible", "failed"):
            if tally.outcomes[outcome]:
                counts.append(f"{tally.outcomes[outcome]} {outcome}")
        name = clean(tally.opened.config.study)
        return Text(name, "bold") + Text("  " + " · ".join(counts), "not bold")

    def _best(self) -> Text:
        tally, record = self.tally, self.tally.leader()
        baseline = tally.opened.setup.baseline_loss
        if record is None:
            return Text(f"the untouched base has loss {wording.loss(baseline)}", "dim")
        complete = record is tally.best
        text = Text("best " if complete else "ahead ", "dim")
        text.append(wording.loss(record.eval_loss), "bold green" if complete else "bold")
        gain = wording.below(baseline, record.eval_loss)
        text.append(f" (trial {record.number})  {gain} the untouched base")
        text.append(f" {wording.loss(baseline)}", "dim")
        if record.eval_accuracy is not None:
            text.append(f" · {wording.share(record.eval_accuracy)} exact")
        return text + Text(f" · {wording.params(record.params)}")

    def _table(self, width: int) -> RenderableType:
        others = len(self.loading[:LOADING_SHOWN]) + bool(self.used)
        rows = self._rows(max(3, self.height - SPARE_LINES - others))
        board = Board(
            dimensions=[d.name for d in self.tally.opened.config.space.dimensions],
            ticks=self.tally.ticks,
            baseline_loss=self.tally.opened.setup.baseline_loss,
        )
        sections = [section for section in rows if section]
        if not sections:
            return Text("no trial yet", "dim")
        shown: list[TrialRecord | None] = list(sections[0])
        for section in sections[1:]:
            shown += [None, *section]
        latest = _line(self._latest())
        hidden = len(self.tally.records) - sum(len(section) for section in sections)
        more = Text(f"… and {wording.plural(hidden, 'trial')} more", "dim") if hidden else Text()
        return Group(leaderboard.table(board, shown, width), more, latest)

    def _latest(self) -> Text:
        """The last trial that ended early, with all of its reason."""
        record = self.tally.latest
        if record is None or not record.reason:
            return Text()
        return Text(wording.ending(record.number, record.outcome, record.reason), "dim")

    def _rows(self, room: int) -> tuple[list[TrialRecord], ...]:
        """Running ones, the best, the latest of the others; as many as there is room for."""
        tally = self.tally
        running = [self._now_running(number) for number in tally.running]
        ended = [r for r in tally.records.values() if r.number not in tally.running]
        running = running[: max(room // 2, room - len(ended))]
        room -= len(running)
        others = [r for r in ended if not leaderboard.finished_well(r)]
        latest = heapq.nlargest(room, others, key=lambda r: r.finished_at or 0.0)
        complete = (r for r in ended if leaderboard.finished_well(r))
        best = leaderboard.ranked(complete, max(room - room // 2, room - len(latest)))
        return running, best, latest[: room - len(best)]

    def _now_running(self, number: int) -> TrialRecord:
        record = self.tally.records[number]
        elapsed = self.tally.now() - self.tally.since[number]
        where = f"on {self.tally.running[number]}"
        return dataclasses.replace(record, seconds=elapsed, reason=where)


_SPINNER = Spinner("dots", style="cyan")


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
