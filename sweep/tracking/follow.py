"""Brings a tracker up to date with our tables: what is new of a trial, and whole trials it missed.

Everything comes from the tables, so that nothing is lost with an event, a process or a day.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

from sweep.secrets import masked
from sweep.store import RUNNING, Store, TrialRecord
from sweep.tracking.facts import GOES_ON, Row, Study, Trial, read_trial
from sweep.tracking.marks import Marks


class RunLost(Exception):
    """The client failed a run, and the tracker has told why: it is to be begun again."""


class Run(Protocol):
    """A trial as a tracker shows it, open for more. After an exception it is not used again."""

    @property
    def logged(self) -> int:
        """Examples up to which it has rows already."""

    def log(self, row: Row) -> None:
        """One more row, at more examples than the last."""

    def end(self, trial: Trial) -> bool:
        """Its summary and samples; False if that has not arrived."""


class Tracker(Protocol):
    """What follows a sweep. Any call may raise: the others go on."""

    stuck: bool  # its server was there and is not any more

    @property
    def place(self) -> str:
        """Where things are written now: "online", "offline", "disk"."""

    @property
    def places(self) -> Collection[str]:
        """Where things written earlier are good enough."""

    def begin(self, trial: Trial) -> Run:
        """A trial's run, new or one to be gone on with."""

    def close(self, records: list[TrialRecord], read: Callable[[int], Trial]) -> None:
        """What concerns the whole study, when all trials are written; `read` gives one whole."""


def show(run: Run, trial: Trial) -> None:
    """Logs what is new: a later attempt trains again what an earlier one has logged."""
    for row in trial.rows:
        if row.examples > run.logged:
            run.log(row)


def in_short(error: Exception) -> str:
    """An error on one line, without the passwords of URLs."""
    return masked(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


class Following:
    """One tracker and the tables of one study. Trouble is told once, by `note`, never raised."""

    def __init__(
        self,
        store: Store,
        study: Study,
        tracker: Tracker,
        marks: Marks,
        note: Callable[[str], None],
    ) -> None:
        self._store, self._study, self.tracker = store, study, tracker
        self._marks, self._note = marks, note
        self._runs: dict[int, Run] = {}
        self._left: dict[int, int] = {}  # trials to be continued -> the attempt that was shown
        self._troubled = False
        self._missing = deque(self._lacking())

    @property
    def behind(self) -> bool:
        """Whether there are trials of earlier that the tracker has not got whole."""
        return bool(self._missing)

    def trial(self, number: int) -> None:
        """Shows what is new of a trial."""
        self._try(lambda: self._show(number))

    def catch_up(self) -> None:
        """Shows one trial of earlier."""
        self.trial(self._missing.popleft())

    def close(self) -> None:
        """All that is still missing, and the study as a whole."""
        while self.behind:
            self.catch_up()
        self.leave()
        for number in self._lacking():  # once more what failed on the way
            self.trial(number)
        records = self._store.trials(self._study.record.uuid)
        self._try(lambda: self.tracker.close(records, self._read))

    def leave(self) -> None:
        """Ends the runs that are open: of trials to be continued, or left by a dead driver."""
        for number in list(self._runs):
            self._try(lambda number=number: self._end(number, self._read(number)))  # type: ignore[misc]

    def _show(self, number: int) -> None:
        if self._is_given(number):
            return
        trial = self._read(number)
        if trial.record.outcome in GOES_ON and self._left.get(number) == trial.record.attempt:
            return
        run = self._runs.pop(number, None) or self.tracker.begin(trial)
        show(run, trial)
        self._runs[number] = run
        if trial.record.outcome != RUNNING:
            self._end(number, trial)

    def _end(self, number: int, trial: Trial) -> None:
        arrived = self._runs.pop(number).end(trial)
        if trial.record.outcome in GOES_ON:
            self._left[number] = trial.record.attempt
        elif arrived:
            self._marks.add(str(number), self.tracker.place)

    def _lacking(self) -> list[int]:
        """Trials that have ended and are not all there."""
        ended = (r for r in self._store.trials(self._study.record.uuid) if r.outcome not in GOES_ON)
        return [record.number for record in ended if not self._is_given(record.number)]

    def _read(self, number: int) -> Trial:
        return read_trial(self._store, self._study, number)

    def _is_given(self, number: int) -> bool:
        return self._marks.given(str(number), self.tracker.places)

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except RunLost:  # told already; the next look begins the run again
            pass
        except Exception as error:
            said = in_short(error)
            print(said, file=sys.stderr, flush=True)
            if not self._troubled:
                self._note(f"{said}; the sweep goes on")
            self._troubled = True
