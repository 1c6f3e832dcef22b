"""Where a study's files go: made when needed, and taken away again when nothing came of it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from sweep.config import SweepConfig
from sweep.store.database import shown, sqlite_path
from trials.contract import InputError

INSIDE = {  # of a study's folder, itself first; whether it is a folder
    "": True, "trials": True, "logs": True, "adapters": True, "states": True,
    "config.yaml": False, "setup.json": False, "trials.csv": False, "report.html": False,
}  # fmt: skip


def check_writable(config: SweepConfig) -> None:
    """Raises `InputError` where the database's file or the results could not be written."""
    path = sqlite_path(config.storage)
    for name, folder in (("results_dir", config.results_dir), ("storage", path and path.parent)):
        if folder is not None:
            _check_folder(name, folder)
    _check_inside(config.study_dir)
    if path and path.is_dir():
        raise InputError(f"storage={shown(config.storage)}: {path} is a folder. Type "
                         f"storage=sqlite:///{path}/sweep.db.")
    if path and path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"storage={shown(config.storage)}: {path} is read-only.")


def check_nobodys(config: SweepConfig) -> None:
    """Raises `InputError` where a new study would write over what another one has left."""
    folder = config.study_dir
    if any((folder / name).exists() for name in ("setup.json", "trials.csv", "trials", "adapters")):
        raise InputError(
            f"study={config.study}: {folder} holds a study that {shown(config.storage)} does not "
            "know. Type study=<another name>, or storage=<its database>, or move that folder away."
        )


@contextmanager
def nothing_left_behind(config: SweepConfig) -> Iterator[None]:
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


def _check_inside(folder: Path) -> None:
    """Raises `InputError` where something else is in the place of what a study writes."""
    for name, is_folder in INSIDE.items():
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} is a link that leads nowhere. Remove it.")
        if path.exists() and path.is_dir() is not is_folder:
            kind = "folder" if is_folder else "file"
            raise InputError(f"{path} is in the way: a study has a {kind} there. Move it away.")


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
