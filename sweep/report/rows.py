"""What the report reads beside the records of `sweep.store`: ticks, attempts, samples, settings.

One query for all trials of a study each, so that 2,000 trials are read in well under a second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sweep.store import RUNNING, Store, StudyRecord, schema
from trials.contract import Sample

Facts = Mapping[str, tuple[Any, str]]  # leaf -> (value, as one would type it)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A trial's evaluation at a tick; `examples` and `seconds` count from the trial's start."""

    trial: int
    tick: int
    eval_loss: float  # NaN where it was not finite
    eval_accuracy: float | None
    examples: int
    tokens: int
    seconds: float
    utilisation: float | None
    worker: str
    slot: int
    reported_at: float  # epoch seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A trial at a worker, from begin to end in epoch seconds."""

    trial: int
    attempt: int
    outcome: str
    worker: str
    slot: int
    started_at: float
    ended_at: float


def ticks(store: Store, uuid: str) -> list[Tick]:
    """All ticks by trial and tick; of two attempts' the later one's."""
    table = schema.ticks
    found: dict[tuple[int, int], Tick] = {}
    for row in _select(store, table, uuid, table.c.tick):
        loss = row["eval_loss"]
        found[row["number"], row["tick"]] = Tick(
            trial=row["number"],
            eval_loss=math.nan if loss is None else loss,
            **{name: row[name] for name in _SAME},
        )
    return [found[key] for key in sorted(found)]


_SAME = ("tick", "eval_accuracy", "examples", "tokens", "seconds", "utilisation", "worker", "slot",
         "reported_at")  # fmt: skip


def attempts(store: Store, uuid: str, now: float | None = None) -> list[Attempt]:
    """All attempts by begin. One that was cut short ended with its last sign of life.

    With `now`, in epoch seconds, what runs does so until then.
    """
    table = schema.trials
    last, slots = _reported(store, uuid)
    found = []
    for row in _select(store, table, uuid):
        key = (row["number"], row["attempt"])
        alive = max(row["started_at"], last.get(key, 0.0))
        ended = row["finished_at"] if row["outcome"] != RUNNING else now
        found.append(
            Attempt(
                trial=row["number"],
                slot=slots.get(key, 0),
                ended_at=max(ended or alive, row["started_at"]),
                **{name: row[name] for name in ("attempt", "outcome", "worker", "started_at")},
            )
        )
    return sorted(found, key=lambda attempt: (attempt.started_at, attempt.trial))


def _reported(
    store: Store, uuid: str
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], int]]:
    """When each attempt last reported, and from which slot."""
    last: dict[tuple[int, int], float] = {}
    slots: dict[tuple[int, int], int] = {}
    for row in _select(store, schema.ticks, uuid):
        key = (row["number"], row["attempt"])
        last[key] = max(last.get(key, 0.0), row["reported_at"])
        slots[key] = row["slot"]
    return last, slots


def steps(store: Store, uuid: str) -> Iterator[tuple[int, Sequence[float]]]:
    """All optimizer steps by trial, each a `CurvePoint` in order; of two attempts' the later's."""
    found = {
        (row["number"], row["tick"]): row["points"]
        for row in _select(store, schema.curves, uuid, schema.curves.c.tick)
    }
    for number, tick in sorted(found):
        for point in json.loads(found[number, tick]):
            yield number, [point[0], *map(float, point[1:])]


def samples(store: Store, uuid: str) -> dict[tuple[int, int], list[Sample]]:
    """What each trial's model wrote, by number and tick; of two attempts' the later one's."""
    return {
        (row["number"], row["tick"]): [Sample(**sample) for sample in json.loads(row["samples"])]
        for row in _select(store, schema.samples, uuid, schema.samples.c.tick)
    }


def _select(store: Store, table: sa.Table, uuid: str, *then: Any) -> list[Mapping[str, Any]]:
    order = (table.c.number, table.c.attempt, *then)
    query = sa.select(table).where(table.c.study_uuid == uuid).order_by(*order)
    with store.engine.connect() as db:
        return [dict(row) for row in db.execute(query).mappings()]


def optuna_says(store: Store, study: StudyRecord) -> tuple[Facts, Mapping[str, Any]]:
    """The configuration that the study was opened with, and its attributes in Optuna's tables.

    Both empty where Optuna's half is gone.
    """
    import optuna
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage

    from sweep.study import ATTRIBUTE, what_it_is

    try:
        storage = RDBStorage(
            store.engine.url.render_as_string(hide_password=False), skip_table_creation=True
        )
    except (RuntimeError, StorageInternalError, sa.exc.SQLAlchemyError):
        return {}, {}
    try:
        found = optuna.load_study(study_name=study.study, storage=storage)
        attributes, known = dict(found.user_attrs), what_it_is(found) or {}
    except (KeyError, StorageInternalError):
        return {}, {}
    finally:
        storage.engine.dispose()
    attributes.pop(ATTRIBUTE, None)  # an older version's place for it
    if known.get("uuid") != study.uuid:
        return {}, {}
    return {name: (value, text) for name, (value, text) in known["facts"].items()}, attributes
