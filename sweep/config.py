"""Hydra's DictConfig -> one frozen SweepConfig: every check that needs no model and no data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.contract import DataConfig, EngineConfig, ModelConfig

if TYPE_CHECKING:
    from sweep.space import Space


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One variant of a group (a sampler, a pruner, a tracker) with its own options by name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorConfig:
    """Where workers run. `workers` null: one for each device."""

    name: str  # inline, local
    workers: int | None = None
    patience_s: float = 600.0  # a worker silent for longer is taken for hung


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the whole study may use, over all its runs."""

    n_trials: int
    wall_clock_hours: float | None = None
    max_failures: int = 5  # failed trials in a row that end the sweep


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """One sweep, complete and checked."""

    study: str
    seed: int
    storage: str  # SQLAlchemy URL
    results_dir: Path  # absolute; the study's own folder is results_dir / study
    device: str  # auto, cpu, cuda, cuda:0, ...
    keep_adapters: int  # the best k stay on disk
    model: ModelConfig
    data: DataConfig
    engine: EngineConfig
    values: Mapping[str, Any]  # "lora.r", "train.scheduler", "budget.examples", ...: the fixed ones
    space: Space
    limits: Limits
    sampler: Choice
    pruner: Choice
    executor: ExecutorConfig
    tracking: Choice  # wandb, none
    command: str  # the command line as typed, secrets masked, to say how to go on
    resolved: str  # the resolved configuration as YAML, secrets masked

    @property
    def study_dir(self) -> Path:
        """Where everything of this study lies that is not in the database."""
        return self.results_dir / self.study
