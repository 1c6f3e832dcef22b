"""`dry_run=true`: all checks of a real run, what it would try first, and what it would take.

    python -m sweep +search=lora_rank dry_run=true

Workers prepare and try the lightest and the heaviest trial of the space for some seconds. Nothing
is left: no study, no results, no database; what workers write goes to a folder that is removed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from sweep.config import SweepConfig
from sweep.config.checks import check_batches
from sweep.dry_run import page
from sweep.dry_run.corners import corner
from sweep.dry_run.estimate import Estimate, estimates, whole
from sweep.dry_run.first import certain, next_trials
from sweep.dry_run.rehearsal import Probe, Rehearsal
from sweep.ending import COMPLETE, FAILED, Ending
from sweep.executors import WorkerError, executor
from sweep.executors.devices import shares
from sweep.observers import Opened
from sweep.observers.closing import typed_too
from sweep.observers.console import build_console
from sweep.observers.opening import opening
from sweep.space import overlay
from sweep.store.runs import Used, used_by
from sweep.study import Standing, identity
from sweep.study.pruners import pruner
from trials.contract import Setup

FIRST = 3  # trials shown with all of their configuration


def dry_run(config: SweepConfig, standing: Standing | None, ending: Ending | None) -> int:
    """Prints what the sweep would do; `ending` says why it would do nothing.

    The exit code is not 0 where trials fail for another reason than memory.
    Raises `InputError` where a real run would.
    """
    console = build_console(config)
    try:
        if ending:
            then = "extend it" if ending.code == COMPLETE else "go on"
            console.page(Text(f"{ending.reason}; type {ending.more} to {then}", "bold"))
            return COMPLETE
        looked = _Look(config, standing)
        rehearsal = Rehearsal(looked.probes, _workers(config), console.progress, console.note)
        try:
            _rehearse(config, rehearsal)
        except WorkerError as error:
            console.note(str(error))
            return FAILED
        found = estimates(rehearsal.probes)
        console.page(looked.show(rehearsal, found))
        return FAILED if any(e.why_not and e.fits for e in found) else COMPLETE
    finally:
        console.stop()


class _Look:
    """A sweep before it runs."""

    def __init__(self, config: SweepConfig, standing: Standing | None) -> None:
        self.config, self.standing = config, standing
        self.past = standing.frozen if standing else []
        self.left = self._left()

    def probes(self, setup: Setup) -> Sequence[Probe]:
        """The corners of the space, once a worker has found what only it can; raises InputError."""
        check_batches(self.config, setup.data_facts.train_examples)
        if self.standing:
            facts = identity.planned(self.config) | identity.found(setup)
            identity.refuse_other(self.config.study, self.standing.facts, facts)
        copies = max(1, min(self.left, setup.capacity * _workers(self.config)))
        light, heavy = (corner(self.config, setup, heaviest=most) for most in (False, True))
        named = {"lightest": light, "heaviest": heavy} if light != heavy else {"typical": light}
        return [
            Probe(name=name, trials=[
                overlay(self.config, setup, params, number=place * copies + k, attempt=0)
                for k in range(copies)
            ])
            for place, (name, params) in enumerate(named.items())
        ]  # fmt: skip

    def show(self, rehearsal: Rehearsal, found: Sequence[Estimate]) -> RenderableType:
        """All that there is to say."""
        config, setup = self.config, rehearsal.setup
        assert setup is not None
        standing, price = self.standing, config.limits.price_per_hour
        used = used_by(standing.runs, price, standing.seconds) if standing else Used()
        trials = next_trials(config, setup, self.past, min(FIRST, self.left))
        sweep = whole(
            found,
            trials=self.left,
            at_once=setup.capacity * rehearsal.workers,
            devices=rehearsal.devices,
            loaded_s=rehearsal.loaded_s,
        )
        return Group(
            opening(self._opened(setup, used)),
            page.first_trials(config, trials, certain=certain(config, trials, len(self.past))),
            Text(),
            page.probes(config, found, setup),
            Text(),
            page.lines(config, found, sweep, used),
            Text(),
            page.commands(typed_too(config.command, "dry_run=")),
        )

    def _opened(self, setup: Setup, used: Used) -> Opened:
        ticks = self.config.values["budget.ticks"]
        rule = pruner(self.config.pruner, ticks=ticks, study=self.config.study)
        return Opened(
            config=self.config,
            study_uuid="",
            setup=setup,
            first_rung=rule.first_rung,
            past=self.standing.records if self.standing else (),
            used=used,
        )

    def _left(self) -> int:
        """Trials that the study still lacks, or the space still has."""
        counted = self.standing.counted if self.standing else 0
        left = max(0, self.config.limits.n_trials - counted)
        size = self.config.space.size()
        return left if size is None else min(left, max(0, size - counted))


def _rehearse(config: SweepConfig, rehearsal: Rehearsal) -> None:
    """Runs the workers in a folder that is removed, whatever they write."""
    with tempfile.TemporaryDirectory(prefix="sweep-dry-run-") as folder:
        elsewhere = replace(config, results_dir=Path(folder), keep_adapters=0, samples=0)
        executor(elsewhere, rehearsal).run()


def _workers(config: SweepConfig) -> int:
    """How many work at once."""
    if config.executor.name == "inline":
        return 1
    return len(shares(config))
