"""How much each dimension mattered for the loss at the first rung, over all trials, and how surely.

Optuna's PED-ANOVA (Watanabe et al. 2023) on a view of the study in which every trial counts through
its loss at the first rung: the one number that pruned and complete trials share. Uncertainty from
random halves of the trials (without replacement: doubles would fool a density estimate; the spread
of half-samples is that of the whole). Chance from the same measure after the losses were shuffled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.report.dimensions import Axis
from sweep.report.frames import StudyFrames
from sweep.results.wording import share
from sweep.store import TrialRecord

if TYPE_CHECKING:
    from optuna import Study

LEAST_TRIALS = 8  # below, halves of them say nothing
ENOUGH_BEST = 5  # trials among the best that Optuna advises for the measure
SURE = 0.05  # chance of a false word over all dimensions together
WORK = 30_000  # trials evaluated over all shuffles: a second or two
Losses = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """One dimension's share of what all explain, 0..1; `low` and `high` hold 80 % of the halves.

    `chance` is the share that only one of twenty shuffles exceeds; `p` how often a shuffle does as
    well as what was found.
    """

    name: str
    label: str
    share: float
    low: float
    high: float
    chance: float
    p: float
    least: float  # the smallest `p` that so many shuffles can show
    decides: bool  # beyond chance, though so many dimensions were looked at

    @property
    def likely(self) -> bool:
        """Whether it would be beyond chance, had it been the only one looked at."""
        return self.p <= SURE

    @property
    def by_chance(self) -> str:
        """How often chance shows as much."""
        return f"less than {share(self.least)}" if self.p <= self.least + 1e-9 else share(self.p)


@dataclass(frozen=True, kw_only=True, slots=True)
class Importances:
    """All dimensions, the weightiest first; none where there are too few trials."""

    trials: int  # with a loss at the first rung
    pruned: int  # of these
    diverged: int  # further ones that count as worst
    dimensions: tuple[Importance, ...]

    def __bool__(self) -> bool:
        return bool(self.dimensions)

    @property
    def deciding(self) -> tuple[Importance, ...]:
        """Those whose effect is hardly chance."""
        return tuple(entry for entry in self.dimensions if entry.decides)


def importances(frames: StudyFrames, seed: int = 0) -> Importances:
    """The importance of every dimension of a study; the same each time."""
    trials, losses = _judged(frames.own)
    axes = [axis for axis in frames.axes if _varies(axis, trials)]
    counts = {
        "trials": len(trials),
        "pruned": sum(trial.outcome == "pruned" for trial in trials),
        "diverged": sum(trial.outcome == "diverged" for trial in trials),
    }
    if len(trials) < LEAST_TRIALS or not axes or losses.min() == losses.max():
        return Importances(**counts, dimensions=())
    measure = _measure(_view(trials, losses, axes), [axis.name for axis in axes])
    found = _all(axes, measure, losses, np.random.default_rng(seed))
    return Importances(**counts, dimensions=tuple(sorted(found, key=lambda i: -i.share)))


def _judged(records: Sequence[TrialRecord]) -> tuple[list[TrialRecord], Losses]:
    """The trials that reached the first rung, or diverged before: those count as worst."""
    seen = [r for r in records if _finite(r.first_rung_loss) and r.outcome != "failed"]
    worst = max((r.first_rung_loss or 0.0 for r in seen), default=0.0)
    lost = [r for r in records if r.outcome == "diverged" and not _finite(r.first_rung_loss)]
    losses = [r.first_rung_loss or 0.0 for r in seen] + [worst + 1.0] * len(lost)
    return seen + lost, np.array(losses, dtype=np.float64)


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _varies(axis: Axis, trials: Sequence[TrialRecord]) -> bool:
    return len({trial.params.get(axis.name) for trial in trials}) > 1


def _view(trials: Sequence[TrialRecord], losses: Losses, axes: Sequence[Axis]) -> Study:
    """The study as if every trial had ended at the first rung."""
    import optuna

    study = optuna.create_study(direction="minimize", storage=optuna.storages.InMemoryStorage())
    shared = {axis.name: axis.distribution for axis in axes}
    for trial, loss in zip(trials, losses, strict=True):
        params = {name: trial.params[name] for name in shared if name in trial.params}
        distributions = {name: shared[name] for name in params}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=float(loss)
            )
        )
    for frozen in study.get_trials(deepcopy=False):  # one object each: most time went into `==`
        frozen.distributions = {name: shared[name] for name in frozen.params}
    return study


Measure = Callable[[Losses], Losses]


def _measure(study: Study, names: Sequence[str]) -> Measure:
    """PED-ANOVA of the same trials with other losses; a NaN leaves a trial out."""
    from optuna.importance import PedAnovaImportanceEvaluator

    def measure(losses: Losses) -> Losses:
        count = int(np.isfinite(losses).sum())
        best = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, ENOUGH_BEST / count)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that `target` is minimised; that a regime is small
            found: Mapping[str, float] = best.evaluate(
                study, list(names), target=lambda trial: float(losses[trial.number])
            )
        return np.array([found[name] for name in names])

    return measure


def _all(
    axes: Sequence[Axis], measure: Measure, losses: Losses, random: np.random.Generator
) -> list[Importance]:
    rounds = int(min(200, max(60, WORK / len(losses))))
    whole = measure(losses)
    shuffled = np.array([measure(random.permutation(losses)) for _ in range(rounds)])
    halves = np.array([_shares(measure(_half(losses, random))) for _ in range(rounds // 2)])
    # Weighed against what the study itself explains, chance can be drawn beside the shares.
    chance = np.quantile(shuffled, 0.95, axis=0) / max(whole.sum(), 1e-12)
    p = (1 + (shuffled >= whole).sum(axis=0)) / (rounds + 1)
    return [
        Importance(
            name=axis.name,
            label=axis.label,
            share=float(_shares(whole)[k]),
            low=float(np.quantile(halves[:, k], 0.1)),
            high=float(np.quantile(halves[:, k], 0.9)),
            chance=float(min(chance[k], 1.0)),
            p=float(p[k]),
            least=1 / (rounds + 1),
            decides=bool(p[k] <= max(SURE / len(axes), 1 / (rounds + 1) + 1e-9)),
        )
        for k, axis in enumerate(axes)
    ]


def _half(losses: Losses, random: np.random.Generator) -> Losses:
    """The losses of a random half of the trials, NaN for the others."""
    kept = random.permutation(len(losses))[: (len(losses) + 1) // 2]
    half = np.full(len(losses), math.nan)
    half[kept] = losses[kept]
    return half


def _shares(raw: Losses) -> Losses:
    total = raw.sum()
    return raw / total if total > 0 else np.zeros_like(raw)
