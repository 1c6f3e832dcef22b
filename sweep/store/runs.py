"""The runs of a study: when, where, on how many devices, at what price. Budgets are made of these.

The driver writes its run's row every few seconds, so that a killed run ends where it last did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from sweep.store import schema
from sweep.store.database import upsert
from trials.contract import to_json

HOUR = 3600.0
Times = tuple[float, float]  # seconds of wall-clock, seconds of devices


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run. `trials`: what those that have not ended used in it, by number."""

    run: int  # from 0
    host: str
    pid: int
    devices: int
    price_per_hour: float | None  # of one device
    started_at: float  # seconds since the epoch
    seconds: float = 0.0
    trials: Mapping[int, Times] = field(default_factory=dict)

    @property
    def device_seconds(self) -> float:
        """All devices are held from the start of a run to its end."""
        return self.seconds * self.devices


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """What was used; `money` is null where no price is known."""

    seconds: float = 0.0
    device_seconds: float = 0.0
    money: float | None = None

    def later(self, seconds: float, devices: int, price_per_hour: float | None) -> Used:
        """What it is after so many seconds more."""
        device_seconds, money = seconds * devices, self.money
        if price_per_hour is not None:
            money = (money or 0.0) + device_seconds / HOUR * price_per_hour
        return Used(
            seconds=self.seconds + seconds,
            device_seconds=self.device_seconds + device_seconds,
            money=money,
        )


def used_by(
    runs: Sequence[RunRecord], price_per_hour: float | None, seconds: float = 0.0
) -> Used:
    """What runs used; one whose price was not known then costs what it would now.

    `seconds` are the study's in all: what no run accounts for was spent on one device.
    """
    used = Used()
    for run in runs:
        price = price_per_hour if run.price_per_hour is None else run.price_per_hour
        used = used.later(run.seconds, run.devices, price)
    return used.later(max(0.0, seconds - used.seconds), 1, price_per_hour)


def read_runs(db: sa.Connection, uuid: str) -> list[RunRecord]:
    """A study's runs, the first one first; none of the time before this table was kept."""
    table = schema.runs
    chosen = sa.select(table).where(table.c.study_uuid == uuid).order_by(table.c.run)
    return [_record(row) for row in db.execute(chosen).mappings()]


def write_run(db: sa.Connection, uuid: str, record: RunRecord) -> None:
    """Writes or renews a run's row."""
    names = ("host", "pid", "devices", "price_per_hour", "started_at", "seconds")
    row = {name: getattr(record, name) for name in names}
    row["trials"] = to_json({str(number): list(used) for number, used in record.trials.items()})
    upsert(db, schema.runs, {"study_uuid": uuid, "run": record.run}, row)


def _record(row: sa.RowMapping) -> RunRecord:
    plain = {name: row[name] for name in row if name not in ("study_uuid", "trials")}
    trials = {int(number): (used[0], used[1]) for number, used in json.loads(row["trials"]).items()}
    return RunRecord(trials=trials, **plain)
