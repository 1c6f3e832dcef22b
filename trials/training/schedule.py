"""Learning rates as a function of the step alone, so that engines agree on them.

The shapes are those of `transformers.get_scheduler`, where its defaults make sense for a few
hundred steps; where they do not, the constants below say what is taken instead.
"""

from __future__ import annotations

import math

from trials.contract import SCHEDULERS, InputError

POLYNOMIAL_POWER = 2.0  # transformers' 1.0 is `linear` again
RESTARTS = 2  # cycles; transformers' 1 is `cosine` again
DECAY_SHARE = 0.2  # of warmup_stable_decay: the last steps, in which the rate falls
INVERSE_SQRT_SHARE = 0.1  # its time scale where there is no warm-up, as a share of all steps


def warmup_steps(warmup: float, steps: int) -> int:
    """The optimizer steps in a share `warmup` of `steps`, rounded up as the Trainer does."""
    return math.ceil(warmup * steps)


def rate_factor(name: str, step: int, *, steps: int, warmup: int) -> float:
    """What the peak learning rate is multiplied with at `step` (0-based) of `steps`.

    Warm-up is linear from 0 under every schedule. Raises InputError for an unknown name.
    """
    if name not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise InputError(f"train.scheduler={name!r} is unknown. Known schedulers: {known}.")
    if step < warmup:
        return step / warmup
    if name == "inverse_sqrt":
        scale = warmup or max(1.0, INVERSE_SQRT_SHARE * steps)
        return math.sqrt(scale / (step - warmup + scale))
    if name == "warmup_stable_decay":
        return _stable_decay(step, steps, warmup)
    return _decay(name, min(1.0, (step - warmup) / max(1, steps - warmup)))


def _decay(name: str, done: float) -> float:
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1.0 - done
    if name == "polynomial":
        return float((1.0 - done) ** POLYNOMIAL_POWER)
    if name == "cosine_with_restarts" and done < 1.0:
        done = done * RESTARTS % 1.0
    return _cosine(done)


def _stable_decay(step: int, steps: int, warmup: int) -> float:
    decay = min(steps - warmup, max(1, math.ceil(DECAY_SHARE * steps)))
    return _cosine(min(1.0, max(0, step - (steps - decay)) / max(1, decay)))


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))
