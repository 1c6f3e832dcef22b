"""The searched dimensions as axes: where a value lies, which there are, how they are said."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweep.results import wording
from sweep.store import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MOST_LEVELS = 12  # different values up to which a number is shown as one of a few


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One searched leaf. `levels` are its values in order where they are few, else empty.

    `low` and `high` bound a continuum; `conditional` where some trials do not have it.
    """

    name: str
    label: str
    expression: str  # as the user wrote it
    numeric: bool
    log: bool
    levels: tuple[Any, ...]
    low: float
    high: float
    conditional: bool
    distribution: BaseDistribution

    @property
    def discrete(self) -> bool:
        """Whether it takes one of a few values."""
        return bool(self.levels)

    def place(self, value: Any) -> float:
        """Where a value lies on the axis; NaN for none. Levels are evenly spaced."""
        if value is None:
            return math.nan
        if self.discrete:
            return next((float(k) for k, x in enumerate(self.levels) if _same(x, value)), math.nan)
        if not isinstance(value, (int, float)) or (self.log and value <= 0):
            return math.nan
        return math.log10(value) if self.log else float(value)

    @property
    def span(self) -> tuple[float, float]:
        """The ends of the axis, as `place` has them."""
        if self.discrete:
            return 0.0, float(len(self.levels) - 1)
        low, high = self.place(self.low), self.place(self.high)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    def ticks(self, most: int = MOST_LEVELS) -> tuple[list[float], list[str]]:
        """Places on the axis that are labelled, and their labels; of a continuum so many."""
        if self.discrete:
            texts = [wording.value(level) for level in self.levels]
            return [float(k) for k in range(len(texts))], texts
        low, high = self.span
        even = [low + (high - low) * k / 4 for k in range(5)]
        shown = decades(low, high, most) if self.log else even
        return shown, [wording.value(10**x if self.log else x) for x in shown]

    def value_at(self, place: float) -> Any:
        """The value at a place of a continuum."""
        return 10**place if self.log else place


def _same(level: Any, value: Any) -> bool:
    """Whether a level is this value: True is not 1, and steps add up to rounded numbers."""
    if isinstance(level, bool) or isinstance(value, bool) or not isinstance(level, float):
        return type(level) is type(value) and bool(level == value)
    return isinstance(value, (int, float)) and math.isclose(level, value)


def axes(
    names: Sequence[str], facts: Mapping[str, tuple[Any, str]], records: Sequence[TrialRecord]
) -> tuple[Axis, ...]:
    """The axes of a study, from what it searched, else from what its trials have."""
    labels = wording.short_names(names)
    return tuple(_axis(name, labels[name], facts.get(name), records) for name in names)


def _axis(
    name: str, label: str, fact: tuple[Any, str] | None, records: Sequence[TrialRecord]
) -> Axis:
    from optuna.distributions import CategoricalDistribution

    seen = [record.params[name] for record in records if name in record.params]
    found: Any = _distribution(fact, seen)
    categorical = isinstance(found, CategoricalDistribution)
    values = list(found.choices) if categorical else [found.low, found.high, *seen]
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    levels = _levels(values, numeric) if categorical else _steps(found)
    return Axis(
        name=name,
        label=label,
        expression=_expression(fact),
        numeric=numeric,
        log=_geometric(levels, numeric) if categorical else bool(found.log),
        levels=levels,
        low=float(min(values)) if numeric else 0.0,
        high=float(max(values)) if numeric else 0.0,
        conditional=len(seen) < len(records),
        distribution=found,
    )


def _expression(fact: tuple[Any, str] | None) -> str:
    """As a user would type it, without the shell's quotes."""
    return fact[1].replace("'", "") if fact else ""


def _distribution(fact: tuple[Any, str] | None, seen: Sequence[Any]) -> BaseDistribution:
    """As the study says; a study that does not say searched what its trials have."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        json_to_distribution,
    )

    if fact and isinstance(fact[0], Mapping) and "distribution" in fact[0]:
        return json_to_distribution(json.dumps(fact[0]["distribution"]))
    if seen and all(isinstance(v, float) for v in seen):
        return FloatDistribution(min(seen), max(seen))
    return CategoricalDistribution(list(dict.fromkeys(seen)) or [None])


def _levels(values: Sequence[Any], numeric: bool) -> tuple[Any, ...]:
    different = list(dict.fromkeys(values))
    return tuple(sorted(different)) if numeric else tuple(different)


def _steps(found: Any) -> tuple[Any, ...]:
    """The values of a range in steps, where they are few enough to name each."""
    if found.step is None or (found.high - found.low) / found.step >= MOST_LEVELS:
        return ()
    count = round((found.high - found.low) / found.step) + 1
    return tuple(found.low + k * found.step for k in range(count))


def _geometric(levels: Sequence[Any], numeric: bool) -> bool:
    """Whether choices such as 4, 8, 16 are meant by their ratios."""
    return numeric and len(levels) > 2 and levels[0] > 0 and levels[-1] / levels[0] >= 8


def decades(low: float, high: float, most: int) -> list[float]:
    """The exponents of 1, 2 and 5 in each decade, or of fewer; the ends where there is none."""
    for marks in ((1, 2, 5), (1, 3), (1,)):
        whole = range(math.floor(low), math.ceil(high) + 1)
        places = [decade + math.log10(mark) for decade in whole for mark in marks]
        inside = [place for place in places if low - 1e-9 <= place <= high + 1e-9]
        if len(inside) <= most:
            break
    return inside if len(inside) > 1 else [low, high]
