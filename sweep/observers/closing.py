"""What a sweep says at its end: leaderboard, costs, where everything lies, how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from sweep.budget import told
from sweep.config import SweepConfig
from sweep.observers import Closed, Opened
from sweep.results import leaderboard, summary, wording
from sweep.results.wording import clean, plural
from sweep.store import Store, StudyRecord, study_of
from sweep.tracking.observer import command
from sweep.tracking.wandb import sync_command
from trials.contract import InputError, Outcome

TOP = 20  # rows of the final leaderboard
FAILURES = 5  # of these, shown with all of their reason
REASON = 1000  # characters
CLOCKS_S = 2.0  # by which the study's clock and this run's may differ; less is no part to tell


def closing(
    config: SweepConfig, opened: Opened | None, closed: Closed, elapsed_s: float
) -> RenderableType | None:
    """The end of a run; None where there is nothing to tell. Print it with `crop=False`."""
    if opened is None and not closed.records:
        raised = closed.reason.startswith(InputError.__name__)  # then the command says it
        return None if raised else Text(clean(closed.reason), "bold")
    study = _described(opened) if opened else _stored(config)
    return Group(
        Text(f"\n{_title(config, closed, elapsed_s)}", "bold"),
        summary.page(study, closed.records, TOP),
        *_used(config, closed),
        *_failures(config, closed),
        summary.Commands(list(_commands(config, closed))),
    )


def _title(config: SweepConfig, closed: Closed, elapsed_s: float) -> str:
    done = sum(leaderboard.counts_towards_total(r) for r in closed.records)
    total, took = plural(config.limits.n_trials, "trial"), _took(closed, elapsed_s)
    then = "extend it" if closed.complete else "go on"
    said = closed.complete or "same command" in closed.reason
    same = "" if said else "; the same command goes on"
    how = f"; type {clean(closed.more)} to {then}" if closed.more else same
    return f"{done} of {total} in {took}: {clean(closed.reason)}{how}"


def _took(closed: Closed, elapsed_s: float) -> str:
    """The time of all runs of the study, with this run's part where it is one."""
    here = wording.duration(elapsed_s)
    if closed.used is None or closed.used.seconds <= elapsed_s + CLOCKS_S:
        return here
    part = f" ({here} of it in this run)" if elapsed_s > CLOCKS_S else ""
    return wording.duration(closed.used.seconds) + part


def _used(config: SweepConfig, closed: Closed) -> Iterator[RenderableType]:
    """What the study cost so far, where it has a budget or a price."""
    if closed.used and (parts := told(config.limits, closed.used)):
        yield summary.used(parts)


def _failures(config: SweepConfig, closed: Closed) -> Iterator[RenderableType]:
    """The latest trials that failed, each with all of its reason and where its log is."""
    failed = [record for record in closed.records if record.outcome == Outcome.FAILED.value]
    if not failed:
        return
    failed.sort(key=lambda record: record.finished_at or 0.0)
    earlier = len(failed) - FAILURES
    yield Text(f"failed, and {earlier} before them" if earlier > 0 else "failed", "dim")
    for record in failed[-FAILURES:]:
        yield Text(f"  trial {record.number}: {clean(record.reason or '', limit=REASON)}", "red")
        log = config.study_dir / "logs" / f"{clean(record.worker)}.log"
        if record.worker and log.exists():
            yield Text(f"    its log: {wording.here(log)}", "dim")
    yield Text()


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


def typed_too(command: str, more: str | None) -> str:
    """The command with a value typed besides, in the place of its old one; "key=" takes it out."""
    if more is None:
        return command
    key, _, value = more.partition("=")
    words = [word for word in shlex.split(command) if word.partition("=")[0] != key]
    return shlex.join([*words, *([more] if value else [])])


def _commands(config: SweepConfig, closed: Closed) -> Iterator[tuple[str, str]]:
    if not closed.complete:
        yield clean(typed_too(config.command, closed.more)), "goes on where this stopped"
    elif closed.more:
        yield clean(typed_too(config.command, closed.more)), "extends the study"
    if (sync := sync_command(config)) is not None:
        yield sync, "uploads the offline runs to W&B"
        yield command(config), "uploads all of it, with lineage and a saved view"
    best = leaderboard.best(closed.records)
    yield from summary.commands(config.study, config.results_dir, config.storage, best)
