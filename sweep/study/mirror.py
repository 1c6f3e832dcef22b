"""Optuna's study twice: in memory, where samplers read, and in the database, where it lasts.

A sampler reads every trial for every proposal; from the database that would cost more than the
sampling itself (measured with 64 live trials: four times as much). This process is the only writer,
so memory is never behind. Each change is one transaction; a trial appears with all its parameters.
The database may be behind by some changes, made when no worker waits for an answer: what they are
about is in our tables before, and a driver that finds them missing makes them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from sweep.study.guard import Guard

Params = dict[str, Any]


class MirroredStudy:
    """One study, owned by this process. Trials are named by their number.

    `most_behind`: changes that the database may lack until `catch_up`.
    """

    def __init__(
        self, stored: optuna.Study, storage: RDBStorage, guard: Guard, most_behind: int = 0
    ) -> None:
        self._most_behind, self._behind = most_behind, deque[Callable[[], None]]()
        self._guard, self._unguarded = guard, storage
        self._storage, self._stored_id = guard.around(storage), stored._study_id
        self.before: list[FrozenTrial] = stored.get_trials(deepcopy=False)
        self._ids = {trial.number: trial._trial_id for trial in self.before}
        self._memory = optuna.create_study(
            study_name=stored.study_name, direction="minimize", storage=InMemoryStorage()
        )
        self._memory.add_trials(self.before)
        self._trials: dict[int, Trial] = {}

    def ask(self, sampler: BaseSampler, suggest: Callable[[Trial], Params]) -> tuple[int, Params]:
        """A new trial's number and parameters."""
        self._memory.sampler = sampler
        trial = self._memory.ask()
        params = suggest(trial)
        known = self._memory._storage.get_trial(trial._trial_id)
        template = create_trial(
            state=TrialState.RUNNING, params=known.params, distributions=known.distributions
        )
        self._ids[trial.number] = self._guard.call(self._create, trial.number, template)
        self._trials[trial.number] = trial
        return trial.number, params

    def attach(self, number: int) -> None:
        """Takes over a trial that an earlier driver left running."""
        running = self._memory.trials[number]
        self._trials[number] = Trial(self._memory, running._trial_id)

    def report(self, number: int, tick: int, loss: float) -> None:
        """A finite loss at a tick that was not told before."""
        self._later(self._storage.set_trial_intermediate_value, self._ids[number], tick, loss)
        self._trials[number].report(loss, tick)

    def describe(self, number: int, name: str, value: Any) -> None:
        """An attribute that the dashboard shows; only before `tell`."""
        self._later(self._storage.set_trial_user_attr, self._ids[number], name, value)

    def rank_last(self, number: int) -> None:
        """Has the sampler rank a trial below all that trained."""
        trial = self._trials[number]
        if not trial.constraints:
            trial.set_constraint("trains", 1.0)
        known = self._memory._storage.get_trial_system_attrs(trial._trial_id)
        for name, value in known.items():
            self._later(self._storage.set_trial_system_attr, self._ids[number], name, value)

    def tell(self, number: int, state: TrialState, loss: float | None = None) -> None:
        """Ends a trial for good; a pruned one has its last reported loss as its value."""
        told = self._memory.tell(self._trials.pop(number), loss, state)
        self._later(
            self._storage.set_trial_state_values, self._ids[number], told.state, told.values)

    def catch_up(self) -> bool:
        """Makes the first change that the database lacks; False: it lacks none."""
        if not self._behind:
            return False
        self._behind.popleft()()  # where it fails, the next driver makes it
        return True

    def _later(self, change: Callable[..., Any], *what: Any) -> None:
        self._behind.append(partial(change, *what))
        while len(self._behind) > self._most_behind:
            self.catch_up()

    def _create(self, number: int, template: FrozenTrial) -> int:
        """The stored trial's id; repeatable, also where only the answer was lost."""
        if self._guard.lock is not None:
            self._guard.lock.touch(time.time())  # Optuna would try five times without a word
        with suppress(KeyError):
            return self._unguarded.get_trial_id_from_study_id_trial_number(self._stored_id, number)
        return self._unguarded.create_new_trial(self._stored_id, template)
