"""The corners of a search space: what asks least of the device, and what asks most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sweep.config import SweepConfig
from trials.contract import Setup

OPTIMIZERS = ("sgd", "adafactor", "paged_adamw_8bit", "paged_adamw_32bit", "adamw")  # by memory
GROWING = (
    "lora.r", "lora.dropout", "train.batch_size", "train.micro_batch_size",
    "budget.examples", "budget.epochs",
)  # fmt: skip
SWITCHES = {"train.gradient_checkpointing": -1.0, "train.packing": 1.0}


def corner(config: SweepConfig, setup: Setup, *, heaviest: bool) -> dict[str, Any]:
    """The parameters of a trial at that corner: name -> value of the dimensions that apply."""
    choose: Callable[..., Any] = max if heaviest else min
    params: dict[str, Any] = {}
    for dimension in config.space.dimensions:
        if dimension.active(params, config.values):
            demand = _demand(dimension.name, setup)
            params[dimension.name] = choose(dimension.extremes(), key=demand)
    return params


def _demand(name: str, setup: Setup) -> Callable[[Any], float]:
    """How much more of the device a value of this leaf takes than another, as a number."""
    if name == "lora.target_modules":
        presets = setup.model_facts.presets
        return lambda value: _modules(value, presets)
    if name == "train.optimizer":
        return lambda value: float(OPTIMIZERS.index(value) if value in OPTIMIZERS else -1)
    if name in GROWING:
        return float
    sign = SWITCHES.get(name, 0.0)
    return lambda value: sign * bool(value)


def _modules(value: str, presets: Mapping[str, tuple[str, ...]]) -> float:
    """The adapted modules of a layer: a preset's, or names joined by +."""
    return float(len(presets.get(value, value.split("+"))))
