"""Opens the study in its database; refuses what would mix with it; finds what earlier runs left."""

from __future__ import annotations

import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from sweep.config import SweepConfig
from sweep.store import NothingThere, Store, TrialRecord, study_of
from sweep.store.database import engine_options, hurry, shown, sqlite_path
from sweep.study import identity, lock
from sweep.study.lock import StudyLock
from sweep.study.pruners import Pruner, pruner
from sweep.study.samplers import Sampling, sampling
from trials.contract import InputError, Setup

ATTRIBUTE = "sweep"  # the study's own attribute that says what it is
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)  # failed trials do not count

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass
class OpenStudy:
    """A study that this process holds: Optuna's half, ours, and the lock."""

    study: optuna.Study
    storage: RDBStorage
    store: Store
    lock: StudyLock
    uuid: str
    pruner: Pruner
    sampling: Sampling
    seconds: float  # wall-clock of all earlier runs

    def close(self) -> None:
        """Lets the next driver in and gives the connections back."""
        self.lock.release()
        self.storage.remove_session()
        self.storage.engine.dispose()
        self.store.close()


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a study is, seen without touching it."""

    counted: int
    running: int
    uuid: str
    first_rung: int
    seconds: float  # wall-clock of all runs
    records: list[TrialRecord]
    setup: Setup | None  # null: written by an older version
    configured: dict[str, Any] | None  # model and data as typed; null: likewise


def look(config: SweepConfig) -> Standing | None:
    """How far the study is, or null where there is none yet. Nothing is written.

    Raises `InputError` for whatever already shows that this command cannot go on with it.
    """
    pruner(config.pruner, ticks=config.values["budget.ticks"], study=config.study)
    sampling(config.sampler, config.space, config.values, config.seed)
    _check_writable(config)
    try:
        store = Store(config.storage)
    except NothingThere:
        return None
    try:
        lock.refuse_if_held(store.engine, config.study)
        return _standing(config, store)
    finally:
        store.close()


def open_study(config: SweepConfig, setup: Setup) -> OpenStudy:
    """Opens the study, or makes it; leaves nothing half-made. Raises `InputError`."""
    rule = pruner(config.pruner, ticks=config.values["budget.ticks"], study=config.study)
    proposals = sampling(config.sampler, config.space, config.values, config.seed)
    facts = identity.planned(config) | identity.found(setup)
    with _nothing_left_behind(config):
        store = Store(config.storage, create=True)
        held = lock.take(store.engine, config.study)
        storage = _storage(config.storage, create=True)
        try:
            study, known = _load_or_create(config, storage, facts)
            identity.refuse_other(config.study, known["facts"], facts)
            seconds = _write_row(config, setup, store, known["uuid"], rule.first_rung)
            _describe(config, setup, study)
        except BaseException:
            held.release()
            storage.engine.dispose()
            store.close()
            raise
    return OpenStudy(study, storage, store, held, known["uuid"], rule, proposals, seconds)


def _standing(config: SweepConfig, store: Store) -> Standing | None:
    """Null where there is no such study, or a driver was killed while it made Optuna's tables."""
    with suppress(KeyError, StorageInternalError), _read_only(config.storage) as storage:
        study = optuna.load_study(study_name=config.study, storage=storage)
        if known := study.user_attrs.get(ATTRIBUTE):
            facts = identity.planned(config)
            identity.refuse_other(config.study, known["facts"], facts, same_names=False)
            return _progress(study, store, known)
    return None


def _progress(study: optuna.Study, store: Store, known: dict[str, Any]) -> Standing | None:
    study_uuid = known["uuid"]
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    row = next((row for row in store.studies() if row.uuid == study_uuid), None)
    if row is None:
        return None
    try:
        setup = store.setup(study_uuid)
    except ValueError:
        setup = None
    return Standing(
        counted=sum(state in COUNTED for state in states),
        running=states.count(TrialState.RUNNING),
        uuid=study_uuid,
        first_rung=row.first_rung,
        seconds=row.seconds,
        records=store.trials(study_uuid),
        setup=setup,
        configured=known.get("configured"),
    )


@contextmanager
def _read_only(url: str) -> Iterator[RDBStorage]:
    storage = _storage(url, create=False)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def _storage(url: str, *, create: bool) -> RDBStorage:
    try:
        options = engine_options(url)
        storage = RDBStorage(url, engine_kwargs=options, skip_table_creation=not create)
        if create:
            hurry(storage.engine)
        return storage
    except (sa.exc.SQLAlchemyError, RuntimeError, ImportError) as error:
        why = getattr(error, "orig", None) or error
        raise InputError(f"storage={shown(url)} cannot be used: {why}") from error


def _load_or_create(
    config: SweepConfig, storage: RDBStorage, facts: identity.Facts
) -> tuple[optuna.Study, dict[str, Any]]:
    """The study and what it is. One that does not say was cut short while made, or is not ours."""
    study = optuna.create_study(
        study_name=config.study, storage=storage, direction="minimize", load_if_exists=True
    )
    if ATTRIBUTE in study.user_attrs:
        return study, study.user_attrs[ATTRIBUTE]
    if study.get_trials(deepcopy=False):
        raise InputError(
            f"Study {config.study!r} in {shown(config.storage)} was not made by sweep. "
            "Type study=<another name>."
        )
    typed = identity.configured(config.model, config.data)
    known = {"uuid": str(uuid.uuid4()), "facts": facts, "configured": typed}
    study.set_user_attr(ATTRIBUTE, known)
    return study, known


def _write_row(
    config: SweepConfig, setup: Setup, store: Store, study_uuid: str, first_rung: int
) -> float:
    """Writes our row of the study; says the seconds of earlier runs."""
    store.open_study(study_of(config, setup, uuid=study_uuid, first_rung=first_rung), setup)
    return next(row.seconds for row in store.studies() if row.uuid == study_uuid)


def _describe(config: SweepConfig, setup: Setup, study: optuna.Study) -> None:
    """What the dashboard shows of a study; the latest run's."""
    facts = {
        "model": setup.model.name,
        "data": setup.data.path or setup.data.format,
        "device": setup.device.name,
        "baseline_loss": setup.baseline_loss,
        "sampler": config.sampler.name,
        "pruner": config.pruner.name,
        "command": config.command,
    }
    for name, value in facts.items():
        if study.user_attrs.get(name) != value:
            study.set_user_attr(name, value)


@contextmanager
def _nothing_left_behind(config: SweepConfig) -> Iterator[None]:
    """Makes the folders; on an error removes those, and the database file, that were not there."""
    path = sqlite_path(config.storage)
    folders = _missing(config.results_dir) + (_missing(path.parent) if path else [])
    try:
        for folder in folders:
            folder.mkdir(exist_ok=True)
        with _one_at_a_time(path.parent) if path else nullcontext():
            with _removed_on_error(path) if path and not path.exists() else nullcontext():
                yield
    except BaseException:
        for folder in reversed(folders):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two sweeps that start on one new SQLite file must not both make its tables, nor remove it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for end in ("", "-journal", "-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        raise


def _missing(folder: Path) -> list[Path]:
    """The folders on the way that do not exist yet, the outermost first."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    return missing[::-1]


def _check_writable(config: SweepConfig) -> None:
    """Raises `InputError` where the database's file or the results could not be written."""
    path = sqlite_path(config.storage)
    for name, folder in (("results_dir", config.results_dir), ("storage", path and path.parent)):
        if folder is not None:
            _check_folder(name, folder)
    if path and path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"storage={shown(config.storage)}: {path} is read-only.")


def _check_folder(name: str, folder: Path) -> None:
    try:
        there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
        if not there.is_dir():
            raise InputError(f"{name}: {there} is not a folder. Type {name}=<a place for it>.")
        if there != folder:
            _check_names(there, folder)
        os.rmdir(tempfile.mkdtemp(prefix=".sweep-", dir=there))  # /proc says yes, and does not
    except OSError as error:
        raise InputError(
            f"{name}: {folder} cannot be written to: {error.strerror}. "
            f"Type {name}=<a place to write to>."
        ) from None


def _check_names(there: Path, folder: Path) -> None:
    """Raises OSError for a name that is too long; the system says so before it is missing."""
    for part in folder.relative_to(there).parts:
        with suppress(FileNotFoundError):
            os.stat(there / part)
