"""The winner as a Hydra fragment: `results/recipe/<study>.yaml`, loaded by `+recipe=<study>`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweep.config import SweepConfig
from sweep.results import wording
from trials.contract import TrialConfig

NOT_CONFIGURED = {
    "data": ("content_hash",),  # found out by the worker, not set by a user
    "model": ("trust_remote_code",),  # whose code is run, each user types
}


def path(config: SweepConfig) -> Path:
    """Where the study's recipe lies."""
    return config.results_dir / "recipe" / f"{config.study}.yaml"


def write(config: SweepConfig, trial: TrialConfig, eval_loss: float | None) -> Path:
    """Writes the recipe of a trial in place of an earlier one.

    The compute dtype stays as the user asked for it, so that `auto` suits the next device.
    """
    trial = dataclasses.replace(
        trial, model=dataclasses.replace(trial.model, dtype=config.model.dtype)
    )
    target = path(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(target, render(trial, eval_loss))
    return target


def render(trial: TrialConfig, eval_loss: float | None) -> str:
    """The fragment's text. Values are JSON, which is YAML, so that text stays text."""
    study = wording.clean(trial.study)
    lines = [
        f"# python -m sweep +recipe={study} +search=learning_rate",
        f"# trial {trial.number} of study {study}, evaluation loss {wording.loss(eval_loss)};",
        "# whatever else is searched starts from these values",
        "# @package _global_",
        "",
    ]
    for group, values in _groups(trial):
        lines += [f"{group}:", *(f"  {name}: {_scalar(item)}" for name, item in values.items())]
    return "\n".join(lines) + "\n"


def replace(target: Path, text: str) -> None:
    """Writes a file aside, then renames it: a reader sees the old one or the new one."""
    aside = target.with_name(f".{target.name}.new")  # of a killed process, if it is there
    aside.write_text(text, encoding="utf-8")
    aside.replace(target)


def _groups(trial: TrialConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in ("model", "data", "lora", "train", "budget"):
        values = dataclasses.asdict(getattr(trial, group))
        for name in NOT_CONFIGURED.get(group, ()):
            del values[name]
        yield group, values | _alternatives(group)


def _alternatives(group: str) -> dict[str, Any]:
    """The other ways to say what is said already: null, or the configuration would hold both."""
    return {"lora": {"alpha_ratio": None}, "budget": {"epochs": None}}.get(group, {})


def _scalar(item: Any) -> str:
    if isinstance(item, float):
        return _float(item)
    return json.dumps(item, ensure_ascii=True)


def _float(number: float) -> str:
    mantissa, exponent, power = repr(number).partition("e")
    if exponent and "." not in mantissa:
        mantissa += ".0"  # YAML reads 1e-05 as text
    return f"{mantissa}{exponent}{power}"
