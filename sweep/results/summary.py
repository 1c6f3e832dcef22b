"""What a study came to, in a few lines: best, gain, costs, files, and the commands to go on with.

Shared by the end of a sweep and `python -m sweep.results`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from sweep.results import leaderboard, wording
from sweep.results.wording import clean, here, plural
from sweep.secrets import masked
from sweep.store import StudyRecord, TrialRecord

DEFAULT_STORAGE = "sqlite:///results/sweep.db"


def lines(study: StudyRecord, records: Sequence[TrialRecord]) -> Table:
    """Best, gain, what pruning saved, what evaluation took, where everything lies."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _lines(study, records):
        grid.add_row(name, text)
    return grid


class Commands:
    """Commands to copy, each with what it does; whole, however narrow the terminal.

    Print it with `crop=False`.
    """

    def __init__(self, commands: Sequence[tuple[str, str]]) -> None:
        self._commands = commands

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("go on with", "dim")
        for command, meaning in self._commands:
            line, comment = Text(f"  {command}", "bold"), Text(f"  # {meaning}", "dim")
            fits = line.cell_len + comment.cell_len <= options.max_width
            whole = line + comment if fits else line
            whole.no_wrap, whole.overflow = True, "ignore"
            yield whole


def commands(
    study: str, results_dir: Path, storage: str, best: TrialRecord | None
) -> Iterator[tuple[str, str]]:
    """What to type next, and what it does."""
    shown = typed(storage)
    dashboard = f"python -m sweep.dashboard {quoted(study)}{_place(results_dir, shown)}"
    yield f"{dashboard} --open", "every trial, in a browser"
    if best is not None:
        trial = results_dir / study / "trials" / f"{best.number}.json"
        elsewhere = "" if here(results_dir) == "results" else _option("results_dir", results_dir)
        yield f"python -m trials {quoted(here(trial))}", f"replays trial {best.number} alone"
        loads = f"{quoted(f'+recipe={study}')}{elsewhere}"
        yield f"python -m sweep {loads} +search=...", "searches on from the best configuration"
    where = "" if shown == DEFAULT_STORAGE else f" --storage {quoted(shown)}"
    yield f"python -m sweep.results {quoted(study)}{where}", "this leaderboard, at any time"
    yield f"python -m sweep.report {quoted(study)}{_place(results_dir, shown)}", "all as one page"


def _place(results_dir: Path, storage: str) -> str:
    """Options for a command that reads a database and writes into the results folder."""
    folder = here(results_dir)
    said = "" if folder == "results" else f" --results-dir {quoted(folder)}"
    usual = storage == f"sqlite:///{folder}/sweep.db"
    return said if usual else f"{said} --storage {quoted(storage)}"


def typed(storage: str) -> str:
    """A storage as one would type it here, without a password."""
    file = storage.removeprefix("sqlite:///")
    if file == storage or not Path(file).is_absolute():
        return masked(storage)
    return f"sqlite:///{here(Path(file))}"


def quoted(text: str) -> str:
    """A word for the shell, harmless to the terminal."""
    return shlex.quote(clean(text))


def gain(study: StudyRecord, best: TrialRecord) -> str:
    """The untouched base against the best trial: loss, and exact share where it is known."""
    text = (
        f"loss {wording.loss(study.baseline_loss)} → {wording.loss(best.eval_loss)}, "
        f"{wording.below(study.baseline_loss, best.eval_loss)} the untouched base"
    )
    if best.eval_accuracy is None or study.baseline_accuracy is None:
        return text
    before, after = wording.share(study.baseline_accuracy), wording.share(best.eval_accuracy)
    return f"{text}; exactly right {before} → {after}"


def costs(records: Sequence[TrialRecord], ticks: int) -> Iterator[tuple[str, str]]:
    """What pruning saved and what evaluation took."""
    pruned = [r for r in records if r.outcome == "pruned" and r.ticks and ticks]
    ended = [r for r in records if leaderboard.counts_towards_total(r)]
    if pruned:
        budget = sum(1 - r.ticks / ticks for r in pruned) / len(ended)
        seconds = sum(r.seconds * (ticks / r.ticks - 1) for r in pruned)
        saved = f"saved {wording.share(budget)} of the budget, about {wording.duration(seconds)}"
        yield "pruned", f"{len(pruned)} of {plural(len(ended), 'trial')}, {saved} of training"
    spent, most = sum(r.seconds for r in records), at_once(records)
    shared = f", up to {most} at once on a device" if most > 1 else ""
    if spent:
        evaluating = wording.share(sum(r.eval_seconds for r in records) / spent)
        writing = sum(r.sample_seconds for r in records) / spent
        samples = f", {wording.share(writing)} writing samples" if writing else ""
        of_it = f"{evaluating} of it evaluation{samples}"
        yield "training", f"{wording.duration(spent)} added up over trials{shared}, {of_it}"
    if failed := sum(r.outcome == "failed" for r in records):
        yield "failed", f"{plural(failed, 'trial')}; why is in the leaderboard and in the logs"


def at_once(records: Sequence[TrialRecord]) -> int:
    """The most trials that one worker trained at the same time, as far as they have ended."""
    ends = [(r.worker, t, step) for r in records if r.finished_at is not None
            for t, step in ((r.started_at, 1), (r.finished_at, -1))]  # fmt: skip
    held: Counter[str] = Counter()
    most = 0
    for worker, _, step in sorted(ends):  # at the same moment one ends before another starts
        held[worker] += step
        most = max(most, held[worker])
    return most


def _lines(study: StudyRecord, records: Sequence[TrialRecord]) -> Iterator[tuple[str, Text]]:
    best = leaderboard.best(records)
    if best is None:
        yield "best", Text("no trial is complete yet", "yellow")
    else:
        found = f"trial {best.number}: {wording.params(best.params)}"
        yield "best", Text(found, "bold green")
        yield "", Text(gain(study, best))
    for name, text in costs(records, study.ticks):
        yield name, Text(text)
    folder = Path(study.results_dir)
    yield "files", Text(clean(f"{here(folder / study.study)}/"))
    if best is not None:
        yield "recipe", Text(clean(here(folder / "recipe" / f"{study.study}.yaml")))


def used(parts: Sequence[str]) -> Text:
    """What all runs of a study took, where it has a budget or a price."""
    return Text.assemble(("used by all runs  ", "dim"), " · ".join(parts), "\n")


def _option(name: str, path: Path) -> str:
    return f" {quoted(f'{name}={here(path)}')}"


def page(study: StudyRecord, records: Sequence[TrialRecord], top: int | None) -> Group:
    """The leaderboard with its summary."""
    board = leaderboard.Board(
        dimensions=study.dimensions, ticks=study.ticks, baseline_loss=study.baseline_loss
    )
    table = leaderboard.Leaderboard(board, records, top)
    return Group(Text(), table, Text(), lines(study, records), Text())
