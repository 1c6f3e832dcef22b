"""How trials stand among each other as far as each came, and whether two values can be told apart.

Each pair of trials is compared at the last tick that both reached, as Gehan (1965) compares
censored times, so that a pruned trial counts with all that it showed and nothing is guessed. A
trial's standing is the share of the others that it beats, less the share that beats it: -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweep.report.dimensions import Axis
from sweep.store import TrialRecord

SHUFFLES = 2000
TRIALS_PER_COLUMN = 3  # fewer would fit the noise
LEAST = 3  # trials with a value, below which nothing is said of it
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One value of a dimension against another; `p` is null where there are too few trials."""

    value: Any
    other: Any
    trials: int
    others: int
    better: float  # how much higher the first one's trials stand
    p: float | None


def standings(records: Sequence[TrialRecord]) -> Numbers:
    """The standing of each trial; NaN for one without a loss."""
    ends = np.array([len(record.losses) for record in records])
    score, seen = np.zeros(len(records)), np.zeros(len(records))
    for tick in sorted(set(ends[ends > 0])):
        here = np.flatnonzero(ends >= tick)
        losses = np.array([_loss(records[int(k)], tick) for k in here])
        last = ends[here] == tick
        for mine, theirs in ((last, np.ones_like(last)), (~last, last)):
            score[here[mine]] += _beaten(losses[mine], losses[theirs])
            seen[here[mine]] += theirs.sum()
    seen[ends > 0] -= 1  # itself
    return np.where(seen > 0, score / np.maximum(seen, 1), math.nan)


def _loss(record: TrialRecord, tick: int) -> float:
    loss = record.losses[tick - 1]
    return loss if math.isfinite(loss) else math.inf


def _beaten(mine: Numbers, theirs: Numbers) -> Numbers:
    """For each loss: how many of the others are higher, less how many are lower."""
    ordered = np.sort(theirs)
    higher = len(ordered) - np.searchsorted(ordered, mine, side="right")
    return np.asarray(higher - np.searchsorted(ordered, mine, side="left"), dtype=np.float64)


def compare(
    records: Sequence[TrialRecord],
    standing: Numbers,
    axis: Axis,
    value: Any,
    adjust_for: Sequence[Axis] = (),
    seed: int = 0,
) -> list[Comparison]:
    """One value of an axis against each other level, after what `adjust_for` explains, in order.

    `p` from shuffled labels (Freedman and Lane 1983 for the adjustment).
    """
    known = np.isfinite(standing)
    if not known.any():
        return []
    used = [record for record, there in zip(records, known, strict=True) if there]
    rest = _residuals(used, standing[known], [a for a in adjust_for if a.name != axis.name])
    places = np.array([axis.place(record.params.get(axis.name)) for record in used])
    random, mine = np.random.default_rng(seed), places == axis.place(value)
    return [
        _compared(value, other, rest[mine], rest[places == axis.place(other)], random)
        for other in axis.levels
        if axis.place(other) != axis.place(value)
    ]


def _compared(
    value: Any, other: Any, mine: Numbers, theirs: Numbers, random: np.random.Generator
) -> Comparison:
    enough = min(len(mine), len(theirs)) >= LEAST
    better = float(mine.mean() - theirs.mean()) if len(mine) and len(theirs) else math.nan
    p = _chance(mine, theirs, abs(better), random) if enough else None
    return Comparison(
        value=value, other=other, trials=len(mine), others=len(theirs), better=better, p=p
    )


def _chance(mine: Numbers, theirs: Numbers, gap: float, random: np.random.Generator) -> float:
    """How often shuffled labels show at least this gap."""
    both, n = np.concatenate([mine, theirs]), len(mine)
    drawn = random.permuted(np.tile(both, (SHUFFLES, 1)), axis=1)
    gaps = np.abs(drawn[:, :n].mean(axis=1) - drawn[:, n:].mean(axis=1))
    return float((1 + (gaps >= gap - 1e-12).sum()) / (SHUFFLES + 1))


def _residuals(records: Sequence[TrialRecord], standing: Numbers, axes: Sequence[Axis]) -> Numbers:
    """What is left of the standings after what else differs, as far as there are trials for it.

    The trial's number comes first: a sampler that learns makes later trials better in everything
    at once, so that values it came to like would look better than they are.
    """
    matrix = np.column_stack([np.ones(len(records)), _centred([r.number for r in records])])
    for axis in axes:
        more = _columns(axis, [record.params.get(axis.name) for record in records])
        if len(records) >= TRIALS_PER_COLUMN * (matrix.shape[1] + more.shape[1]):
            matrix = np.column_stack([matrix, more])
    fit, *_ = np.linalg.lstsq(matrix, standing, rcond=None)
    return np.asarray(standing - matrix @ fit)


def _columns(axis: Axis, values: Sequence[Any]) -> Numbers:
    """A parabola in a number, a column for each further level of a choice; nulls in the middle."""
    places = np.array([axis.place(value) for value in values])
    if axis.numeric:
        centred = _centred(places)
        return np.column_stack([centred, centred**2])
    return np.column_stack([places == k for k in range(1, max(2, len(axis.levels)))]).astype(float)


def _centred(values: Sequence[float] | Numbers) -> Numbers:
    numbers = np.asarray(values, dtype=np.float64)
    known = np.isfinite(numbers)
    middle = numbers[known].mean() if known.any() else 0.0
    spread = numbers[known].std() if known.any() else 0.0
    return np.where(known, numbers - middle, 0.0) / (spread or 1.0)
