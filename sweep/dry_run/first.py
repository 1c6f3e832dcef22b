"""The trials that a sweep would run next, proposed as it would, in memory alone."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.config import SweepConfig
from sweep.space import overlay
from sweep.study.samplers import STARTUP_TRIALS, sampling
from trials.contract import Setup, TrialConfig

BLIND = ("random", "grid", "qmc")  # samplers that look at no result


def next_trials(
    config: SweepConfig, setup: Setup, past: Sequence[FrozenTrial], count: int
) -> list[TrialConfig]:
    """The first `count` trials: those to be continued, then new ones with the next numbers."""
    study = optuna.create_study(storage=InMemoryStorage(), direction="minimize")
    study.add_trials(past)
    running = [frozen for frozen in past if frozen.state is TrialState.RUNNING]
    known = [(frozen.number, frozen.params) for frozen in running]
    proposed = sampling(config.sampler, config.space, config.values, config.seed)
    for number in range(len(past), len(past) + count - len(known)):
        study.sampler = proposed(number)
        known.append((number, config.space.suggest(study.ask(), config.values)))
    return [
        overlay(config, setup, params, number=number, attempt=0)
        for number, params in known[:count]
    ]


def certain(config: SweepConfig, trials: Sequence[TrialConfig], past: int) -> bool:
    """Whether no result can change these proposals: a sampler is blind at first, or always."""
    startup = int(config.sampler.options.get("startup_trials", STARTUP_TRIALS))
    known = config.sampler.name in BLIND
    return known or all(trial.number < max(startup, past + 1) for trial in trials)
