"""What a study is: everything that its trials' results depend on, so that no two kinds mix.

What changes no result (micro-batch, workers, n_trials, tracking, sampler) may differ between runs
of one study. The pruner may not: rungs at other fractions would compare other ticks.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweep.config import SweepConfig
from sweep.config.leaves import show
from sweep.space import Dimension
from trials.contract import DataConfig, InputError, ModelConfig, Setup

FREE = {"train.micro_batch_size", "train.gradient_checkpointing"}
MODEL = ("name", "revision", "quantisation", "double_quantisation", "dtype")
DATA = ("format", "content_hash", "max_length", "loss_on")  # the hash covers rows and subsets
SETTLED = (  # of what a worker finds, what the configuration says already
    "model.quantisation", "model.double_quantisation",
    "data.format", "data.max_length", "data.loss_on",
)  # fmt: skip
TOLERANT = ("model.trust_remote_code", "data.max_dropped", "data.content_hash")
SAFE = set(string.ascii_letters + string.digits + "_-./:+,[]%@")
MOST_SHOWN = 8

Facts = dict[str, tuple[Any, str]]  # name -> (what is compared, how a user would type it)


def planned(config: SweepConfig) -> Facts:
    """What the configuration alone says, before a worker finds more."""
    typed = configured(config.model, config.data)
    settled = {name: typed[name] for name in SETTLED}
    if not Path(config.model.name).is_absolute():  # of a folder, a worker says where it really is
        settled["model.name"] = typed["model.name"]
    facts = {name: _fact(value) for name, value in config.values.items() if name not in FREE}
    signature = config.space.signature()
    for dimension in config.space.dimensions:
        facts[dimension.name] = (signature[dimension.name], _said(dimension))
    facts["seed"] = _fact(config.seed)
    facts["engine"] = _fact(config.engine.name)
    facts["pruner"] = _fact(config.pruner.name)
    for name, value in config.pruner.options.items():
        facts[f"pruner.{name}"] = _fact(value)
    return _jsonable(facts) | settled


def found(setup: Setup) -> Facts:
    """What a worker found in the model and the data."""
    facts = {f"model.{name}": _fact(getattr(setup.model, name)) for name in MODEL}
    facts |= {f"data.{name}": _fact(getattr(setup.data, name)) for name in DATA}
    return _jsonable(facts)


def configured(model: ModelConfig, data: DataConfig) -> Facts:
    """The model and the data by the names that a user types, whether resolved or not."""
    facts = {
        f"{group}.{entry.name}": _fact(getattr(part, entry.name))
        for group, part in (("model", model), ("data", data))
        for entry in dataclasses.fields(part)
    }
    return _jsonable({name: fact for name, fact in facts.items() if name not in TOLERANT})


def refuse_other_inputs(config: SweepConfig, then: Mapping[str, Any], setup: Setup | None) -> None:
    """Refuses another model or other data than `then`, without loading either.

    What a worker found for itself, a guessed column or a revision, may be typed now.
    """
    now = configured(config.model, config.data)
    if setup is not None:
        resolved = configured(setup.model, setup.data)
        now = {name: fact for name, fact in now.items() if fact != resolved[name]}
    refuse_other(config.study, then, now, same_names=False)


def refuse_other(
    study: str, then: Mapping[str, Any], now: Facts, *, same_names: bool = True
) -> None:
    """Raises `InputError` that says what differs between a stored study and this command.

    `same_names` false: only what `now` names is compared.
    """
    before: Facts = {name: (value, text) for name, (value, text) in then.items()}
    absent = (None, "null")
    names = list(now) + [name for name in before if name not in now and same_names]
    differing = [n for n in names if before.get(n, absent)[0] != now.get(n, absent)[0]]
    if not differing:
        return
    old = {name: before.get(name, absent)[1] for name in differing}
    lines = [f"  {name}: {old[name]} then, {now.get(name, absent)[1]} now" for name in differing]
    if len(lines) > MOST_SHOWN:
        lines[MOST_SHOWN:] = [f"  and {len(lines) - MOST_SHOWN} more"]
    back = " ".join(_typed(name, old[name]) for name in differing if _can_be_typed(name, old[name]))
    raise InputError(
        f"Study {study!r} exists and was made with other settings:\n"
        + "\n".join(lines)
        + "\nType study=<another name> to start a new one"
        + (f", or go back to: {back}" if back else ", or give it the same files as before")
    )


def refuse_other_setup(first: Setup, other: Setup) -> None:
    """All workers must train the same: raises `InputError` that says what differs."""
    sides = [
        {"model": s.model, "data": s.data, "device kind": s.device.kind, "dtype": s.device.dtype}
        for s in (first, other)
    ]
    for name, mine in sides[0].items():
        if mine != sides[1][name]:
            raise InputError(
                f"Workers {first.worker} and {other.worker} do not see the same {name}: {mine} "
                f"and {sides[1][name]}. Type device=<one kind> or executor.workers=1."
            )


def _said(dimension: Dimension) -> str:
    """A dimension as a user would type it; a condition stands in a file only."""
    conditions = [f"{name}={show(list(allowed))}" for name, allowed in dimension.when]
    otherwise = f" (else {show(dimension.otherwise)})" if conditions else ""
    return " when ".join([f"'{dimension.expression}'", *conditions]) + otherwise


def _can_be_typed(name: str, text: str) -> bool:
    """Whether the command line can set it; a file's content and a condition it cannot."""
    return name != "data.content_hash" and " when " not in text


def _typed(name: str, text: str) -> str:
    """What sets it again; the demo's data come by their group alone, without a path."""
    demo = (name, text) == ("data.format", "demo")
    return "data=demo data.path=null" if demo else f"{name}={_for_shell(text)}"


def _for_shell(text: str) -> str:
    """A value that shell and Hydra both would take apart, in quotes for both."""
    plain = text.startswith("'") or not set(text) - SAFE
    return text if plain else shlex.quote(json.dumps(text, ensure_ascii=False))


def _fact(value: Any) -> tuple[Any, str]:
    return value, show(value)


def _jsonable(facts: Facts) -> Facts:
    """The facts as they come back from the database: lists for tuples."""
    plain = json.loads(json.dumps(facts))
    return {name: (value, text) for name, (value, text) in plain.items()}
