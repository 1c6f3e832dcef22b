"""Pruners by name: rules over the losses seen so far, each giving its no with a reason.

They are Optuna's rules (the tests hold them against Optuna's own classes), with fractions of the
budget instead of steps. Optuna's classes keep what they decided in the trial and then compare
whatever tick comes next; these are functions of the losses alone, so a decision that is asked again
after a crash is the same, only equal ticks are ever compared, and the reason is the comparison
itself.
"""

from __future__ import annotations

import binascii
import bisect
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sweep.config import Choice
from trials.contract import InputError


@dataclass(kw_only=True)
class Curve:
    """The losses of one trial by tick. `judged_from` is the first tick after its warm-up."""

    number: int
    losses: dict[int, float] = field(default_factory=dict)
    complete: bool = False
    competes: bool = True  # false for a failed trial and for a copy of another
    judged_from: int = 1


class Pruner(Protocol):
    """Decides whether a trial goes on after a tick."""

    @property
    def first_rung(self) -> int:
        """The tick at which it first decides."""

    def why_not(self, curve: Curve, tick: int, others: Iterable[Curve]) -> str | None:
        """Why the trial should stop after `tick`, or null. `others` are all trials but this."""


def pruner(choice: Choice, *, ticks: int, study: str) -> Pruner:
    """The pruner of that name for trials of so many ticks. Raises `InputError`."""
    make = _KNOWN.get(choice.name)
    if make is None:
        raise InputError(f"pruner={choice.name} is unknown. Known: {', '.join(_KNOWN)}.")
    return make(choice.options, ticks, study)


def judged_from(warmup: float, ticks: int) -> int:
    """The first tick after a warm-up that takes this share of the budget."""
    return math.floor(warmup * ticks + 1e-9) + 1


def tick_at(fraction: float, ticks: int) -> int:
    """The first tick at or beyond a fraction of the budget."""
    return min(max(1, math.ceil(fraction * ticks - 1e-9)), ticks)


@dataclass(frozen=True, kw_only=True)
class Never:
    """Every trial runs to its end."""

    first_rung: int = 1

    def why_not(self, curve: Curve, tick: int, others: Iterable[Curve]) -> str | None:
        return None


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving:
    """ASHA (Li et al. 2018): at tick first_rung * factor^k, the best of `factor` go on."""

    first_rung: int
    factor: int

    def why_not(self, curve: Curve, tick: int, others: Iterable[Curve]) -> str | None:
        if not self._is_rung(tick):
            return None
        loss = curve.losses[tick]
        rivals = sorted([loss, *_at(tick, others)])
        need = rivals[max(len(rivals) // self.factor - 1, 0)]
        if loss <= need:
            return None
        best = "half" if self.factor == 2 else f"1/{self.factor}"
        return (
            f"loss {loss:.4g} is not in the best {best} of {len(rivals)} trials at this tick "
            f"(needs {need:.4g})"
        )

    def _is_rung(self, tick: int) -> bool:
        rung = self.first_rung
        while rung < tick:
            rung *= self.factor
        return rung == tick


@dataclass(frozen=True, kw_only=True)
class Hyperband:
    """Brackets of successive halving with later and later first rungs (Li et al. 2018).

    A trial's bracket follows from the study's name and its number, as in Optuna.
    """

    first_rung: int
    factor: int
    ticks: int
    study: str

    def why_not(self, curve: Curve, tick: int, others: Iterable[Curve]) -> str | None:
        mine = self._bracket(curve.number)
        rivals = [other for other in others if self._bracket(other.number) == mine]
        halving = SuccessiveHalving(
            first_rung=self.first_rung * self.factor**mine, factor=self.factor
        )
        why = halving.why_not(curve, tick, rivals)
        return why and f"{why}, bracket {mine + 1} of {self._brackets}"

    @property
    def _brackets(self) -> int:
        return math.floor(math.log(self.ticks / self.first_rung, self.factor) + 1e-9) + 1

    def _bracket(self, number: int) -> int:
        count = self._brackets
        shares = [math.ceil(count * self.factor**s / (s + 1)) for s in range(count - 1, -1, -1)]
        place = binascii.crc32(f"{self.study}_{number}".encode()) % sum(shares)
        return bisect.bisect_right(list(itertools.accumulate(shares)), place)


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The best loss so far against that percentile of the complete trials at the same tick."""

    first_rung: int
    percentile: float
    startup_trials: int

    def why_not(self, curve: Curve, tick: int, others: Iterable[Curve]) -> str | None:
        rivals = _at(tick, (other for other in others if other.complete))
        if tick < self.first_rung or not rivals or len(rivals) < self.startup_trials:
            return None
        best = min(loss for at, loss in curve.losses.items() if at <= tick)
        need = _percentile(rivals, self.percentile)
        if best <= need:
            return None
        name = "the median" if self.percentile == 50 else f"percentile {self.percentile:g}"
        return (
            f"best loss {best:.4g} is above {name} of {len(rivals)} complete trials "
            f"at this tick (needs {need:.4g})"
        )


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Asks the wrapped pruner only about a trial that has stopped improving."""

    patience: int  # ticks without an improvement
    min_delta: float
    wrapped: Pruner

    @property
    def first_rung(self) -> int:
        return self.wrapped.first_rung

    def why_not(self, curve: Curve, tick: int, others: Iterable[Curve]) -> str | None:
        losses = [loss for at, loss in sorted(curve.losses.items()) if at <= tick]
        before, after = losses[: -self.patience], losses[-self.patience :]
        if not before or min(before) + self.min_delta >= min(after):
            return None
        why = self.wrapped.why_not(curve, tick, others)
        since = f"no improvement on {min(before):.4g} in {self.patience} ticks"
        return why and f"{since}, and {why}"


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Stops a trial whose loss is out of bounds."""

    first_rung: int
    upper: float
    lower: float

    def why_not(self, curve: Curve, tick: int, others: Iterable[Curve]) -> str | None:
        loss = curve.losses[tick]
        if tick < self.first_rung or self.lower <= loss <= self.upper:
            return None
        if loss > self.upper:
            return f"loss {loss:.4g} is above pruner.upper={self.upper:g}"
        return f"loss {loss:.4g} is below pruner.lower={self.lower:g}"


def _at(tick: int, curves: Iterable[Curve]) -> list[float]:
    """The losses at a tick of the trials that may be compared there."""
    return [
        curve.losses[tick]
        for curve in curves
        if curve.competes and tick >= curve.judged_from and tick in curve.losses
    ]


def _percentile(losses: Sequence[float], percent: float) -> float:
    """Linear interpolation between the neighbours, as numpy does."""
    if percent == 50:
        return statistics.median(losses)
    ordered = sorted(losses)
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


Options = Mapping[str, Any]


def _asha(options: Options, ticks: int, study: str) -> Pruner:
    first = tick_at(float(options.get("min_fraction", 0.4)), ticks)
    return SuccessiveHalving(first_rung=first, factor=int(options.get("reduction_factor", 2)))


def _hyperband(options: Options, ticks: int, study: str) -> Pruner:
    first = tick_at(float(options.get("min_fraction", 0.25)), ticks)
    factor = int(options.get("reduction_factor", 2))
    return Hyperband(first_rung=first, factor=factor, ticks=ticks, study=study)


def _percentiles(options: Options, ticks: int, study: str) -> Pruner:
    return Percentile(
        first_rung=tick_at(float(options.get("min_fraction", 0.4)), ticks),
        percentile=float(options.get("percentile", 50)),
        startup_trials=int(options.get("startup_trials", 4)),
    )


def _patient(options: Options, ticks: int, study: str) -> Pruner:
    name = str(options.get("wrapped", "asha"))
    if name not in ("asha", "median"):
        raise InputError(f"pruner.wrapped={name} is unknown. Known: asha, median.")
    return Patient(
        patience=tick_at(float(options.get("patience", 0.2)), ticks),
        min_delta=float(options.get("min_delta", 0.0)),
        wrapped=_KNOWN[name]({}, ticks, study),
    )


def _threshold(options: Options, ticks: int, study: str) -> Pruner:
    upper, lower = options.get("upper"), options.get("lower")
    if upper is None and lower is None:
        raise InputError("pruner=threshold needs a bound. Type pruner.upper=2.5 or pruner.lower=0.")
    return Threshold(
        first_rung=tick_at(float(options.get("min_fraction", 0.4)), ticks),
        upper=math.inf if upper is None else float(upper),
        lower=-math.inf if lower is None else float(lower),
    )


_KNOWN: Mapping[str, Callable[[Options, int, str], Pruner]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _percentiles,
    "percentile": _percentiles,
    "patient": _patient,
    "threshold": _threshold,
    "none": lambda options, ticks, study: Never(),
}
