"""What a study has used, over all its runs, and what its budgets make of that.

Wall-clock is the driver's, from its start to its end; device time is wall-clock times the devices
held; money is device time times the price of its run. A trial's own time is what it spent at
workers over all its attempts; its share of the devices is divided among the trials at once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sweep.config import Limits
from sweep.config.leaves import show
from sweep.results.wording import amount, duration
from sweep.store import RunRecord, Store
from sweep.store.runs import HOUR, Times, Used, used_by

MINUTE = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """A budget that is used up, and what to type to go on."""

    reason: str
    more: str  # budget.max_hours=4


def reached(limits: Limits, used: Used) -> Reached | None:
    """The first of the study's budgets that is used up."""
    for name, limit, spent, said in _study(limits, used):
        if limit is not None and spent >= limit:
            more = f"budget.{name}={show(float(f'{2 * max(limit, spent):.3g}'))}"
            return Reached(reason=f"budget.{name}={show(limit)} is used up ({said})", more=more)
    return None


def open_account(limits: Limits, store: Store, uuid: str, seconds: float, devices: int) -> Account:
    """The account of a run that begins; `seconds` is what the study has used so far."""
    runs = store.runs(uuid)
    run = RunRecord(
        run=len(runs),
        host=socket.gethostname(),
        pid=os.getpid(),
        devices=devices,
        price_per_hour=limits.price_per_hour,
        started_at=time.time(),
    )
    before, times = used_by(runs, limits.price_per_hour, seconds), _trial_times(runs)
    return Account(
        limits=limits, store=store, uuid=uuid, run=run, before=before, trials_before=times
    )


def trial_reached(limits: Limits, wall: float, devices: float) -> str | None:
    """Why a trial that used so many seconds, of them so many of devices, may not go on."""
    money = devices / HOUR * (limits.price_per_hour or 0.0)
    for name, spent, said in (
        ("max_trial_minutes", wall / MINUTE, duration(wall)),
        ("max_trial_device_minutes", devices / MINUTE, f"{duration(devices)} of a device"),
        ("max_trial_money", money, amount(money)),
    ):
        limit = getattr(limits, name)
        if limit is not None and spent >= limit:
            return f"budget.{name}={show(limit)} is used up ({said})"
    return None


def told(limits: Limits, used: Used) -> list[str]:
    """How much of each budget is used, and the cost where there is a price."""
    shown = []
    for name, limit, _, said in _study(limits, used):
        if limit is not None:
            shown.append(f"{said} of {show(limit)}{' h' if name == 'max_hours' else ''}")
        elif name == "max_money" and used.money is not None:
            shown.append(said)
    return shown


@dataclass(kw_only=True)
class Account:
    """Counts through one run; `count` it often, with seconds that never run backwards."""

    limits: Limits
    store: Store
    uuid: str
    run: RunRecord
    before: Used
    trials_before: Mapping[int, Times]
    _trials: dict[int, Times] = field(default_factory=dict)

    @property
    def used(self) -> Used:
        """What the study has used so far."""
        return self.before.later(
            self.run.seconds, self.run.devices, self.limits.price_per_hour
        )

    def count(self, seconds: float, running: Collection[int]) -> None:
        """It is so many seconds after the start of the run, and these trials are at workers."""
        step = max(0.0, seconds - self.run.seconds)
        share = step * min(1.0, self.run.devices / max(len(running), 1))
        for number in running:
            wall, devices = self._trials.get(number, (0.0, 0.0))
            self._trials[number] = (wall + step, devices + share)
        self.run = replace(self.run, seconds=self.run.seconds + step, trials=self._trials)

    def write(self) -> None:
        """Keeps it in the database: a killed run ends where this was last called."""
        self.store.spent(self.uuid, self.used.seconds, self.run)

    def ended(self, number: int) -> None:
        """A trial will not go on."""
        self._trials.pop(number, None)

    def reached(self) -> Reached | None:
        """The study's budget that is used up."""
        return reached(self.limits, self.used)

    def reached_by(self, number: int) -> str | None:
        """Why a trial may not go on."""
        parts = (times.get(number, (0.0, 0.0)) for times in (self.trials_before, self._trials))
        wall, devices = (sum(pair) for pair in zip(*parts, strict=True))
        return trial_reached(self.limits, wall, devices)


def _trial_times(runs: Sequence[RunRecord]) -> dict[int, Times]:
    """What trials that have not ended used in earlier runs."""
    times: dict[int, Times] = {}
    for run in runs:
        for number, (wall, devices) in run.trials.items():
            before = times.get(number, (0.0, 0.0))
            times[number] = (before[0] + wall, before[1] + devices)
    return times


def _study(limits: Limits, used: Used) -> Sequence[tuple[str, float | None, float, str]]:
    """Name, limit, what is used of it and how that is said, of the study's budgets."""
    hours, device_hours = used.seconds / HOUR, used.device_seconds / HOUR
    money = used.money or 0.0
    return (
        ("max_hours", limits.max_hours, hours, duration(used.seconds)),
        ("max_device_hours", limits.max_device_hours, device_hours,
         f"{amount(device_hours)} device-hours"),
        ("max_money", limits.max_money, money, f"money {amount(money)}"),
    )  # fmt: skip
