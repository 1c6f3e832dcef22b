"""Our tables beside Optuna's, in the same database: what Optuna has no place for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
