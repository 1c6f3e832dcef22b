"""What models wrote for the evaluation prompts: one row for each trial and tick that has some.

On SQLite the view `sweep_sample` shows them one by one, next to what the untouched base wrote:

    select prompt, reference, base, generated from sweep_sample where number = 7
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from sweep.store import schema
from sweep.store.database import upsert
from trials.contract import Sample, to_json


def keep(
    db: sa.Connection, key: Mapping[str, Any], tick: int, samples: Sequence[Sample]
) -> None:
    """Writes the samples of a trial's attempt at a tick, if there are any."""
    if samples:
        upsert(db, schema.samples, {**key, "tick": tick}, {"samples": to_json(tuple(samples))})


def by_tick(db: sa.Connection, uuid: str, number: int) -> dict[int, tuple[Sample, ...]]:
    """A trial's samples by tick; of two attempts the later one's."""
    table = schema.samples.c
    chosen = sa.select(table.tick, table.samples).order_by(table.attempt)
    rows = db.execute(chosen.where(table.study_uuid == uuid, table.number == number)).all()
    return {tick: _samples(text) for tick, text in sorted(dict(map(tuple, rows)).items())}


def baseline(db: sa.Connection, uuid: str) -> tuple[Sample, ...]:
    """What the untouched base wrote."""
    table = schema.studies.c
    return _samples(db.scalar(sa.select(table.baseline_samples).where(table.study_uuid == uuid)))


def _samples(text: str | None) -> tuple[Sample, ...]:
    return tuple(Sample(**sample) for sample in json.loads(text or "[]"))
