"""Hydra's DictConfig -> one frozen SweepConfig: every check that needs no model and no data.

`compose(["+search=lora_rank", "n_trials=4"])` is the way in; it writes nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sweep.config.checks import (
    check,
    check_device,
    check_splits,
    check_study,
    local_paths,
    storage_url,
)
from sweep.config.compose import OPEN, Draft, conf_dir, draft, options
from sweep.config.leaves import LEAVES, OPTIONS, default, unknown_key
from sweep.config.listing import no_search
from sweep.config.search import settle
from sweep.names import GROUPS, unknown
from sweep.secrets import is_secret, masked, refuse_secrets
from sweep.space import Space
from trials.contract import DataConfig, EngineConfig, InputError, ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One variant of a group (a sampler, a pruner) with its own options by name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Who follows the sweep, and the options of all of them by name."""

    names: tuple[str, ...]  # wandb, tensorboard; empty: nobody
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorConfig:
    """Where workers run. `workers` null: one for each device."""

    name: str  # inline, local
    workers: int | None = None
    patience_s: float = 600.0  # a worker silent for longer is taken for hung
    state_every_s: float = 10.0  # a trial's state is written at most so often


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the whole study, over all its runs, and each of its trials may use."""

    n_trials: int
    max_hours: float | None = None  # wall-clock
    max_device_hours: float | None = None  # wall-clock times devices
    max_money: float | None = None
    price_per_hour: float | None = None  # of one device
    max_trial_minutes: float | None = None  # at a worker
    max_trial_device_minutes: float | None = None  # a trial's share of the devices
    max_trial_money: float | None = None
    max_failures: int = 5  # failed trials in a row that end the sweep


LIMITS = tuple(entry.name for entry in fields(Limits) if entry.name != "n_trials")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """One sweep, complete and checked."""

    study: str
    seed: int
    storage: str  # SQLAlchemy URL
    results_dir: Path  # absolute; the study's own folder is results_dir / study
    device: str  # auto, cpu, cuda, cuda:0, ...
    keep_adapters: int  # the best k stay on disk
    samples: int  # evaluation prompts that a trial answers at its end
    samples_at_ticks: bool  # or at each tick
    model: ModelConfig
    data: DataConfig
    engine: EngineConfig
    values: Mapping[str, Any]  # "lora.r", "train.scheduler", "budget.examples", ...: the fixed ones
    space: Space
    limits: Limits
    sampler: Choice
    pruner: Choice
    executor: ExecutorConfig
    tracking: TrackingConfig
    command: str  # the command line as typed, secrets masked, to say how to go on
    dry_run: bool  # look only: run no trial and leave nothing
    resolved: str  # the resolved configuration as YAML, secrets masked
    from_recipe: tuple[str, ...] = ()  # the groups whose values a recipe gave

    @property
    def study_dir(self) -> Path:
        """Where everything of this study lies that is not in the database."""
        return self.results_dir / self.study


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> SweepConfig:
    """The sweep that a command line asks for. Raises InputError with one complete message."""
    return load(draft(overrides, config_dir))


def load(asked: Draft) -> SweepConfig:
    """Checks a composed tree once, and freezes it."""
    values = leaf_values(asked.tree)
    check_device(values["device"])  # again in `check`; here it is told before Optuna is loaded
    space, settled = settle(asked, values)
    if not space.dimensions:
        raise InputError(no_search(asked, space))
    config = _frozen(asked, space, settled)
    refuse_secrets({**dict(_flat(asked.tree)), **settled})
    check(config)
    return config


def _frozen(asked: Draft, space: Space, settled: Mapping[str, Any]) -> SweepConfig:
    chosen = {group: _choice(group, asked.tree[group]) for group in OPEN if group != "tracking"}
    results_dir = Path(settled["results_dir"]).expanduser().absolute()
    storage = storage_url(settled["storage"])
    study = check_study(settled["study"] or _study_name(asked, space), results_dir, storage)
    model, data = local_paths(_instance(ModelConfig, settled), _instance(DataConfig, settled))
    check_splits(data, asked.typed)
    return SweepConfig(
        study=study,
        seed=settled["seed"],
        storage=storage,
        results_dir=results_dir,
        device=settled["device"],
        keep_adapters=settled["keep_adapters"],
        samples=settled["samples"],
        samples_at_ticks=settled["samples_at_ticks"],
        model=model,
        data=data,
        engine=EngineConfig(name=chosen["engine"].name, options=dict(chosen["engine"].options)),
        values={name: value for name, value in settled.items() if _is_trial(name)},
        space=space,
        limits=Limits(
            n_trials=settled["n_trials"],
            **{name: settled[f"budget.{name}"] for name in LIMITS},
        ),
        sampler=chosen["sampler"],
        pruner=chosen["pruner"],
        executor=_executor(chosen["executor"]),
        tracking=_tracking(asked.tree["tracking"]),
        command=_command(asked),
        dry_run=settled["dry_run"],
        from_recipe=asked.from_recipe,
        resolved=as_yaml(asked, {**settled, "study": study, "data.path": data.path}),
    )


def leaf_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Every leaf of the tree by its full name, checked one by one."""
    given = dict(_flat(tree))
    known = [name for name in LEAVES if not name.startswith("executor.")]
    for name in given:
        if name.partition(".")[0] not in OPEN and name not in LEAVES:
            raise InputError(unknown_key(name, tuple(known)))
    return {name: _leaf(name, given.get(name, default(name))) for name in known}


def as_yaml(asked: Draft, settled: Mapping[str, Any] | None = None) -> str:
    """The resolved configuration as YAML, secrets masked: what `--cfg job` prints.

    `settled` are the values after the search had its say.
    """
    from omegaconf import OmegaConf

    tree: dict[str, Any] = {"search": dict(asked.search)} if asked.search else {}
    for name, (_, text) in asked.swept.items():
        _place(tree.setdefault("search", {}), name, text)
    leaves = {name: default(name) for name in LEAVES if name.partition(".")[0] not in OPEN}
    for name, value in {**leaves, **dict(_flat(asked.tree)), **(settled or {})}.items():
        if value != "???":
            _place(tree, name, _shown(name, value))
    order = (*GROUPS, *LEAVES)
    tree = {name: tree[name] for name in order if name in tree}
    return str(OmegaConf.to_yaml(tree))


# --- helpers -------------------------------------------------------------------------------------


def _choice(group: str, tree: Any) -> Choice:
    """The variant of a group; its name is that of one of our files, whoever wrote this one."""
    name = tree.get("name") if isinstance(tree, Mapping) else None
    known = tuple(options(group, (conf_dir(),)))
    if name not in known:
        raise InputError(unknown(f"{group}.name:", str(name), known))
    rest = {key: _option(f"{group}.{key}", tree[key]) for key in tree if key != "name"}
    return Choice(name=name, options=rest)


def _tracking(tree: Any) -> TrackingConfig:
    """One tracker or several; `none` stands alone."""
    names = tree.get("name") if isinstance(tree, Mapping) else None
    names = names if isinstance(names, list) else [names]
    options = [_choice("tracking", {**tree, "name": name}).options for name in names or ["none"]]
    if "none" in names and len(names) > 1:
        others = ",".join(name for name in names if name != "none")
        raise InputError(
            f"tracking=[{','.join(names)}]: none goes with no other. Type 'tracking=[{others}]'."
        )
    return TrackingConfig(names=tuple(n for n in names if n != "none"), options=options[0])


def _executor(chosen: Choice) -> ExecutorConfig:
    known = ("workers", "patience_s", "state_every_s")
    for key in chosen.options:
        if key not in known:
            raise InputError(unknown(f"executor={chosen.name}: key", key, known))
    return ExecutorConfig(name=chosen.name, **chosen.options)


def _option(name: str, value: Any) -> Any:
    rule = OPTIONS.get(name) or LEAVES.get(name)
    return rule.convert(name, value) if rule else value


def _leaf(name: str, value: Any) -> Any:
    if value == "???":
        raise InputError(f"{name} has no value, and it needs one. Type {name}=...")
    return LEAVES[name].convert(name, value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _is_trial(name: str) -> bool:
    """Whether a leaf belongs to what a trial is made of."""
    shared = name.partition(".")[2] in LIMITS
    return name.startswith(("lora.", "train.", "budget.")) and not shared


def _instance(kind: Any, values: Mapping[str, Any]) -> Any:
    group = {ModelConfig: "model.", DataConfig: "data."}[kind]
    return kind(**{name.removeprefix(group): value for name, value in values.items()
                   if name.startswith(group)})  # fmt: skip


def _study_name(asked: Draft, space: Space) -> str:
    """The search's name; without one, what is searched."""
    if asked.searches:
        return re.sub(r"[^A-Za-z0-9._+=-]", "_", "+".join(asked.searches))[:100]
    return "+".join(d.name.rpartition(".")[2] for d in space.dimensions)[:100].rstrip("+")


def _command(asked: Draft) -> str:
    """The command line to type again, secrets masked."""
    words = ["python", "-m", "sweep"]
    if asked.config_dir is not None:
        words += ["--config-dir", str(asked.config_dir)]
    return shlex.join([*words, *(_masked_override(text) for text in asked.overrides)])


def _masked_override(text: str) -> str:
    key, equals, value = text.partition("=")
    return f"{key}=***" if equals and is_secret(key) else masked(f"{key}{equals}{value}")


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if is_secret(name) and value is not None and name not in LEAVES:
        return "***"
    return masked(value) if isinstance(value, str) else value


def _place(tree: dict[str, Any], name: str, value: Any) -> None:
    group, _, key = name.rpartition(".")
    for part in filter(None, group.split(".")):
        tree = tree.setdefault(part, {})
    tree[key] = value
