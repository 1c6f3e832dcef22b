"""The search space: Optuna distributions -> parameters -> TrialConfig; what workers are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweep import states
from sweep.config.leaves import LEAVES
from trials.contract import (
    Assignment,
    LoraConfig,
    Setup,
    TrainConfig,
    TrialBudget,
    TrialConfig,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from sweep.config import SweepConfig

ALPHA_RATIO = 2.0  # alpha = ratio * r where the user gives neither
When = tuple[tuple[str, tuple[Any, ...]], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One searched leaf, such as "lora.r"; proposed only where its condition holds."""

    name: str
    distribution: BaseDistribution
    expression: str  # as the user wrote it
    when: When = ()  # leaf -> the values it may have
    otherwise: Any = None  # the fixed value that a trial has where the condition does not hold

    def active(self, params: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
        """Whether the condition holds: names are looked up in `params`, then in `values`."""
        return all(
            (params[name] if name in params else values[name]) in allowed
            for name, allowed in self.when
        )

    def points(self) -> list[Any] | None:
        """Every value that may be proposed; None for a continuum."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return list(found.choices)
        if isinstance(found, IntDistribution):
            return list(range(found.low, found.high + 1, found.step))
        low, high, step = (getattr(found, name) for name in ("low", "high", "step"))
        if low == high:
            return [low]
        if step is None:
            return None
        return [min(low + k * step, high) for k in range(round((high - low) / step) + 1)]

    def extremes(self) -> tuple[Any, ...]:
        """The choices, or the two ends: where a rule breaks, if it breaks at all."""
        choices = getattr(self.distribution, "choices", None)
        if choices is not None:
            return tuple(choices)
        return (getattr(self.distribution, "low"), getattr(self.distribution, "high"))  # noqa: B009


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """All dimensions, each after those its condition names."""

    dimensions: tuple[Dimension, ...]
    frozen: tuple[tuple[str, Any], ...] = ()  # dimensions set to a plain value

    def suggest(self, trial: BaseTrial, values: Mapping[str, Any]) -> dict[str, Any]:
        """One proposal: name -> value of the dimensions whose condition holds."""
        params: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.active(params, values):
                params[dimension.name] = _suggest(trial, dimension)
        return params

    def size(self) -> int | None:
        """The number of different proposals; None if a dimension is a continuum."""
        if any(dimension.points() is None for dimension in self.dimensions):
            return None
        return self._count(0, {d.name: d.otherwise for d in self.dimensions})

    def _count(self, index: int, values: Mapping[str, Any]) -> int:
        """Branches only over dimensions that a later condition names."""
        if index == len(self.dimensions):
            return 1
        dimension, later = self.dimensions[index], self.dimensions[index + 1 :]
        if not dimension.active({}, values):
            return self._count(index + 1, values)
        points = dimension.points() or []
        if not any(dimension.name in dict(other.when) for other in later):
            return len(points) * self._count(index + 1, values)
        return sum(self._count(index + 1, {**values, dimension.name: point}) for point in points)

    def signature(self) -> dict[str, Any]:
        """The dimensions as JSON values, equal exactly where two studies search the same space."""
        from optuna.distributions import distribution_to_json

        return {
            dimension.name: {
                "distribution": json.loads(distribution_to_json(dimension.distribution)),
                "when": {name: list(allowed) for name, allowed in dimension.when},
                "otherwise": dimension.otherwise,
            }
            for dimension in self.dimensions
        }


def overlay(
    config: SweepConfig, setup: Setup, params: Mapping[str, Any], *, number: int, attempt: int
) -> TrialConfig:
    """The complete configuration of one trial: proposed parameters over the fixed values."""
    chosen = {**config.values, **params}
    lora = _of("lora", chosen)
    ratio, alpha = lora.pop("alpha_ratio"), lora.pop("alpha")
    if alpha is None:
        alpha = (ALPHA_RATIO if ratio is None else ratio) * lora["r"]
    lora["target_modules"] = _modules(lora["target_modules"])
    return TrialConfig(
        study=config.study,
        number=number,
        attempt=attempt,
        seed=config.seed,
        model=setup.model,
        data=setup.data,
        lora=LoraConfig(alpha=float(alpha), **lora),
        train=TrainConfig(**_of("train", chosen)),
        budget=TrialBudget(
            examples=examples(chosen, setup.data_facts.train_examples),
            ticks=chosen["budget.ticks"],
        ),
        engine=setup.engine or config.engine,
    )


def examples(chosen: Mapping[str, Any], train_examples: int) -> int:
    """One trial's budget in examples; epochs are counted in the training examples there are."""
    if (given := chosen.get("budget.examples")) is not None:
        return int(given)
    return max(1, round(float(chosen["budget.epochs"]) * train_examples))


def assignment(
    config: SweepConfig, *, worker: str, device: str, threads: int | None = None, sharing: int = 1
) -> Assignment:
    """What a worker is started with: all that any trial of the study may use."""
    modules = (_modules(value) for value in possible(config, "lora.target_modules"))
    return Assignment(
        study=config.study,
        worker=worker,
        device=device,
        seed=config.seed,
        model=config.model,
        data=config.data,
        engine=config.engine,
        target_modules=tuple(modules),
        optimizers=tuple(possible(config, "train.optimizer")),
        max_batch_size=max(possible(config, "train.batch_size")),
        packing=any(possible(config, "train.packing")),
        dropout=any(possible(config, "lora.dropout")),
        max_r=max(possible(config, "lora.r")),
        gradient_checkpointing=all(possible(config, "train.gradient_checkpointing")),
        threads=threads,
        sharing=sharing,
        samples=config.samples,
        samples_at_ticks=config.samples_at_ticks,
        adapters_dir=str(config.study_dir / "adapters") if config.keep_adapters else None,
        states_dir=str(states.folder(config)),
        state_every_s=config.executor.state_every_s,
    )


def possible(config: SweepConfig, name: str) -> list[Any]:
    """The values that a leaf may have in a trial; of a range only its ends."""
    found = [d for d in config.space.dimensions if d.name == name]
    values = [value for dimension in found for value in dimension.extremes()]
    if name in config.values and config.values[name] is not None:
        values.append(config.values[name])
    return list(dict.fromkeys(values))


def _suggest(trial: BaseTrial, dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    name, found = dimension.name, dimension.distribution
    if isinstance(found, CategoricalDistribution):
        return trial.suggest_categorical(name, found.choices)
    low, high, step, log = (getattr(found, key) for key in ("low", "high", "step", "log"))
    if isinstance(found, IntDistribution):
        return trial.suggest_int(name, low, high, step=step, log=log)
    return trial.suggest_float(name, low, high, step=step, log=log)


def _of(group: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one group by their last name, numbers in the leaf's own type."""
    found = {}
    for name, value in chosen.items():
        if name.startswith(f"{group}."):
            whole = LEAVES[name].kind == "float" and isinstance(value, int)
            found[name.removeprefix(f"{group}.")] = float(value) if whole else value
    return found


def _modules(value: str | tuple[str, ...] | list[str]) -> str | tuple[str, ...]:
    """`q_proj+v_proj` is how one scalar names several modules."""
    if not isinstance(value, str):
        return tuple(value)
    return tuple(value.split("+")) if "+" in value else value
