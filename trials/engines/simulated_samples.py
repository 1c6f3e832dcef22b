"""What the simulated engine's models write: prices that come nearer to the truth with the loss."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from random import Random

from trials.contract import Sample, TrialConfig, to_json
from trials.engines.curves import BASELINE

GOODS = ("kettle", "bicycle", "reading lamp", "garden chair", "typewriter", "winter coat")
GUESS = "I cannot tell what it costs."
BEST = 0.35  # the loss below which hardly a curve comes


def baseline_samples(count: int, seed: int) -> tuple[Sample, ...]:
    """The untouched base's answers to the first `count` prompts."""
    return tuple(_sample(place, seed, GUESS) for place in range(count))


def trial_samples(count: int, trial: TrialConfig, loss: float) -> tuple[Sample, ...]:
    """A trial's answers at an evaluation loss, decided by its configuration."""
    train = replace(trial.train, micro_batch_size=None)
    key = f"{trial.seed} {to_json(trial.lora)} {to_json(train)}".encode()
    draw = Random(hashlib.blake2b(key, digest_size=8).digest())
    return tuple(_sample(place, trial.seed, _guess(place, trial.seed, loss, draw))
                 for place in range(count))


def _guess(place: int, seed: int, loss: float, draw: Random) -> str:
    width = max(loss - BEST, 0.0) / (BASELINE - BEST) if math.isfinite(loss) else math.inf
    error = draw.gauss(0.0, 1.0) * width
    return f"${round(_price(place, seed) * math.exp(error))}" if width < 1 else GUESS


def _sample(place: int, seed: int, generated: str) -> Sample:
    good = GOODS[place % len(GOODS)]
    prompt = f"Item {place + 1}: a {good}. What does it cost?\n"
    return Sample(prompt=prompt, reference=f"${_price(place, seed)}", generated=generated)


def _price(place: int, seed: int) -> int:
    return Random(f"{seed} {place}").randint(20, 400)
