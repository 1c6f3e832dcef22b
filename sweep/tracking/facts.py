"""A study and its trials as trackers show them, read from our tables."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sweep.results.wording import clean
from sweep.secrets import masked
from sweep.store import RUNNING, Store, StudyRecord, TrialRecord, schema
from trials.contract import CurvePoint, Outcome, Setup, TrialConfig

SAMPLE_COLUMNS = ("prompt", "reference", "base", "generated")
Table = tuple[tuple[str, ...], ...]  # one line for each prompt, as in SAMPLE_COLUMNS
GOES_ON = (RUNNING, Outcome.STOPPED.value)  # outcomes of trials that may be continued
TICK = ("eval_loss", "eval_accuracy", "tick", "tokens", "seconds", "utilisation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What a tracker must know of a study. `options` are those of `tracking`."""

    record: StudyRecord
    setup: Setup
    folder: Path  # results/<study>
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The study's name, printable."""
        return clean(self.record.study)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What is known after so many examples: an optimizer step, a tick, or both."""

    examples: int
    step: int  # its place among the trial's rows, whoever writes them and however often
    values: Mapping[str, float]
    at: float  # seconds since the epoch: when its tick was reported


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A trial as the tables have it now, over all its attempts."""

    record: TrialRecord
    config: TrialConfig
    rows: tuple[Row, ...]  # by examples, each number of examples once
    samples: Mapping[int, Table]  # by examples seen; the last is the trial's end
    baseline_loss: float

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self.record.number

    def tree(self) -> dict[str, Any]:
        """The complete configuration and the searched values, nested like the search's leaves."""
        tree = _cells(dataclasses.asdict(self.config)) | {"worker": self.record.worker}
        tree.pop("attempt")  # a run is the trial's, not the attempt's
        for name, item in self.params().items():
            *groups, leaf = name.split(".")
            place = tree
            for group in groups:
                place = place.setdefault(group, {})
            place[leaf] = item
        return tree

    def params(self) -> dict[str, Any]:
        """The searched values by name ("lora.r"), each one cell of a table."""
        return {name: _cell(item) for name, item in self.record.params.items()}

    def summary(self) -> dict[str, Any]:
        """Its result in columns; rates are per second of training alone."""
        record = self.record
        training_s = record.seconds - record.eval_seconds - record.sample_seconds
        summary: dict[str, Any] = {
            "eval_loss": record.eval_loss,
            "eval_accuracy": record.eval_accuracy,
            "first_rung_loss": record.first_rung_loss,
            "baseline_loss": self.baseline_loss,
            "outcome": record.outcome,
            "reason": clean(record.reason) if record.reason else None,
            "ticks": record.ticks,
            "examples": record.examples,
            "tokens": record.tokens,
            "tokens_per_s": record.tokens / training_s if training_s > 0 else None,
            "seconds": record.seconds,
            "eval_seconds": record.eval_seconds,
            "sample_seconds": record.sample_seconds,
            "peak_memory_bytes": record.memory_bytes,
            "utilisation": record.utilisation,
            "trainable_parameters": record.trainable_parameters,
        }
        return {name: item for name, item in summary.items() if item is not None}


def read_trial(store: Store, study: Study, number: int) -> Trial:
    """A trial from our tables. Raises `InputError` if there is none of this number."""
    uuid = study.record.uuid
    record, ticks = store.trials(uuid, number)[0], _ticks(store, uuid, number)
    points = store.curves(uuid, number)
    if record.outcome in GOES_ON:  # a tick told meanwhile is shown with its loss, the next time
        points = [point for point in points if ticks and point.examples <= ticks[-1]["examples"]]
    end = record.finished_at or time.time()
    return Trial(
        record=record,
        config=store.trial_config(uuid, number),
        rows=tuple(_rows(points, ticks, end)),
        samples=_samples(store, uuid, number, ticks),
        baseline_loss=study.record.baseline_loss,
    )


def _ticks(store: Store, uuid: str, number: int) -> list[sa.RowMapping]:
    """A trial's ticks; of two attempts' the later one's."""
    table = schema.ticks
    chosen = sa.select(table).where(table.c.study_uuid == uuid, table.c.number == number)
    with store.engine.connect() as db:
        rows = db.execute(chosen.order_by(table.c.attempt)).mappings().all()
    latest = {row["tick"]: row for row in rows}
    return [latest[tick] for tick in sorted(latest)]


def _rows(
    points: Sequence[CurvePoint], ticks: Sequence[sa.RowMapping], end: float
) -> Iterator[Row]:
    """Steps and ticks by examples: a tick is one row with the step that led to it."""
    rows: dict[int, dict[str, float | None]] = {}
    for point in points:
        values = dataclasses.asdict(point)
        rows[values.pop("examples")] = values
    for tick in ticks:
        measured = {name: tick[name] for name in TICK} | {"peak_memory_bytes": tick["memory_bytes"]}
        rows[tick["examples"]] = rows.get(tick["examples"], {}) | measured
    for step, examples in enumerate(sorted(rows)):
        at = next((t["reported_at"] for t in ticks if t["examples"] >= examples), end)
        yield Row(examples=examples, step=step, values=_finite(rows[examples]), at=at)


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}


def _samples(
    store: Store, uuid: str, number: int, ticks: Sequence[sa.RowMapping]
) -> dict[int, Table]:
    base = {sample.prompt: sample.generated for sample in store.baseline_samples(uuid)}
    seen = {tick["tick"]: int(tick["examples"]) for tick in ticks}
    return {
        seen.get(tick, 0): tuple(
            (s.prompt, s.reference, base.get(s.prompt, ""), s.generated) for s in samples
        )
        for tick, samples in store.samples(uuid, number).items()
    }


def _cells(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _cells(v) if isinstance(v, Mapping) else _cell(v) for k, v in tree.items()}


def _cell(item: Any) -> Any:
    """One cell of a table: lists as text, URLs without their passwords."""
    if isinstance(item, (tuple, list)):
        item = "+".join(map(str, item))
    return masked(item) if isinstance(item, str) else item
