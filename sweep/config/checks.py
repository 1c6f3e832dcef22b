"""Checks that concern more than one value, and need neither the model nor the data."""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config.leaves import show
from sweep.names import unknown
from sweep.secrets import in_url, masked
from sweep.space import examples, possible
from trials.contract import DataConfig, InputError, ModelConfig
from trials.worker import ARTIFACT, artifact_parts

if TYPE_CHECKING:
    from sweep.config import Limits, SweepConfig

STUDY = re.compile(r"[A-Za-z0-9_+=][A-Za-z0-9._+=-]{0,99}")
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
RESERVED = ("artifacts", "recipe")  # folders of results_dir that are not a study's
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".zst")
SHOWN = 8  # of a folder's entries, where one that was typed is not there


def check(config: SweepConfig) -> None:
    """All checks of a whole sweep. Raises InputError."""
    check_device(config.device)
    _check_sampler(config)
    _check_pruner(config.pruner.options)
    check_batches(config)
    _check_price(config.limits)
    _check_samples(config)
    _check_tracking(config)


def check_study(study: str, results_dir: Path, storage: str) -> str:
    """The study's name, if it can be a folder of its own inside `results_dir`."""
    rule = (
        "a study's name is also its folder's: up to 100 letters, digits and . _ + = -, "
        "not starting with . or -"
    )
    if not STUDY.fullmatch(study):
        fit = re.sub(r"[^A-Za-z0-9._+=-]+", "_", study).strip("._-")[:100] or "my_study"
        raise InputError(f"study={study!r} cannot be: {rule}. Type study={fit}.")
    if study.lower() in {*RESERVED, *_database_files(storage, results_dir)} or _is_file(
        results_dir / study
    ):
        raise InputError(f"study={study!r} is taken in {results_dir}. Type study=my_{study[:96]}.")
    return study


def _database_files(storage: str, results_dir: Path) -> list[str]:
    """The names that the database takes in `results_dir`, some of them only while it is open."""
    path = Path(storage.partition(":///")[2].partition("?")[0])
    if not storage.startswith("sqlite") or path.parent != results_dir:
        return []
    return [f"{path.name}{end}".lower() for end in ("", "-journal", "-wal", "-shm")]


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError:  # a name that no file can have: the folder's own check says so
        return False


def check_device(device: str) -> str:
    """The device's name, if it is one; whether it is there only a worker can tell."""
    if not DEVICE.fullmatch(device):
        message = unknown("device:", device, ("auto", "cpu", "cuda", "cuda:0", "cuda:1"))
        raise InputError(message.removesuffix(".") + ", ...")
    return device


def storage_url(url: str) -> str:
    """The database's URL, a relative SQLite path made absolute. Raises InputError."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from sweep.store.servers import check as check_database

    example = "sqlite:///results/sweep.db, postgresql://user:password@host/database"
    if "://" not in url:
        typed = f"Type storage=sqlite:///{url}" if url.endswith(".db") else f"Type {example}"
        said = "***" if "@" in url else url  # there is no telling what in it is a password
        raise InputError(f"storage={said} is not a database URL. {typed}.")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(f"storage={masked(url)} is not a database URL. Type {example}.") from None
    check_database(parsed, url)
    if parsed.get_backend_name() != "sqlite":
        return url
    if parsed.database in (None, "", ":memory:"):
        said = masked(url)
        raise InputError(f"storage={said} is not a file, so nothing would be left. Type {example}.")
    if parsed.username or parsed.host or parsed.query or parsed.database.startswith("file:"):
        file = str(parsed.database).removeprefix("file:")
        raise InputError(
            f"storage={masked(url)}: SQLite knows a file and nothing else, no user, password or "
            f"option. Type storage=sqlite:///{file}."
        )
    if any(sign in url for sign in "%?#"):
        raise InputError(
            f"storage={masked(url)}: a database's path holds no %, ? or #, for they mean something "
            "else in a URL. Type results_dir=<a path without>, or storage=sqlite:////<a path "
            "without>/sweep.db."
        )
    path = Path(str(parsed.database)).expanduser().absolute()
    return parsed.set(database=str(path)).render_as_string(hide_password=False)


def local_paths(model: ModelConfig, data: DataConfig) -> tuple[ModelConfig, DataConfig]:
    """Both with the paths of this machine made absolute. Raises InputError for a missing one."""
    if model.name != "demo":
        model = replace(model, name=_local("model.name", model.name))
    path = data.path and _local("data.path", data.path)
    eval_path = data.eval_path and _local("data.eval_path", data.eval_path)
    return model, replace(data, path=path, eval_path=eval_path)


def check_splits(data: DataConfig, typed: Collection[str]) -> None:
    """Refuses a split that was typed for what is one file. Raises InputError."""
    for key, split, path in (("data.split", data.split, data.path),
                             ("data.eval_split", data.eval_split, data.eval_path)):
        if key in typed and split != "train" and path and Path(path).is_file():
            name = key.replace("split", "path")
            raise InputError(f"{key}={split}: {name}={path} is one file, which has no splits. "
                             f"Leave {key} out, or type {name}=<the file that is meant>.")


def check_batches(config: SweepConfig, train_examples: int | None = None) -> None:
    """Refuses a batch larger than a tick, for every value that the study may propose.

    `train_examples` is known once the data is; without it, budgets in epochs are left unchecked.
    """
    batch, ticks = max(possible(config, "train.batch_size")), config.values["budget.ticks"]
    for value in possible(config, "budget.examples"):
        more = f"budget.examples={batch * ticks}"
        _check_batch(batch, ticks, value, f"budget.examples={value}", more)
    for value in possible(config, "budget.epochs") if train_examples else ():
        count = examples({"budget.epochs": value}, train_examples or 0)
        said = f"budget.epochs={value:g} of {train_examples} examples"
        more = f"budget.epochs={math.ceil(100 * batch * ticks / (train_examples or 1)) / 100:g}"
        _check_batch(batch, ticks, count, said, more)


def _check_batch(batch: int, ticks: int, budget: int, said: str, more: str) -> None:
    if batch * ticks <= budget:
        return
    ways = [more]
    ways += [f"budget.ticks={budget // batch}"] if budget >= batch else []
    ways += [f"train.batch_size={budget // ticks}"] if budget >= ticks else []
    raise InputError(
        f"train.batch_size={batch} is larger than a tick: {said} in budget.ticks={ticks} makes "
        f"{budget / ticks:g} examples a tick, and a tick is at least one batch. "
        f"Type {' or '.join(ways)}."
    )


def _local(name: str, value: str) -> str:
    if in_url(value):  # it would be stored with every trial
        raise InputError(
            f"{name}={masked(value)}: a password in a URL would be written into every result. "
            f"Log in by HF_TOKEN=... instead, or download it and type {name}=<the local file>."
        )
    if value.startswith(ARTIFACT):
        artifact_parts(value, name)
        return value  # downloaded before a worker starts
    path = Path(value).expanduser()
    if path.exists():
        return str(path.absolute())
    typed_as_path = value.startswith(("/", "./", "../", "~")) or value.endswith(FILES)
    if not typed_as_path or "://" in value:
        return value  # a name of the hub
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(
            f"{name}={value}: there is no folder {folder}. "
            f"Type {name}=<a file or folder that is there>."
        )
    there = [entry.name for entry in folder.iterdir()
             if not entry.name.startswith(".") and (entry.name.endswith(FILES) or entry.is_dir())]
    meant = difflib.get_close_matches(path.name, there, n=1)
    hint = f" Did you mean {meant[0]!r}?" if meant else ""
    known = ", ".join(difflib.get_close_matches(path.name, there, n=SHOWN, cutoff=0.0))
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    raise InputError(
        f"{name}={value}: there is no such file or folder.{hint} In {folder}: "
        f"{known or 'no data files, and no folders'}{more}."
    )


def _check_sampler(config: SweepConfig) -> None:
    name = config.sampler.name
    if name == "grid" and config.space.size() is None:
        endless = [d for d in config.space.dimensions if d.points() is None]
        told = ", ".join(f"{d.name}={d.expression}" for d in endless)
        raise InputError(
            f"sampler=grid tries every point, and {told} has no end of them. "
            f"Type {endless[0].name}='choice(...)' or 'range(low, high, step)', or sampler=tpe."
        )


def _check_pruner(options: Mapping[str, Any]) -> None:
    upper, lower = options.get("upper"), options.get("lower")
    if "upper" in options and upper is None and lower is None:
        raise InputError("pruner=threshold has no threshold. Type pruner.upper=2.5, a loss.")
    if upper is not None and lower is not None and lower >= upper:
        raise InputError(f"pruner.lower={lower:g} is not below pruner.upper={upper:g}.")


def _check_price(limits: Limits) -> None:
    """Raises InputError for a budget of money that nothing can be counted in."""
    for name in ("max_money", "max_trial_money"):
        money = getattr(limits, name)
        if money is not None and limits.price_per_hour is None:
            raise InputError(
                f"budget.{name}={show(money)} needs a price. Type for example "
                "budget.price_per_hour=2.5, what one device costs in an hour, in the same currency."
            )


def _check_samples(config: SweepConfig) -> None:
    if config.samples_at_ticks and not config.samples:
        raise InputError("samples_at_ticks=true has nothing to write for. Type samples=3.")


def _check_tracking(config: SweepConfig) -> None:
    names, online = config.tracking.names, config.tracking.options.get("mode") == "online"
    if "tensorboard" in names and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tracking=tensorboard needs the package tensorboard. Type pip install tensorboard."
        )
    if "wandb" not in names or not online:
        return
    from sweep.tracking.wandb.server import key_known

    if not key_known():
        raise InputError(
            "tracking.mode=online needs a W&B key, and there is none. Type wandb login, set "
            "WANDB_API_KEY, or type tracking.mode=offline (synced later) or tracking=none."
        )
