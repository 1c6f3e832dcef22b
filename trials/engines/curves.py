"""The closed-form learning curves of the simulated engine.

They cross, as real ones do: a high learning rate looks good early and ends worse, and the rank
hardly shows before the middle.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from random import Random

from trials.contract import (
    CurvePoint,
    InputError,
    TrialConfig,
    optimizer_steps,
    tick_examples,
    to_json,
)

BASELINE = 1.2  # loss of the base that no adapter has changed
MODULES = {
    "qv": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
WIDTHS = {name: 4 if name.endswith(("gate_proj", "up_proj", "down_proj")) else 1
          for name in MODULES["all-linear"]}  # fmt: skip


def loss(trial: TrialConfig, tick: int, noise: float) -> float:
    """The evaluation loss at a tick: the curve and a deviation that the configuration decides."""
    train = replace(trial.train, micro_batch_size=None)
    key = f"{trial.seed} {tick} {to_json(trial.lora)} {to_json(train)} {to_json(trial.budget)}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return curve(trial, tick) + float(Random(digest).gauss(0.0, noise))


def curve(trial: TrialConfig, tick: int) -> float:
    """The evaluation loss at a tick without noise: a power law from the baseline to a floor."""
    seen = tick_examples(trial.budget, trial.train.batch_size)[tick - 1]
    rate = math.log10(trial.train.learning_rate * math.sqrt(trial.lora.alpha / trial.lora.r) / 3e-4)
    speed = math.pow(10, 0.8 * rate) * 8 / (8 + trial.train.batch_size)
    warm = 1 - 0.5 * trial.train.warmup
    learnt = 1 - math.pow(1 + warm * speed * seen / 300, -0.8)
    return BASELINE - (BASELINE - _floor(trial, rate)) * learnt


def _floor(trial: TrialConfig, rate: float) -> float:
    """Where the curve would end: each hyperparameter adds what it is away from its best."""
    width = sum(WIDTHS[name.rpartition(".")[2]] for name in modules(trial.lora.target_modules))
    decay = {"cosine": 0.0, "linear": 0.005}.get(trial.train.scheduler, 0.03)
    return (
        0.35
        + 0.12 * max(rate - 0.2, 0.0) ** 2 + 0.02 * min(rate - 0.2, 0.0) ** 2
        + 0.25 / math.sqrt(trial.lora.r)
        + 0.12 * (1 - width / sum(WIDTHS.values()))
        + 0.5 * (trial.lora.dropout - 0.05) ** 2
        + decay * (1 + max(rate, 0.0))
        + 0.3 * (trial.train.warmup - 0.05) ** 2
        + 0.01 * abs(math.log2(trial.train.batch_size / 16))
    )  # fmt: skip


def trainable_parameters(trial: TrialConfig) -> int:
    """What such an adapter would train on a base of width 512 with 8 layers."""
    names = modules(trial.lora.target_modules)
    return sum(8 * trial.lora.r * 512 * (1 + WIDTHS[n.rpartition(".")[2]]) for n in names)


def history(trial: TrialConfig, start: int, end: int) -> tuple[CurvePoint, ...]:
    """The optimizer steps between two ticks."""
    size, budget = trial.train.batch_size, trial.budget.examples
    first, last = optimizer_steps(start, size), optimizer_steps(end, size)
    return tuple(
        CurvePoint(
            examples=min((step + 1) * size, budget),
            train_loss=BASELINE * (1 + step / 20) ** -0.3,
            learning_rate=trial.train.learning_rate * (1 - step * size / budget),
            grad_norm=1 / math.sqrt(step + 1),
            tokens_per_s=1e4,
        )
        for step in range(first, last)
    )


def modules(target: str | tuple[str, ...]) -> tuple[str, ...]:
    """A preset's modules, or those named. Raises `InputError` on an unknown one."""
    named = (target,) if isinstance(target, str) else target
    for name in named:
        if name not in MODULES and name.rpartition(".")[2] not in WIDTHS:
            raise InputError(
                f"lora.target_modules={name!r}: the model has no such module. It has: "
                f"{', '.join(WIDTHS)}; presets: {', '.join(MODULES)}."
            )
    return tuple(dict.fromkeys(n for name in named for n in MODULES.get(name, (name,))))
