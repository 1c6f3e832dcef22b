"""What an interrupted trial is continued from: its state after an optimizer step, on disk.

    results/<study>/states/<number>/state.json             how far it is; names the other file
                                    <sha256>.safetensors   weights, moments; engines may do without

Both are written aside, flushed and renamed, `state.json` last: a state is there complete or not at
all. It is one of its trial if all that decides the trial's losses is the same. Whoever ends the
trial removes the folder, which is the driver's side.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trials.contract import Assignment, CurvePoint, Report, TrialConfig, from_json, to_json

if TYPE_CHECKING:  # an engine without weights needs no torch
    from torch import Tensor

VERSION = 2  # of the files' form
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")  # what tensors mean depends on them
TENSORS = re.compile(r"[0-9a-f]{64}\.safetensors")  # a name, and no path
SPARE = 20.0  # times as long as a state took to write passes until the next: 5 % of a trial at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a trial is: all but its tensors. Totals count from the trial's start."""

    steps: int  # optimizer steps
    examples: int
    tokens: int
    seconds: float
    eval_seconds: float = 0.0
    sample_seconds: float = 0.0
    memory_bytes: int = 0
    reports: tuple[Report, ...] = ()  # told so far
    history: tuple[CurvePoint, ...] = ()  # since the last one
    numbers: dict[str, Any] = field(default_factory=dict)  # the engine's own, as JSON has them


@dataclass(frozen=True, kw_only=True)
class State:
    """A trial after an optimizer step; `tensors` are on the CPU."""

    progress: Progress
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    version: int
    trial: str
    libraries: dict[str, str]
    tensors: str | None
    progress: Progress


class Writer:
    """Writes the states of trials that train together: one at a time, beside the training.

    They share one device and one disk, so that after each state it rests for all of them.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")
        self._rested_at = 0.0

    @property
    def rested(self) -> bool:
        """Whether the next state may be made."""
        return time.monotonic() >= self._rested_at

    def begin(self, work: Callable[[], None]) -> Future[None]:
        """Does the work when what was begun before is done."""
        self._rested_at = math.inf
        return self._thread.submit(self._do, work)

    def close(self) -> None:
        """Waits for what was begun."""
        self._thread.shutdown()

    def _do(self, work: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            work()
        finally:
            now = time.monotonic()
            self._rested_at = now + SPARE * (now - began)


class Keeping:
    """Keeps one trial's state: finds it at the start, writes it now and then.

    Where `folder` is null nothing is found and nothing is written. A state that cannot be used or
    written is a note, and the trial goes on. With a `writer` it goes on while its state is written.
    """

    def __init__(
        self, folder: Path | None, trial: TrialConfig, note: Callable[[str], None], every_s: float,
        writer: Writer | None = None,
    ) -> None:
        self._folder, self._trial, self._note, self._every_s = folder, trial, note, every_s
        self._writer = writer
        self._writing: Future[None] | None = None
        self.due_at = time.monotonic() + every_s
        self._failed = False

    @classmethod
    def assigned(
        cls, assignment: Assignment, trial: TrialConfig, note: Callable[[str], None],
        writer: Writer | None = None,
    ) -> Keeping:
        """As the worker was told to."""
        folder = None if assignment.states_dir is None else Path(assignment.states_dir)
        return cls(folder, trial, note, assignment.state_every_s, writer)

    @property
    def wanted(self) -> bool:
        """Whether states are kept at all."""
        return self._folder is not None

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last one, or the start."""
        rested = self._writer is None or not self._every_s or self._writer.rested
        return self.wanted and rested and time.monotonic() >= self.due_at

    def found(self) -> State | None:
        """What an earlier attempt left of this trial."""
        try:
            return None if self._folder is None else read_state(self._folder, self._trial)
        except (OSError, ValueError) as error:
            self._note(f"trial {self._trial.number} starts again: {error}")
            return None

    def keep(self, made: Callable[[], State | None]) -> None:
        """Writes the state that `made` gives, if it has one, in the place of the last one."""
        if self._folder is None:
            return
        began = time.monotonic()
        with self._trying():
            if (state := made()) is None:
                return
            write = partial(write_state, self._folder, self._trial, state)
            if self._writer is None:
                write()
            else:
                self.settle()
                self._writing = self._writer.begin(write)
        now = time.monotonic()
        took = 0.0 if self._writer else SPARE * (now - began)
        self.due_at = now + (self._every_s and max(self._every_s, took))

    def settle(self) -> None:
        """Waits for the state that is being written: who removes it must come after."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with self._trying():
                writing.result()

    @contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the trial itself is well
            if not self._failed:
                self._note(f"the state of trial {self._trial.number} cannot be kept: {error}")
            self._failed = True


def write_state(folder: Path, trial: TrialConfig, state: State) -> None:
    """Writes the state of `trial` into its folder in `folder`. Raises OSError and the like."""
    place = folder / str(trial.number)
    place.mkdir(parents=True, exist_ok=True)
    tensors = _write_tensors(place, state.tensors) if state.tensors else None
    record = _Record(version=VERSION, trial=identity(trial), tensors=tensors,
                     libraries=_libraries() if tensors else {}, progress=state.progress)
    body = json.loads(to_json(record))
    text = json.dumps({"sha256": _digest(body), "state": body})
    aside = _aside(place)
    with open(aside, "w") as file:
        file.write(text)
        _flush(file.fileno())
    os.replace(aside, place / "state.json")
    _flush_folder(place)
    _drop_others(place, tensors)


def read_state(folder: Path, trial: TrialConfig) -> State | None:
    """The state of `trial`, or null where there is none.

    Raises ValueError, saying why, for one that is damaged or not of this very trial.
    """
    place = folder / str(trial.number)
    try:
        text = (place / "state.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    record = _checked(text, trial)
    if record.tensors is None:
        return State(progress=record.progress)
    return State(progress=record.progress, tensors=_read_tensors(place / Path(record.tensors).name))


def identity(trial: TrialConfig) -> str:
    """Equal for attempts of one trial, whatever was changed that changes no result."""
    free = replace(trial.train, micro_batch_size=None, gradient_checkpointing=False)
    engine = replace(trial.engine, options={})
    return hashlib.sha256(
        to_json(replace(trial, attempt=0, train=free, engine=engine)).encode()
    ).hexdigest()


def _checked(text: bytes, trial: TrialConfig) -> _Record:
    try:
        found = json.loads(text)
        whole = found["sha256"] == _digest(found["state"])
        version = found["state"]["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("its state is damaged") from None
    if not whole:
        raise ValueError("its state is damaged")
    if version != VERSION:
        raise ValueError("its state is of another version of this program")
    record = from_json(_Record, json.dumps(found["state"]))
    if record.tensors is not None and not TENSORS.fullmatch(record.tensors):
        raise ValueError("its state is damaged")
    if record.trial != identity(trial):
        raise ValueError("the state that is there belongs to another trial")
    now = _libraries()
    for name, then in record.libraries.items():
        if now.get(name) != then:
            raise ValueError(f"its state was made with {name} {then}, and this is {now.get(name)}")
    return record


def _write_tensors(place: Path, tensors: Mapping[str, Tensor]) -> str:
    """The file's name says what must be in it."""
    from safetensors.torch import save_file

    aside = _aside(place)
    save_file(dict(tensors), aside, metadata={"format": "pt"})
    with open(aside, "rb") as file:
        name = f"{hashlib.file_digest(file, 'sha256').hexdigest()}.safetensors"
        _flush(file.fileno())
    os.replace(aside, place / name)
    return name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ValueError("its state has lost its tensors") from None
    if path.name != f"{digest}.safetensors":
        raise ValueError("the tensors of its state are damaged")
    return load_file(path)


def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _aside(place: Path) -> Path:
    return place / f".aside.{os.getpid()}"


def _flush(handle: int) -> None:
    os.fsync(handle)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _drop_others(place: Path, tensors: str | None) -> None:
    """What earlier states, and killed writers, left in the folder."""
    for path in place.iterdir():
        if path.name not in ("state.json", tensors):
            path.unlink(missing_ok=True)
