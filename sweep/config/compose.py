"""The command line and `conf/` -> one plain tree, by Hydra, with nothing written anywhere.

Hydra composes the groups. Values and sweep expressions of the command line are parsed by Hydra's
parser and kept apart here, because Hydra refuses sweeps of one job and its errors are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from sweep.config.grammar import parse_override
from sweep.config.leaves import LEAVES, SEARCHABLE, unknown_key
from sweep.names import ADDED, GROUPS, nearest, same_word, unknown
from trials.contract import InputError

OPEN = ("engine", "executor", "sampler", "pruner", "tracking")  # their options depend on the atom
SEVERAL = ("search", "tracking")  # groups of which several files may be chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What was asked for, composed and not yet checked. Plain values only."""

    tree: Mapping[str, Any]
    search: Mapping[str, Any]
    searches: tuple[str, ...]  # the search files' names
    typed: frozenset[str]  # leaves given a plain value on the command line
    swept: Mapping[str, tuple[Sweep, str]]  # leaves given a sweep on the command line
    from_recipe: tuple[str, ...] = ()  # the groups that `+recipe=` filled
    overrides: tuple[str, ...]
    config_dir: Path | None


@dataclass(slots=True)
class _Asked:
    """The command line, sorted."""

    groups: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    swept: dict[str, tuple[Sweep, str]] = field(default_factory=dict)


def conf_dir() -> Path:
    """The folder of the groups: in the wheel beside this file, in a checkout beside the package."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def draft(overrides: Sequence[str], config_dir: Path | None = None) -> Draft:
    """Composes the command line. Raises InputError for whatever Hydra cannot compose."""
    asked = _sorted(overrides)
    folders = _folders(asked, config_dir)
    for group, names in asked.groups.items():
        _check_options(group, names, folders)
    config = _composed(asked.groups, folders)
    from_recipe = _keep_typed_groups(config, asked, folders)
    _name_trackers(config, asked, folders)
    for name, value in asked.values.items():
        _check_key(name, config)
        _set(config, name, value)
    tree = _plain(config)
    if not isinstance(tree.get("search") or {}, Mapping):
        raise InputError(f"search: {tree['search']!r} is no search space. Type +search=lora_rank.")
    return Draft(
        tree={key: value for key, value in tree.items() if key != "search"},
        search=tree.get("search") or {},
        searches=tuple(asked.groups.get("search", ())),
        typed=frozenset(asked.values),
        swept=asked.swept,
        from_recipe=from_recipe,
        overrides=tuple(overrides),
        config_dir=config_dir,
    )


def options(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    """The files of a group by name, those of the first folder first."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / group).rglob("*.yaml")):
            name = path.relative_to(folder / group).with_suffix("").as_posix()
            found.setdefault(name, path)
    return found


# --- the command line ----------------------------------------------------------------------------


def _sorted(overrides: Sequence[str]) -> _Asked:
    asked = _Asked()
    for text in overrides:
        override = parse_override(text)
        _refuse(override, text)
        if override.key_or_group in (*GROUPS, "recipe"):
            earlier = asked.groups.get("search", []) if override.key_or_group == "search" else []
            chosen = dict.fromkeys([*earlier, *_chosen(override, text)])
            asked.groups[override.key_or_group] = list(chosen)
        else:
            _take_value(asked, override, text)
    return asked


def _refuse(override: Override, text: str) -> None:
    """What Hydra's grammar allows and a sweep has no use for."""
    key = override.key_or_group
    if override.is_delete():
        raise InputError(f"{text}: nothing can be deleted. Type {key}=... to choose another value.")
    if override.package is not None:
        raise InputError(f"{text}: a group goes to its own place. Type {key}=... without @.")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise InputError(f"{text}: hydra.* has no effect here. Results go to results_dir=...")
    if key.startswith("search."):
        leaf = key.removeprefix("search.")
        raise InputError(f"{text}: the command line needs no 'search.'. Type {leaf}=...")


def _chosen(override: Override, text: str) -> list[str]:
    """The options chosen for a group: one, but for search."""
    group, value = override.key_or_group, override.value()
    if override.is_sweep_override():
        extra = "; +search=[a,b] merges two" if group == "search" else ""
        why = "the files of a group cannot be searched: run two studies and compare them"
        raise InputError(f"{text}: {why}{extra}.")
    if group in ADDED and not (override.is_add() or override.is_force_add()):
        raise InputError(f"{text}: {group} is not among the defaults. Type +{text} with a plus.")
    if isinstance(value, list) and group in SEVERAL:
        return [str(entry) for entry in value]
    if isinstance(value, (list, dict)):
        raise InputError(f"{text}: {group}= chooses one file. A value is set by {group}.key=...")
    return ["" if value is None else _raw(text)]


def _take_value(asked: _Asked, override: Override, text: str) -> None:
    name, value = override.key_or_group, override.value()
    if override.is_sweep_override():
        if not isinstance(value, Sweep):
            raise InputError(f"{text}: glob() is for files. Type {name}='choice(a, b)'.")
        check_searchable(name)
        asked.values.pop(name, None)
        asked.swept[name] = (value, _raw(text))
    else:
        asked.swept.pop(name, None)
        asked.values[name] = _plain_value(name, value, text)


def _plain_value(name: str, value: Any, text: str) -> Any:
    """The value, a text that looks like a number or a switch left as it was typed."""
    if isinstance(value, list) and any(isinstance(entry, Sweep) for entry in value):
        raise InputError(f"{text}: a sweep stands alone, not in a list. Type {name}='choice(...)'.")
    leaf = LEAVES.get(name)
    if leaf and leaf.kind == "str" and isinstance(value, (bool, int, float)):
        return _raw(text)
    return value


def _raw(text: str) -> str:
    value = text.partition("=")[2].strip()
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def check_searchable(name: str) -> None:
    """Raises InputError unless the leaf may be searched; says what to do instead."""
    if name in SEARCHABLE:
        return
    known = name in LEAVES or name.partition(".")[0] in OPEN
    if not known:
        raise InputError(unknown_key(name, LEAVES))
    group = name.partition(".")[0]
    one = "One study has one model and one data set"
    why = one if group in ("model", "data") else "All trials of a study share it"
    raise InputError(
        f"{name} cannot be searched. {why}: run two studies and compare them. "
        f"Searchable: {', '.join(SEARCHABLE)}."
    )


# --- Hydra ---------------------------------------------------------------------------------------


def _folders(asked: _Asked, config_dir: Path | None) -> list[Path]:
    """Where groups are looked up: ours, the user's, and the results for `+recipe=`."""
    if config_dir is not None and not config_dir.is_dir():
        raise InputError(f"--config-dir {config_dir}: there is no such folder.")
    folders = [conf_dir(), *([config_dir.absolute()] if config_dir else [])]
    if "recipe" in asked.groups:
        results = Path(str(asked.values.get("results_dir", "results"))).expanduser()
        folders.append(results.absolute())
    return folders


def _check_options(group: str, names: Sequence[str], folders: Sequence[Path]) -> None:
    known = options(group, folders)
    for name in names:
        if name in known:
            continue
        if group == "recipe" and not known:
            places = " or ".join(str(folder / "recipe") for folder in folders[1:])
            raise InputError(f"+recipe={name}: there is no recipe yet in {places}.")
        raise InputError(unknown(f"{group}:", name, known))


def _composed(groups: Mapping[str, Sequence[str]], folders: Sequence[Path]) -> DictConfig:
    lines = [f"hydra.searchpath=[{','.join(_quoted(f'file://{f}') for f in folders[1:])}]"]
    for group, names in groups.items():
        chosen = ",".join(_quoted(name) for name in names)
        place = f"{group}@_global_" if group == "recipe" else group
        several = f"[{chosen}]" if group in SEVERAL or group in ADDED else chosen
        lines.append(f"+{place}={several}" if group in ADDED else f"{group}={several}")
    try:
        with initialize_config_dir(str(folders[0]), version_base="1.3", job_name="sweep"):
            config = hydra_compose("config", lines)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeError) as error:
        raise InputError(f"The configuration cannot be composed: {_one_line(error)}") from None
    OmegaConf.set_struct(config, False)
    return config


def _keep_typed_groups(
    config: DictConfig, asked: _Asked, folders: Sequence[Path]
) -> tuple[str, ...]:
    """A group typed beside `+recipe=` stays whole; says which groups are the recipe's."""
    if "recipe" not in asked.groups:
        return ()
    path = options("recipe", folders)[asked.groups["recipe"][0]]
    filled = [group for group in GROUPS if group in (OmegaConf.load(path) or {})]
    typed = [group for group in filled if group in asked.groups and group not in ADDED]
    if typed:
        rest = {group: names for group, names in asked.groups.items() if group != "recipe"}
        without = _composed(rest, folders)
        for group in typed:
            config[group] = without[group]
    return tuple(group for group in filled if group not in typed)


def _name_trackers(config: DictConfig, asked: _Asked, folders: Sequence[Path]) -> None:
    """Of several trackers each keeps its name, and shares the group's options."""
    chosen = asked.groups.get("tracking", [])
    if len(chosen) > 1:
        alone = (_composed({"tracking": [name]}, folders) for name in chosen)
        config.tracking.name = [entry.tracking.get("name") for entry in alone]


def _set(config: DictConfig, name: str, value: Any) -> None:
    try:
        OmegaConf.update(config, name, value, merge=False, force_add=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{name}={value} cannot be read: {_one_line(error)}") from None


def _check_key(name: str, config: DictConfig) -> None:
    group, _, key = name.partition(".")
    if name in GROUPS:
        raise InputError(unknown_key(name, LEAVES))
    if group not in OPEN:
        if name not in LEAVES:
            raise InputError(_unknown(name, config))
        return
    if key == "name":
        raise InputError(f"{name} is set by its file. Type {group}=... to choose another.")
    if key not in config[group]:
        chosen = _named(config[group].name)
        known = [f"{group}.{entry}" for entry in config[group] if entry != "name"]
        if not known:
            raise InputError(f"{name} is unknown: {group}={chosen} has no options.")
        raise InputError(unknown(f"{group}={chosen}: key", name, known))


def _named(name: Any) -> str:
    return name if isinstance(name, str) else f"[{','.join(map(str, name))}]"


def _unknown(name: str, config: DictConfig) -> str:
    """The message about an unknown key; a group's name is the nearest for `modle=demo`."""
    options = {f"{group}.{key}": None for group in OPEN for key in config[group]}
    known = {**LEAVES, **options}
    plain = "." not in name and not same_word(name, known)
    if plain and (group := nearest(name, (*GROUPS, "recipe"))):
        plus = "+" if group in ADDED else ""
        return f"{name!r} is unknown. Did you mean {plus}{group}=...? Groups: {', '.join(GROUPS)}."
    return unknown_key(name, known)


def _plain(config: DictConfig) -> dict[str, Any]:
    """The tree with interpolations resolved, as plain dictionaries, lists and scalars."""
    with open_dict(config):
        try:
            tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None) or "the configuration"
            raise InputError(f"{key}: {_one_line(error)}") from None
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=")))
