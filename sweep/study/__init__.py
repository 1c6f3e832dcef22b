"""Opens the study in its database; refuses what would mix with it; finds what earlier runs left."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.config import SweepConfig
from sweep.store import NothingThere, Store, TrialRecord, servers, study_of
from sweep.store.database import connect, engine_options, hurry, shown, unusable
from sweep.store.runs import RunRecord
from sweep.streams import tell
from sweep.study import identity, lock
from sweep.study.guard import Guard, database_error
from sweep.study.lock import StudyLock
from sweep.study.places import check_nobodys, check_writable, nothing_left_behind
from sweep.study.pruners import Pruner, pruner
from sweep.study.samplers import Sampling, sampling
from trials.contract import InputError, Setup

ATTRIBUTE = "sweep"  # says what the study is; Optuna's own half of attributes, none shows it
NO_TABLE = ("no such table", "does not exist", "doesn't exist")  # SQLite, PostgreSQL, MySQL
T = TypeVar("T")
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)  # failed trials do not count

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass
class OpenStudy:
    """A study that this process holds: Optuna's half, ours, and the lock."""

    study: optuna.Study
    storage: RDBStorage
    tables: Store
    held: StudyLock
    guard: Guard
    uuid: str
    pruner: Pruner
    sampling: Sampling
    seconds: float  # wall-clock of all earlier runs

    def __post_init__(self) -> None:
        self.store = self.guard.around(self.tables)  # what is written while trials run
        self.lock = self.guard.around(self.held)

    def known(self) -> list[TrialRecord]:
        """The trials as far as they can be read, also of a lost database."""
        with suppress(sa.exc.SQLAlchemyError):
            return self.tables.trials(self.uuid)
        return []

    def close(self) -> None:
        """Lets the next driver in and gives the connections back, also of a lost database."""
        for step in (self.held.release, self.storage.remove_session):
            with suppress(sa.exc.SQLAlchemyError):
                step()
        self.storage.engine.dispose()
        if self.guard.gone:
            self.tables.engine.dispose()  # a connection made now would make an empty file
        else:
            self.tables.close()


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a study is, seen without touching it."""

    counted: int
    running: int
    uuid: str
    first_rung: int
    seconds: float  # wall-clock of all runs
    runs: list[RunRecord]
    records: list[TrialRecord]
    setup: Setup | None  # null: written by an older version
    configured: dict[str, Any] | None  # model and data as typed; null: likewise
    facts: dict[str, Any]  # what its results depend on, see `sweep.study.identity`
    frozen: list[FrozenTrial]  # all trials as Optuna has them


def look(config: SweepConfig, note: Callable[[str], None] = tell) -> Standing | None:
    """How far the study is, or null where there is none yet. Nothing is written.

    Raises `InputError` for whatever already shows that this command cannot go on with it.
    """
    pruner(config.pruner, ticks=config.values["budget.ticks"], study=config.study)
    sampling(config.sampler, config.space, config.values, config.seed)
    check_writable(config)
    standing = Guard(config.storage, note).call(_look, config)
    if standing is None:
        check_nobodys(config)
    return standing


def open_study(config: SweepConfig, setup: Setup, guard: Guard | None = None) -> OpenStudy:
    """Opens the study, or makes it; leaves nothing half-made. Raises `InputError`."""
    guard = guard or Guard(config.storage, tell)
    with nothing_left_behind(config):
        store = guard.call(_alone, Store, config.storage)
        try:
            held = guard.call(lock.take, store.engine, config.study)
        except BaseException:
            store.close()
            raise
        try:
            return _opened(config, setup, guard, store, held)
        except BaseException:
            held.release()
            store.close()
            raise


def what_it_is(study: optuna.Study) -> dict[str, Any] | None:
    """What `sweep` noted of a study when it was made; null where that was not by `sweep`."""
    noted = study._storage.get_study_system_attrs(study._study_id)
    return noted.get(ATTRIBUTE) or study.user_attrs.get(ATTRIBUTE)  # where it was once kept


def _opened(
    config: SweepConfig, setup: Setup, guard: Guard, store: Store, held: StudyLock
) -> OpenStudy:
    """Each step may be repeated, so each is made as often as the database asks for it."""
    rule = pruner(config.pruner, ticks=config.values["budget.ticks"], study=config.study)
    proposals = sampling(config.sampler, config.space, config.values, config.seed)
    facts = identity.planned(config) | identity.found(setup)
    storage = guard.call(_alone, _storage, config.storage)
    try:
        study, known = guard.call(_load_or_create, config, storage, facts)
        identity.refuse_other(config.study, known["facts"], facts)
        uuid, first_rung = known["uuid"], rule.first_rung
        seconds = guard.call(_write_row, config, setup, store, uuid, first_rung)
        guard.call(_describe, config, setup, study)
    except BaseException:
        storage.remove_session()
        storage.engine.dispose()
        raise
    guard.hold(held)
    return OpenStudy(study, storage, store, held, guard, uuid, rule, proposals, seconds)


def _look(config: SweepConfig) -> Standing | None:
    try:
        store = Store(config.storage)
    except NothingThere:
        with _connected(config.storage) as engine:
            servers.check_new(engine, shown(config.storage))
        return None
    try:
        lock.refuse_if_held(store.engine, config.study)
        return _standing(config, store)
    finally:
        store.close()


def _standing(config: SweepConfig, store: Store) -> Standing | None:
    """Null where there is no such study, or a driver was killed while it made Optuna's tables."""
    with suppress(KeyError, _Unfinished), _read_only(config.storage) as storage:
        study = optuna.load_study(study_name=config.study, storage=storage)
        _refuse_namesake(study)
        if known := what_it_is(study):
            facts = identity.planned(config)
            identity.refuse_other(config.study, known["facts"], facts, same_names=False)
            return _progress(study, store, known)
    return None


def _progress(study: optuna.Study, store: Store, known: dict[str, Any]) -> Standing | None:
    study_uuid = known["uuid"]
    frozen = study.get_trials(deepcopy=False)
    states = [trial.state for trial in frozen]
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
        runs=store.runs(study_uuid),
        records=store.trials(study_uuid),
        setup=setup,
        configured=known.get("configured"),
        facts=known["facts"],
        frozen=frozen,
    )


@contextmanager
def _connected(url: str) -> Iterator[sa.Engine]:
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _alone(make: Callable[..., T], url: str) -> T:
    """Makes the tables of a database while no other sweep makes them."""
    with _connected(url) as engine, servers.one_at_a_time(engine):
        return make(url, create=True)


class _Unfinished(Exception):
    """Optuna's tables are not all there."""


@contextmanager
def _read_only(url: str) -> Iterator[RDBStorage]:
    try:
        storage = _storage(url, create=False)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except StorageInternalError as error:
        if any(word in str(database_error(error)) for word in NO_TABLE):
            raise _Unfinished from error
        raise


def _storage(url: str, *, create: bool) -> RDBStorage:
    try:
        options = engine_options(url)
        storage = RDBStorage(url, engine_kwargs=options, skip_table_creation=not create)
        servers.speak_of_locks(storage.engine)
        if create:
            hurry(storage.engine)
        return storage
    except (sa.exc.SQLAlchemyError, RuntimeError, ImportError) as error:
        raise unusable(url, error) from error


def _load_or_create(
    config: SweepConfig, storage: RDBStorage, facts: identity.Facts
) -> tuple[optuna.Study, dict[str, Any]]:
    """The study and what it is. One that does not say was cut short while made, or is not ours."""
    study = optuna.create_study(
        study_name=config.study, storage=storage, direction="minimize", load_if_exists=True
    )
    _refuse_namesake(study)
    if known := what_it_is(study):
        return study, known
    if study.get_trials(deepcopy=False):
        raise InputError(
            f"Study {config.study!r} in {shown(config.storage)} was not made by sweep. "
            "Type study=<another name>."
        )
    typed = identity.configured(config.model, config.data)
    known = {"uuid": str(uuid.uuid4()), "facts": facts, "configured": typed}
    storage.set_study_system_attr(study._study_id, ATTRIBUTE, known)
    return study, known


def _refuse_namesake(study: optuna.Study) -> None:
    """MySQL tells no capitals from small letters, so that another study may answer to the name."""
    found = study._storage.get_study_name_from_id(study._study_id)
    if found != study.study_name:
        raise InputError(
            f"study={study.study_name}: this database takes it for {found!r}, which is there. "
            f"Type study={found} or study=<another name>."
        )


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
