"""The search space: sweep expressions -> Optuna distributions; parameters -> TrialConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One searched leaf, such as "lora.r"; proposed only where its `when` leaves have those values."""

    name: str
    distribution: BaseDistribution
    expression: str  # as the user wrote it
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """All dimensions, each after those its condition names."""

    dimensions: tuple[Dimension, ...]
    frozen: tuple[tuple[str, Any], ...] = ()  # dimensions set to a plain value
