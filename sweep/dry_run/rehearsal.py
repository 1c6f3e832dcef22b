"""The driver of a dry run: lets the workers prepare, hands out short probes, keeps what they say.

It answers as `sweep.driver.SweepDriver` does and owns no study. A probe is a trial that the sweep
may run, on all workers and slots at once as there; it is stopped once it has shown enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sweep.connection import Connection
from sweep.ending import Ending
from sweep.study import identity
from trials.contract import (
    CONTINUE,
    Driver,
    Outcome,
    Report,
    Setup,
    TrialBudget,
    TrialConfig,
    TrialResult,
    Turn,
    Verdict,
)

PROBE_S = 20.0  # a probe that has not come to two ticks by then is stopped between them
TICKS = 2  # the first holds what a trial does once; from there to the next is the pace
ENOUGH = Verdict(stop=True, reason="the probe has shown enough", outcome=Outcome.STOPPED)


@dataclass(kw_only=True)
class Probe:
    """One configuration, tried by as many trials at once as the sweep will run."""

    name: str  # lightest, heaviest
    trials: Sequence[TrialConfig]  # alike but for their numbers
    limit_s: float | None = PROBE_S
    reports: dict[int, list[Report]] = field(default_factory=dict)
    results: dict[int, TrialResult] = field(default_factory=dict)
    died: str | None = None  # why its worker ended
    began: float | None = None

    @property
    def over(self) -> bool:
        """Whether every one of its trials has ended."""
        return self.died is not None or len(self.results) == len(self.trials)


Plan = Callable[[Setup], Sequence[Probe]]


class Rehearsal:
    """Answers the workers of a dry run; `probes` holds what they showed."""

    def __init__(
        self,
        plan: Plan,
        workers: int,
        show: Callable[[str, str, int, int], None],
        note: Callable[[str], None],
    ) -> None:
        self.ending: Ending | None = None
        self.devices = 1
        self.most_behind = 0
        self.setup: Setup | None = None
        self.probes: list[Probe] = []
        self.loaded_s = 0.0  # until all workers were ready
        self.note = note
        self.workers = workers  # that may still take part
        self._plan, self._show = plan, show
        self._ready: set[str] = set()
        self._held: dict[str, set[int]] = {}
        self._stopped: set[int] = set()  # trials that were told so
        self._at = 0  # the probe that is under way
        self._given = 0  # of its trials
        self._began = time.monotonic()

    # --- the executor's side -----------------------------------------------------------------

    def connect(self, worker: str) -> Driver:
        """The driver as this worker sees it."""
        return Connection(self, worker)

    @property
    def is_open(self) -> bool:
        """Whether a worker has prepared."""
        return self.setup is not None

    def holds_trials(self, worker: str) -> bool:
        """Whether a worker owes results."""
        return bool(self._held.get(worker))

    def lost(self, worker: str, reason: str, *, memory: bool = False) -> None:
        """A worker is gone, and with it the probe that it had."""
        self._ready.discard(worker)
        if self._held.pop(worker, None) and self._now is not None:
            self._now.died = reason
            for held in self._held.values():
                held.clear()

    def gave_up(self, worker: str, why: str) -> None:
        """The others neither wait for it nor do its part; nor would they in the sweep."""
        self.workers -= 1
        self._shorten_probes()
        self._notice_loaded()
        self.note(why)

    def beat(self) -> None:
        """There is nobody who would have to know that it is alive."""

    def catch_up(self) -> bool:
        """Nothing is written."""
        return False

    # --- a worker's side ---------------------------------------------------------------------

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """See `trials.contract.Driver`, here and below."""
        if not self.holds_trials(worker):
            self._show(worker, what, done, total)

    def prepared(self, worker: str, setup: Setup) -> None:
        """The first setup makes the probes; each later one must be the same."""
        if self.setup is not None:
            identity.refuse_other_setup(self.setup, setup)
        else:
            self.setup = setup
            self.probes = list(self._plan(setup))
            self._shorten_probes()
        self._ready.add(worker)
        self._notice_loaded()

    def next_trial(self, worker: str) -> TrialConfig | Turn:
        """A trial of the probe under way; all workers are waited for, they will work at once."""
        if len(self._ready) < self.workers:
            return Turn.WAIT
        probe = self._next_probe()
        if probe is None:
            return Turn.DONE
        if self._given == len(probe.trials):
            return Turn.WAIT
        trial = probe.trials[self._given]
        self._given += 1
        self._held.setdefault(worker, set()).add(trial.number)
        probe.began = probe.began or time.monotonic()
        self._show("dry run", f"trying the {probe.name} trial", self._at + 1, len(self.probes))
        return trial

    def alive(self, worker: str, number: int, attempt: int) -> Verdict:
        """Stops a probe that takes too long to come to a tick."""
        probe = self._now if number in self._held.get(worker, ()) else None
        if probe is None:
            return ENOUGH
        took = time.monotonic() - (probe.began or 0.0)
        over = probe.limit_s is not None and took > probe.limit_s
        return self._enough(number) if over else CONTINUE

    def report(self, worker: str, report: Report) -> Verdict:
        """Two ticks are enough."""
        if self._now is None or report.trial not in self._held.get(worker, ()):
            return ENOUGH
        seen = self._now.reports.setdefault(report.trial, [])
        seen.append(report)
        enough = len(seen) >= TICKS
        return self._enough(report.trial) if enough else self.alive(worker, report.trial, 0)

    def finish(self, worker: str, result: TrialResult) -> None:
        """A probe's end; one that came to no tick is followed by one that is only evaluated."""
        probe = self._now
        if probe is None or result.trial not in self._held.get(worker, ()):
            return
        self._held[worker].discard(result.trial)
        if result.outcome is Outcome.STOPPED and result.trial not in self._stopped:
            result = replace(result, outcome=Outcome.FAILED)  # its device is full of others
        probe.results[result.trial] = result
        if probe.over and result.outcome is Outcome.STOPPED and not probe.reports:
            free = 1 + max(trial.number for each in self.probes for trial in each.trials)
            self.probes.insert(self._at + 1, _one_batch(probe, free))

    # --- within ------------------------------------------------------------------------------

    @property
    def _now(self) -> Probe | None:
        return self.probes[self._at] if self._at < len(self.probes) else None

    def _next_probe(self) -> Probe | None:
        while self._now is not None and self._now.over:
            self._at, self._given = self._at + 1, 0
        return self._now

    def _shorten_probes(self) -> None:
        """No more trials than go at once."""
        at_once = max(1, self.setup.capacity * self.workers) if self.setup else 0
        for probe in self.probes:
            if probe.began is None:
                probe.trials = probe.trials[:at_once]

    def _enough(self, number: int) -> Verdict:
        self._stopped.add(number)
        return ENOUGH

    def _notice_loaded(self) -> None:
        if not self.loaded_s and len(self._ready) == self.workers:
            self.loaded_s = time.monotonic() - self._began


def _one_batch(probe: Probe, free: int) -> Probe:
    """The same trials, cut down to one batch and one evaluation, numbered from `free`."""
    first = probe.trials[0]
    budget = TrialBudget(examples=min(first.train.batch_size, first.budget.examples), ticks=1)
    short = [replace(t, number=free + k, budget=budget) for k, t in enumerate(probe.trials)]
    return Probe(name=probe.name, trials=short, limit_s=None)
