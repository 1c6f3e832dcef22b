"""The leaderboard: finished trials by loss, the others below with how far they came and why not on.

One renderer for the end of a sweep and for `python -m sweep.results`.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from sweep.results import wording
from sweep.results.tables import Column, fit, fits
from sweep.store import TrialRecord
from trials.contract import Outcome

STYLES = {
    "complete": "green",
    "pruned": "yellow",
    "diverged": "magenta",
    "infeasible": "magenta",
    "failed": "red",
    "stopped": "cyan",
    "running": "bold cyan",
}
MARKS = {
    "complete": "✓",
    "pruned": "✂",
    "diverged": "∞",
    "infeasible": "■",
    "failed": "✗",
    "stopped": "‖",
    "running": "▸",
}
CURVE_RANK = 3  # columns above it go before names are abbreviated
LEFT = "its run was killed; the same command goes on"
UNCOUNTED = ("failed", "stopped", "running")  # outcomes that do not count towards `n_trials`
Rows = Sequence[TrialRecord | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """What a leaderboard is made of besides its trials."""

    dimensions: Sequence[str]
    ticks: int  # of a complete trial
    baseline_loss: float


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """A table that fits whatever it is printed on; at most `top` rows, best first."""

    board: Board
    records: Sequence[TrialRecord]
    top: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = ranked(self.records)
        shown = rows[: self.top]
        if shown:
            yield table(self.board, shown, options.max_width)
        if len(rows) > len(shown):
            yield Text(f"… and {wording.plural(len(rows) - len(shown), 'trial')} more", "dim")


def ranked(records: Iterable[TrialRecord], top: int | None = None) -> list[TrialRecord]:
    """Complete trials by loss, then the others by how far they came, then those without a loss."""
    return sorted(records, key=_rank) if top is None else heapq.nsmallest(top, records, key=_rank)


def best(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the lowest loss."""
    complete = [r for r in records if finished_well(r)]
    return min(complete, key=_rank, default=None)


def finished_well(record: TrialRecord) -> bool:
    """Whether a trial is complete with a loss that is a number."""
    return record.outcome == Outcome.COMPLETE.value and _finite(record.eval_loss)


def counts_towards_total(record: TrialRecord) -> bool:
    """Whether a trial is one of the `n_trials`: failed, stopped and running ones are not."""
    return record.outcome not in UNCOUNTED


def unfinished(record: TrialRecord) -> bool:
    """Whether the same command goes on with a trial, or is at it."""
    return record.outcome in ("running", Outcome.STOPPED.value)


def left_behind(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials of a study that no driver works on: none runs, whatever a killed one has left."""
    stopped = Outcome.STOPPED.value
    return [
        replace(r, outcome=stopped, reason=LEFT) if r.outcome == "running" else r for r in records
    ]


def why(record: TrialRecord) -> str:
    """Why a trial did not go on, without what the columns say already."""
    return _SAID_BY_COLUMNS.sub("", record.reason or "")


def table(board: Board, rows: Rows, width: int) -> Table:
    """The rows as they come, None for an empty one, in columns that fit `width` cells."""
    before, after = _before(board, rows), _after(board, rows)
    for names in (wording.SHORT, wording.TINY):
        columns = [*before, *_parameters(board, rows, names), *after]
        if fits(columns, width, rank=CURVE_RANK):
            return fit(columns, width)
    if not fits(columns, width):
        columns = [*before, _parameters_in_one(rows), *after]
    return fit(columns, width)


def scale(board: Board, rows: Rows) -> tuple[float, float]:
    """Lowest and highest loss of the rows' curves, the untouched base's among them."""
    seen = [x for row in rows if row for x in row.losses if math.isfinite(x)]
    return min([board.baseline_loss, *seen]), board.baseline_loss


def _before(board: Board, rows: Rows) -> list[Column]:
    low, high = scale(board, rows)
    return [
        _column("", rows, lambda r: Text(MARKS.get(r.outcome, "?"), STYLES.get(r.outcome, ""))),
        _column("trial", rows, lambda r: Text(str(r.number), "bold"), right=True),
        _column("loss", rows, _loss, right=True),
        _column("vs base", rows, lambda r: _gain(board, r), rank=6, right=True),
        _column("exact", rows, _exact, rank=7, right=True),
        _column("curve", rows, lambda r: _curve(board, r, low, high), rank=CURVE_RANK),
    ]


def _after(board: Board, rows: Rows) -> list[Column]:
    return [
        _column("tick", rows, lambda r: Text(f"{r.ticks}/{board.ticks}"), rank=2, right=True),
        _column("time", rows, lambda r: Text(wording.duration(r.seconds)), rank=8, right=True),
        _column("outcome", rows, _outcome, rank=5),
        _column("why", rows, _why, rank=4, flexible=True),
    ]


def _parameters(board: Board, rows: Rows, names: Mapping[str, str]) -> list[Column]:
    short = wording.short_names(board.dimensions, names)

    def of(name: str) -> Callable[[TrialRecord], Text]:
        return lambda record: Text(wording.value(record.params.get(name)))

    return [_column(short[name], rows, of(name), right=True) for name in board.dimensions]


def _parameters_in_one(rows: Rows) -> Column:
    return _column("parameters", rows, lambda r: Text(wording.params(r.params)), flexible=True)


def _column(
    header: str,
    rows: Rows,
    cell: Callable[[TrialRecord], Text],
    rank: int = 0,
    right: bool = False,
    flexible: bool = False,
) -> Column:
    cells = [Text() if row is None else cell(row) for row in rows]
    return Column(header=header, cells=cells, rank=rank, right=right, flexible=flexible)


def _rank(record: TrialRecord) -> tuple[int, float, float, int]:
    loss = record.eval_loss if record.eval_loss is not None else math.inf
    if finished_well(record):
        return (0, loss, 0, record.number)
    if _finite(record.eval_loss):
        return (1, -record.ticks, loss, record.number)
    return (2, 0, 0, record.number)


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _loss(record: TrialRecord) -> Text:
    style = {"complete": "bold", "running": ""}.get(record.outcome, "dim")
    return Text(wording.loss(record.eval_loss), style)


def _gain(board: Board, record: TrialRecord) -> Text:
    if not _finite(record.eval_loss) or not board.baseline_loss:
        return Text(wording.NOTHING, "dim")
    change = (record.eval_loss or 0.0) / board.baseline_loss - 1
    sign = "−" if change < 0 else "+"
    return Text(f"{sign}{wording.share(abs(change))}", "green" if change < 0 else "red")


def _curve(board: Board, record: TrialRecord, low: float, high: float) -> Text:
    """From the untouched base on; dots for the ticks that a running trial has still to reach."""
    if not record.losses and record.outcome != "running":
        return Text()
    style = "cyan" if record.outcome in ("running", "complete") else "dim cyan"
    text = Text(wording.curve((board.baseline_loss, *record.losses), low, high), style)
    ahead = board.ticks - len(record.losses) if record.outcome == "running" else 0
    return text.append("·" * min(ahead, wording.CURVE_CELLS - len(text)), "dim")


def _exact(record: TrialRecord) -> Text:
    known = record.eval_accuracy is not None
    return Text(wording.share(record.eval_accuracy) if known else "")


def _outcome(record: TrialRecord) -> Text:
    return Text(record.outcome, STYLES.get(record.outcome, ""))


def _why(record: TrialRecord) -> Text:
    return Text(wording.clean(why(record), limit=200), "dim")


_SAID_BY_COLUMNS = re.compile(r"^pruned at tick \d+ of \d+: ")
