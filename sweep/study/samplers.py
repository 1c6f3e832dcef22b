"""Samplers by name. A suggestion follows from the seed, the trial's number and what is finished.

So a sampler is made afresh for each trial, seeded by (study seed, trial number): no generator's
state is lost with a process, and the same command gives the same sweep.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from sweep.config import Choice
from sweep.space import Dimension, Space
from trials.contract import InputError

Sampling = Callable[[int], BaseSampler]  # trial number -> the sampler that proposes it
Values = Mapping[str, Any]  # options, or leaves, by name
MOST_POINTS = 100_000  # of a grid
STARTUP_TRIALS = 10  # random ones before a model is trusted, where the options do not say


def sampling(choice: Choice, space: Space, values: Values, seed: int) -> Sampling:
    """How each trial is proposed. Raises `InputError` where the sampler cannot serve the space."""
    make = _KNOWN.get(choice.name)
    if make is None:
        raise InputError(f"sampler={choice.name} is unknown. Known: {', '.join(_KNOWN)}.")
    return make(choice.options, space, values, seed)


def trial_seed(seed: int, number: int) -> int:
    """A seed of 32 bits for one trial of a study."""
    digest = hashlib.blake2b(f"sampler {seed} {number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _tpe(options: Values, space: Space, values: Values, seed: int) -> Sampling:
    startup = int(options.get("startup_trials", STARTUP_TRIALS))
    multivariate = options.get("multivariate")
    make = TPESampler if multivariate is False else partial(_Tpe, space)
    return lambda number: make(
        seed=trial_seed(seed, number),
        n_startup_trials=startup,
        multivariate=multivariate,
        constant_liar=True,  # a live trial repels its neighbours
    )


def _random(options: Values, space: Space, values: Values, seed: int) -> Sampling:
    return lambda number: RandomSampler(seed=trial_seed(seed, number))


def _gp(options: Values, space: Space, values: Values, seed: int) -> Sampling:
    from optuna.samplers import GPSampler

    startup = int(options.get("startup_trials", STARTUP_TRIALS))
    return lambda number: GPSampler(
        seed=trial_seed(seed, number),
        n_startup_trials=startup,
        independent_sampler=RandomSampler(seed=trial_seed(seed, number)),
        warn_independent_sampling=False,  # conditional leaves are drawn at random: in the README
    )


def _qmc(options: Values, space: Space, values: Values, seed: int) -> Sampling:
    return lambda number: _Sobol(space, seed, number)


def _grid(options: Values, space: Space, values: Values, seed: int) -> Sampling:
    size = space.size()
    if size is None or size > MOST_POINTS:
        raise InputError(
            f"sampler=grid: the space has more than {MOST_POINTS:,} points. Type sampler=qmc for "
            "an even cover of it, or sampler=random."
        )
    points = list(_points(space.dimensions, values, {}))
    random.Random(f"grid {seed}").shuffle(points)
    return lambda number: _Listed(points[number % len(points)])


def _points(
    rest: Sequence[Dimension], values: Values, params: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every point of the space once, conditions respected."""
    if not rest:
        yield params
    elif not rest[0].active(params, values):
        yield from _points(rest[1:], values, params)
    else:
        for value in rest[0].points() or ():
            yield from _points(rest[1:], values, {**params, rest[0].name: value})


class _Tpe(TPESampler):
    """TPE that knows its space: what Optuna compares all trials to find out, for each proposal."""

    def __init__(self, space: Space, **options: Any) -> None:
        super().__init__(**options)
        always = {d.name: d.distribution for d in space.dimensions if not d.when}
        self._always = {name: always[name] for name in sorted(always)}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {name: found for name, found in self._always.items() if not found.single()}


class _Stateless(BaseSampler):
    """A sampler that answers each parameter by itself."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class _Listed(_Stateless):
    """Proposes one given point."""

    def __init__(self, point: Mapping[str, Any]) -> None:
        self._point = point

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self._point[name]


class _Sobol(_Stateless):
    """Point `number` of a scrambled Sobol sequence over all dimensions, the inactive ones too."""

    def __init__(self, space: Space, seed: int, number: int) -> None:
        from scipy.stats import qmc  # type: ignore[import-untyped]

        engine = qmc.Sobol(len(space.dimensions), seed=seed, scramble=True)
        if number:  # scipy refuses 0
            engine.fast_forward(number)
        names = (dimension.name for dimension in space.dimensions)
        self._shares = dict(zip(names, engine.random(1)[0], strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return at_share(distribution, float(self._shares[name]))


def at_share(distribution: BaseDistribution, share: float) -> Any:
    """The value below which that share (0 to 1, 1 excluded) of a distribution lies."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, FloatDistribution) and step is None:
        return _between(low, high, share, distribution.log)
    if distribution.log:  # integers: each owns the stretch of half a step around it
        return min(max(round(_between(low - 0.5, high + 0.5, share, True)), low), high)
    count = round((high - low) / (step or 1)) + 1
    value = low + int(share * count) * (step or 1)
    return value if isinstance(distribution, IntDistribution) else float(value)


def _between(low: float, high: float, share: float, log: bool) -> float:
    if not log:
        return low + share * (high - low)
    value = float(np.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    return min(max(value, low), high)


_KNOWN: Mapping[str, Callable[[Values, Space, Values, int], Sampling]] = {
    "tpe": _tpe,
    "random": _random,
    "grid": _grid,
    "qmc": _qmc,
    "gp": _gp,
}
