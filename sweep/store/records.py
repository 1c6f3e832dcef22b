"""Studies and trials as our tables hold them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from trials.contract import Setup

if TYPE_CHECKING:  # reading needs no configuration
    from sweep.config import SweepConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """A trial as the tables hold it, its latest attempt. `outcome` "running" until it ends."""

    number: int
    attempt: int
    outcome: str
    reason: str | None
    params: Mapping[str, Any]
    eval_loss: float | None  # the last one reported
    eval_accuracy: float | None
    first_rung_loss: float | None
    ticks: int
    losses: tuple[float, ...]  # evaluation loss at tick 1, 2, ...
    examples: int
    tokens: int
    seconds: float
    eval_seconds: float
    sample_seconds: float
    memory_bytes: int
    trainable_parameters: int
    utilisation: float | None
    adapter: str | None
    worker: str
    started_at: float  # seconds since the epoch
    finished_at: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """A study as the tables hold it."""

    study: str
    uuid: str
    n_trials: int
    ticks: int
    first_rung: int
    baseline_loss: float
    baseline_accuracy: float | None
    model: str
    data: str
    device: str
    dimensions: tuple[str, ...]
    results_dir: str
    started_at: float
    seconds: float  # wall-clock over all runs
    versions: Mapping[str, str]


def study_of(config: SweepConfig, setup: Setup, *, uuid: str, first_rung: int) -> StudyRecord:
    """A study that begins now, as its configuration and its worker describe it."""
    return StudyRecord(
        study=config.study,
        uuid=uuid,
        n_trials=config.limits.n_trials,
        ticks=config.values["budget.ticks"],
        first_rung=first_rung,
        baseline_loss=setup.baseline_loss,
        baseline_accuracy=setup.baseline_accuracy,
        model=setup.model.name,
        data=setup.data.path or setup.data.format,
        device=setup.device.name,
        dimensions=tuple(dimension.name for dimension in config.space.dimensions),
        results_dir=str(config.results_dir),
        started_at=time.time(),
        seconds=0.0,
        versions=setup.device.versions,
    )


def finite(value: float | None) -> float | None:
    """The value, or null where it is not finite: MySQL knows neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None


def study_record(row: sa.RowMapping) -> StudyRecord:
    """A study from its row."""
    names = StudyRecord.__dataclass_fields__.keys() - {"uuid", "dimensions", "versions"}
    plain = {name: row[name] for name in names}
    plain["baseline_loss"] = math.nan if row["baseline_loss"] is None else row["baseline_loss"]
    return StudyRecord(
        uuid=row["study_uuid"],
        dimensions=tuple(json.loads(row["dimensions"])),
        versions=json.loads(row["versions"]),
        **plain,
    )


def trial_record(row: sa.RowMapping, losses: Mapping[int, float]) -> TrialRecord:
    """A trial from its latest attempt's row and its losses by tick."""
    names = TrialRecord.__dataclass_fields__.keys() - {"params", "losses"}
    return TrialRecord(
        params=json.loads(row["params"]),
        losses=tuple(loss for _, loss in sorted(losses.items())),
        **{name: row[name] for name in names},
    )
