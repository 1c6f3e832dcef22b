"""Every named value of a sweep: its type, its rule, and whether it may be searched."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweep.config.units import in_unit
from sweep.names import nearest, same_word, unknown
from trials.contract import (
    OPTIMIZERS,
    SCHEDULERS,
    DataConfig,
    InputError,
    LoraConfig,
    ModelConfig,
    TrainConfig,
)

MODULES = re.compile(r"[A-Za-z_][\w.\-]*(\+[A-Za-z_][\w.\-]*)*")  # a preset, or names joined by +
FAULT = re.compile(
    r"(crash|exit|segfault|hang|oom|nan|exception)@\d{1,9}:\d{1,9}(:\d{1,9})?", re.ASCII
)
_KINDS: Mapping[str, str] = {
    "switch": "true, false or auto",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "faults": "a list of kind@trial:tick, such as [crash@3:2,nan@5:1:0]",
    "modules": "a preset such as qv or all-linear, or module names such as [q_proj,v_proj]",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    """One value's type and rule. Bounds are inclusive unless `above` or `below`."""

    kind: str  # int, float, bool, str, modules
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    known: tuple[str, ...] = ()
    nullable: bool = False
    searchable: bool = False
    unit: str = ""  # hours, minutes, money

    def convert(self, name: str, value: Any, said: str | None = None) -> Any:
        """The value in its own type. Raises InputError with key, value, rule and known names.

        `said` is what the user wrote where that is more than `name=value`.
        """
        if value is None and self.nullable:
            return None
        converted = _CONVERT[self.kind](value)
        said = f"{said}: {show(value)}" if said else f"{name}={show(value)}"
        if converted is None:
            hint = self._in_unit(name, value)
            raise InputError(f"{said} is not {self.wanted}, which {name} has to be.{hint}")
        if self.known and converted not in self.known:
            raise InputError(_not_known(said, str(converted), self.known))
        if not self.holds(converted):
            raise InputError(f"{said} breaks the rule: {name} is {self.wanted}.")
        return converted

    def holds(self, value: Any) -> bool:
        """Whether a value of the right type is within the bounds."""
        if self.kind not in ("int", "float"):
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    @property
    def wanted(self) -> str:
        """The type and the bounds in words."""
        bounds = {
            "of at least": self.low,
            "above": self.above,
            "at most": self.high,
            "below": self.below,
        }
        told = " and ".join(f"{word} {show(float(bound))}" for word, bound in bounds.items()
                            if bound is not None)  # fmt: skip
        kind = _KINDS[self.kind] + (f" of {self.unit}" if self.unit else "")
        words = f"{'an amount' if self.unit == 'money' else kind} {told}".strip()
        return f"{words} (or null)" if self.nullable else words

    def _in_unit(self, name: str, value: Any) -> str:
        """What to type for a value with a unit, such as 90m."""
        if not self.unit or not isinstance(value, str):
            return ""
        number = in_unit(value, self.unit)
        return "" if number is None else f" Type {name}={show(round(number, 4))}."


def show(value: Any) -> str:
    """A value as a user would type it."""
    if value is None or isinstance(value, bool):
        return str(value).replace("None", "null").lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(show(entry) for entry in value)}]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if value == "" else str(value)


def find(name: str) -> Leaf:
    """The leaf of that name. Raises InputError with the nearest known name."""
    if name not in LEAVES:
        raise InputError(unknown_key(name, LEAVES))
    return LEAVES[name]


def unknown_key(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """The message about an unknown key; lists its own group's keys if there is such a group."""
    group = name.rpartition(".")[0]
    near = [entry for entry in known if entry.rpartition(".")[0] == group]
    meant = same_word(name, known) or nearest(name, near) or nearest(name, known)
    if near and (meant is None or meant in near):
        return unknown("Key", name, near)
    hint = f" Did you mean {meant!r}?" if meant else ""
    listed = near or sorted({entry.partition(".")[0] for entry in known})
    return f"Key {name!r} is unknown.{hint} Known: {', '.join(listed)}."


def default(name: str) -> Any:
    """What a leaf is when no file sets it; "???" where it has to be set."""
    group, _, key = name.rpartition(".")
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    if group in _CLASSES:
        for entry in dataclasses.fields(_CLASSES[group]):
            if entry.name == key and entry.default is not dataclasses.MISSING:
                return entry.default
    return "???"


def _not_known(said: str, value: str, known: tuple[str, ...]) -> str:
    meant = nearest(value, known)
    hint = f" Did you mean {meant!r}?" if meant else ""
    return f"{said} is unknown.{hint} Known: {', '.join(known)}."


def _int(value: Any) -> int | None:
    """Also of a float that is whole: 8.0, 1e3."""
    whole = isinstance(value, int) or isinstance(value, float) and value.is_integer()
    return int(value) if whole and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if good else None
    except OverflowError:
        return math.inf  # out of every bound


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _switch(value: Any) -> bool | str | None:
    return value if isinstance(value, bool) or value == "auto" else None


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _modules(value: Any) -> str | tuple[str, ...] | None:
    if isinstance(value, (list, tuple)):
        good = value and all(isinstance(v, str) and MODULES.fullmatch(v) for v in value)
        return tuple(value) if good else None
    return value if isinstance(value, str) and MODULES.fullmatch(value) else None


def _faults(value: Any) -> list[str] | None:
    good = isinstance(value, list) and all(isinstance(v, str) and FAULT.fullmatch(v) for v in value)
    return value if good else None


_CONVERT = {"int": _int, "float": _float, "bool": _bool, "str": _str, "modules": _modules,
            "faults": _faults, "switch": _switch}  # fmt: skip
_CLASSES = {"model": ModelConfig, "data": DataConfig, "lora": LoraConfig, "train": TrainConfig}
_DEFAULTS: Mapping[str, Any] = {
    "lora.alpha": None,
    "lora.alpha_ratio": None,
    "budget.examples": None,
    "budget.epochs": None,
    "budget.max_hours": None,
    "budget.max_device_hours": None,
    "budget.max_money": None,
    "budget.price_per_hour": None,
    "budget.max_trial_minutes": None,
    "budget.max_trial_device_minutes": None,
    "budget.max_trial_money": None,
    "budget.max_failures": 5,
    "study": None,
    "dry_run": False,
}

_TEXT = Leaf(kind="str", nullable=True)
_SWITCH = Leaf(kind="bool", searchable=True)
_HOURS = Leaf(kind="float", above=0, high=8784, nullable=True, unit="hours")  # up to a year
_MINUTES = Leaf(kind="float", above=0, high=43_200, nullable=True, unit="minutes")  # up to a month
_MONEY = Leaf(kind="float", above=0, nullable=True, unit="money")
LEAVES: Mapping[str, Leaf] = {
    "model.name": Leaf(kind="str"),
    "model.revision": _TEXT,
    "model.quantisation": Leaf(kind="str", known=("nf4", "fp4", "int8", "none")),
    "model.double_quantisation": Leaf(kind="bool"),
    "model.dtype": Leaf(kind="str", known=("auto", "bf16", "fp16", "fp32")),
    "model.trust_remote_code": Leaf(kind="bool"),
    "data.format": Leaf(
        kind="str", known=("demo", "text", "completion", "alpaca", "chat", "dialogue")
    ),
    "data.path": _TEXT,
    "data.name": _TEXT,
    "data.revision": _TEXT,
    "data.split": Leaf(kind="str"),
    "data.eval_path": _TEXT,
    "data.eval_split": _TEXT,
    "data.text_column": _TEXT,
    "data.response_template": _TEXT,
    "data.prompt_column": _TEXT,
    "data.completion_column": _TEXT,
    "data.input_column": _TEXT,
    "data.messages_column": _TEXT,
    "data.train_size": Leaf(kind="int", low=1, nullable=True),
    "data.eval_size": Leaf(kind="int", low=1),
    "data.max_length": Leaf(kind="int", low=2),
    "data.loss_on": Leaf(kind="str", known=("completion", "all")),
    "data.max_dropped": Leaf(kind="float", low=0, high=1),
    "lora.r": Leaf(kind="int", low=1, searchable=True),
    "lora.alpha": Leaf(kind="float", above=0, nullable=True, searchable=True),
    "lora.alpha_ratio": Leaf(kind="float", above=0, nullable=True, searchable=True),
    "lora.dropout": Leaf(kind="float", low=0, below=1, searchable=True),
    "lora.target_modules": Leaf(kind="modules", searchable=True),
    "lora.rslora": _SWITCH,
    "train.learning_rate": Leaf(kind="float", above=0, searchable=True),
    "train.scheduler": Leaf(kind="str", known=SCHEDULERS, searchable=True),
    "train.warmup": Leaf(kind="float", low=0, below=1, searchable=True),
    "train.batch_size": Leaf(kind="int", low=1, searchable=True),
    "train.micro_batch_size": Leaf(kind="int", low=1, nullable=True, searchable=True),
    "train.weight_decay": Leaf(kind="float", low=0, searchable=True),
    "train.max_grad_norm": Leaf(kind="float", low=0, searchable=True),
    "train.optimizer": Leaf(kind="str", known=OPTIMIZERS, searchable=True),
    "train.gradient_checkpointing": _SWITCH,
    "train.group_by_length": _SWITCH,
    "train.packing": _SWITCH,
    "budget.examples": Leaf(kind="int", low=1, nullable=True, searchable=True),
    "budget.epochs": Leaf(kind="float", above=0, nullable=True, searchable=True),
    "budget.ticks": Leaf(kind="int", low=1),
    "budget.max_hours": _HOURS,
    "budget.max_device_hours": replace(_HOURS, high=1_000_000),
    "budget.max_money": _MONEY,
    "budget.price_per_hour": _MONEY,
    "budget.max_trial_minutes": _MINUTES,
    "budget.max_trial_device_minutes": _MINUTES,
    "budget.max_trial_money": _MONEY,
    "budget.max_failures": Leaf(kind="int", low=1),
    "executor.workers": Leaf(kind="int", low=1, high=1024, nullable=True),
    "executor.patience_s": Leaf(kind="float", above=0),
    "executor.state_every_s": Leaf(kind="float", low=0, high=86_400),
    "study": _TEXT,
    "n_trials": Leaf(kind="int", low=1, high=1_000_000),
    "seed": Leaf(kind="int", low=0, high=2**32 - 1),
    "storage": Leaf(kind="str"),
    "results_dir": Leaf(kind="str"),
    "device": Leaf(kind="str"),
    "keep_adapters": Leaf(kind="int", low=0),
    "dry_run": Leaf(kind="bool"),
    "samples": Leaf(kind="int", low=0, high=64),
    "samples_at_ticks": Leaf(kind="bool"),
}
SEARCHABLE = tuple(name for name, leaf in LEAVES.items() if leaf.searchable)
EITHER = (("lora.alpha", "lora.alpha_ratio"), ("budget.examples", "budget.epochs"))

# Options of engines, samplers, pruners and trackers whose rule is more than a type.
OPTIONS: Mapping[str, Leaf] = {
    "engine.capacity": Leaf(kind="int", low=1, high=1024, nullable=True),
    "engine.memory_fraction": Leaf(kind="float", low=0.01, high=1, nullable=True),
    "engine.resident": Leaf(kind="switch"),
    "engine.compile": Leaf(kind="switch"),
    "engine.seconds_per_tick": Leaf(kind="float", low=0, high=86_400),
    "engine.noise": Leaf(kind="float", low=0),
    "engine.faults": Leaf(kind="faults"),
    "pruner.min_fraction": Leaf(kind="float", above=0, high=1),
    "pruner.reduction_factor": Leaf(kind="int", low=2),
    "pruner.startup_trials": Leaf(kind="int", low=0),
    "pruner.percentile": Leaf(kind="float", above=0, below=100),
    "pruner.patience": Leaf(kind="float", above=0, high=1),
    "pruner.min_delta": Leaf(kind="float", low=0),
    "pruner.wrapped": Leaf(kind="str", known=("asha", "median")),
    "pruner.upper": Leaf(kind="float", nullable=True),
    "pruner.lower": Leaf(kind="float", nullable=True),
    "sampler.startup_trials": Leaf(kind="int", low=0),
    "sampler.multivariate": Leaf(kind="bool", nullable=True),
    "tracking.project": Leaf(kind="str"),
    "tracking.entity": _TEXT,
    "tracking.mode": Leaf(kind="str", known=("auto", "online", "offline")),
    "tracking.upload_samples": Leaf(kind="bool"),
    "tracking.upload_adapters": Leaf(kind="bool"),
    "tracking.upload_data": Leaf(kind="bool"),
    "tracking.close_timeout_s": Leaf(kind="float", low=0, high=86_400),
}
