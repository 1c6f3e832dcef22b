"""A study at W&B: a run for each trial and for the untouched base, Artifacts, a saved view.

Where the server refuses or does not answer, it goes on offline and says so once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sweep.results import leaderboard
from sweep.store import TrialRecord
from sweep.tracking.facts import GOES_ON, Row, Study, Trial
from sweep.tracking.follow import RunLost, in_short, show
from sweep.tracking.marks import Marks
from sweep.tracking.wandb import BASELINE, artifacts, mode, view
from sweep.tracking.wandb.runs import LiveRun, Mode, discard, leave_service, open_run, quiet
from sweep.tracking.wandb.server import unreachable

Answer = Callable[[Mapping[str, Any]], None]


class WandbTracker:
    """Writes runs. What it answers: `note` for the user, `unsent` run, the `view`'s address."""

    def __init__(self, study: Study, marks: Marks, answer: Answer) -> None:
        self.stuck = False
        self._study, self._marks, self._answer = study, marks, answer
        self._mode: Mode = "offline" if mode(study.options) == "offline" else "online"
        self._data = artifacts.DataSet(study)
        self._began = False
        self._troubled = False
        self._entity: str | None = None
        quiet(study, self._mode)

    @property
    def place(self) -> str:
        """Where runs are written now."""
        return self._mode

    @property
    def places(self) -> Collection[str]:
        """Online, runs written offline are uploaded too: half a study is a wrong picture."""
        return ("online",) if self._mode == "online" else ("online", "offline")

    def begin(self, trial: Trial) -> TrialRun:
        """A trial's run; the untouched base's comes first, because it logs the data set."""
        self._begin_study()
        live = self._open(trial.number, trial.tree())
        self._beside(lambda: self._data.use(live))
        return TrialRun(tracker=self, live=live)

    def end(self, live: LiveRun, trial: Trial) -> bool:
        """Fills in a trial's end; whether all of it has arrived."""
        if self._allows("upload_samples") and trial.record.outcome not in GOES_ON:
            live.log_samples(trial.samples, len(trial.rows))
        live.summarise(trial.summary())
        return self._finish(live, trial.number, failed=trial.record.outcome == "failed")

    @contextmanager
    def held(self, live: LiveRun) -> Iterator[None]:
        """A run that the client fails is given up; online, it is written again offline."""
        try:
            yield
        except Exception as error:
            if live.run.offline:
                with suppress(Exception):
                    live.run.finish(exit_code=1)
                raise
            if self._mode == "online":
                self._go_offline(in_short(error))
            raise RunLost from error

    def close(self, records: list[TrialRecord], read: Callable[[int], Trial]) -> None:
        """The kept adapters as Artifacts, and the view."""
        if self._allows("upload_adapters"):
            best = leaderboard.best(records)
            for record in artifacts.kept(self._study, records):
                self._give_adapter(read(record.number), record == best)
        if self._mode == "online" and records:
            self._show_view(records)

    def _show_view(self, records: list[TrialRecord]) -> None:
        address = self._marks.place("view")
        if address is None:
            address = view.saved(self._study, records, self._entity)
            self._marks.add("view", address)
        self._answer({"view": address})

    def _begin_study(self) -> None:
        """The untouched base's run, unless it is there: its loss, its samples, the data set."""
        if self._began or self._marks.given(BASELINE, self.places):
            return
        live = self._open(BASELINE, artifacts.data_facts(self._study), job_type=BASELINE)
        with self.held(live):
            self._beside(lambda: self._data.log(live))
            self._describe_base(live)
            if self._finish(live, BASELINE):
                self._marks.add(BASELINE, self.place)
        self._began = True

    def _describe_base(self, live: LiveRun) -> None:
        setup = self._study.setup
        if self._allows("upload_samples") and setup.baseline_samples:
            lines = tuple((s.prompt, s.reference, s.generated) for s in setup.baseline_samples)
            live.log_samples({0: lines}, 0, columns=("prompt", "reference", "base"))
        live.summarise({"eval_loss": setup.baseline_loss, "outcome": BASELINE})
        if setup.baseline_accuracy is not None:
            live.summarise({"eval_accuracy": setup.baseline_accuracy})

    def _give_adapter(self, trial: Trial, best: bool) -> None:
        """Logs a trial's adapter from its own run, which offline is written again for that."""
        thing, wanted = f"adapter {trial.number}", f"{self._mode} best" if best else self._mode
        given = self._marks.place(thing) or ""
        if given == wanted or (given.startswith(self._mode) and not best):
            return
        run = self.begin(trial)
        show(run, trial)
        logged = self._beside(lambda: artifacts.log_adapter(self._study, run.live, trial, best))
        if run.end(trial) and logged:
            self._marks.add(thing, wanted)

    def _open(self, number: int | str, config: Mapping[str, Any], **about: Any) -> LiveRun:
        if self._mode == "online" and (trouble := unreachable()):
            self._go_offline(trouble)  # asked first: a run id that failed online is taken
        if self._mode == "online":
            try:
                live = open_run(self._study, number, "online", config, **about)
                self._entity = live.run.entity
                return live
            except Exception as error:
                self._go_offline(in_short(error))
        return open_run(self._study, number, "offline", config, **about)

    def _go_offline(self, trouble: str) -> None:
        self._mode, self.stuck = "offline", True
        leave_service()  # with the runs that are still online: they are written again
        quiet(self._study, "offline")
        print(trouble, file=sys.stderr, flush=True)
        self._answer({"note": f"W&B goes on offline: {trouble}", "unsent": "offline"})

    def _finish(self, live: LiveRun, number: int | str, failed: bool = False) -> bool:
        online = not live.run.offline
        arrived = live.finish(failed)
        if not arrived:
            self.stuck = True
            self._answer({"unsent": live.run.id})
        elif online:
            discard(self._study, number, synced=True)  # all of it is there now
        return arrived

    def _beside(self, step: Callable[[], None]) -> bool:
        """An Artifact: a run does without where the server does not take it."""
        try:
            step()
            return True
        except Exception as error:
            said = in_short(error)
            print(said, file=sys.stderr, flush=True)
            if not self._troubled:
                self._answer({"note": f"W&B takes no Artifacts: {said}; the runs go on"})
            self._troubled = True
            return False

    def _allows(self, option: str) -> bool:
        return bool(self._study.options.get(option, True))


@dataclass(slots=True, kw_only=True)
class TrialRun:
    """A trial's run that is open."""

    tracker: WandbTracker
    live: LiveRun

    @property
    def logged(self) -> int:
        """Examples up to which it has its rows."""
        return self.live.logged

    def log(self, row: Row) -> None:
        """One row of history."""
        with self.tracker.held(self.live):
            self.live.log(row)

    def end(self, trial: Trial) -> bool:
        """Its summary and samples."""
        with self.tracker.held(self.live):
            return self.tracker.end(self.live, trial)
