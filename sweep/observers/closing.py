"""What a sweep says at its end: leaderboard, costs, where everything lies, how to go on."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from sweep.config import SweepConfig
from sweep.observers import Closed, Opened
from sweep.observers.wandb import sync_command
from sweep.results import leaderboard, summary, wording
from sweep.results.wording import clean, plural
from sweep.store import Store, StudyRecord, study_of
from trials.contract import InputError

TOP = 20  # rows of the final leaderboard


def closing(
    config: SweepConfig, opened: Opened | None, closed: Closed, elapsed_s: float
) -> RenderableType | None:
    """The end of a run; None where there is nothing to tell. Print it with `crop=False`."""
    if opened is None and not closed.records:
        raised = closed.reason.startswith(InputError.__name__)  # then the command says it
        return None if raised else Text(clean(closed.reason), "bold")
    study = _described(opened) if opened else _stored(config)
    done = sum(leaderboard.counts_towards_total(r) for r in closed.records)
    total, took = plural(config.limits.n_trials, "trial"), wording.duration(elapsed_s)
    return Group(
        Text(f"\n{done} of {total} in {took}: {clean(closed.reason)}", "bold"),
        summary.page(study, closed.records, TOP),
        summary.Commands(list(_commands(config, closed))),
    )


def _described(opened: Opened) -> StudyRecord:
    return study_of(
        opened.config, opened.setup, uuid=opened.study_uuid, first_rung=opened.first_rung
    )


def _stored(config: SweepConfig) -> StudyRecord:
    """A study that had all its trials already, so that nothing was opened."""
    store = Store(config.storage)
    try:
        return [row for row in store.studies() if row.study == config.study][-1]
    finally:
        store.close()


def _commands(config: SweepConfig, closed: Closed) -> Iterator[tuple[str, str]]:
    if not closed.complete:
        yield clean(config.command), "goes on where this stopped"
    if (sync := sync_command(config)) is not None:
        yield sync, "uploads the offline runs to W&B"
    best = leaderboard.best(closed.records)
    yield from summary.commands(config.study, config.results_dir, config.storage, best)
