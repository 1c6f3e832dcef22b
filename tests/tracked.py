"""W&B runs as their offline files tell them, and a simulated sweep that trackers follow."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sweeping

import sweep
from sweep.config import SweepConfig
from sweep.observers import Observers
from sweep.store import Store, TrialRecord
from sweep.tracking.observer import Tracking
from sweep.tracking.wandb import run_id

BLOCK = 32768  # of the LevelDB log format that W&B writes
FAULTS = "engine.faults=[nan@2:2,exception@3:2]"
OFFLINE = ("tracking=wandb", "tracking.mode=offline")


@dataclass
class Run:
    """A run as its offline file tells it."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)  # Artifacts by type
    used: list[str] = field(default_factory=list)
    exit_code: int | None = None


def runs(config: SweepConfig) -> dict[str, Run]:
    """The offline runs by id; each has one folder."""
    files = sorted((config.study_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.stem for file in files}) == len(files)
    return {file.stem.removeprefix("run-"): _read(file) for file in files}


def by_number(config: SweepConfig) -> dict[int | str, Run]:
    """The offline runs by trial number, and "baseline"."""
    uuid, records = tables(config)
    names = {run_id(uuid, number): number for number in ("baseline", *(r.number for r in records))}
    return {names[key]: run for key, run in runs(config).items()}


def tables(config: SweepConfig) -> tuple[str, list[TrialRecord]]:
    """The study's uuid and trials as our tables have them."""
    study, records = sweeping.stored(config)
    return study.uuid, records


def ticks(config: SweepConfig, number: int) -> list[tuple[int, float]]:
    """Examples and loss at each tick of a trial, as our tables have them."""
    uuid, records = tables(config)
    store = Store(config.storage)
    try:
        budget = store.trial_config(uuid, number).budget
    finally:
        store.close()
    step = budget.examples // budget.ticks
    losses = next(r.losses for r in records if r.number == number)
    return [(step * tick, loss) for tick, loss in enumerate(losses, 1)]


def losses(history: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Examples and loss at each tick, as a history has them."""
    return [(row["examples"], row["eval_loss"]) for row in history if "eval_loss" in row]


def swept(config: SweepConfig) -> list[str]:
    """A whole simulated sweep that its trackers follow; what they told the user."""
    notes: list[str] = []
    trackers = [Tracking(name, notes.append) for name in config.tracking.names]
    sweeping.run_inline(config, Observers(trackers, note=notes.append))
    return notes


def command(*argv: str) -> str:
    """What `python -m sweep.tracking` prints; it must succeed."""
    root = Path(sweep.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "sweep.tracking", *argv],
        env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _read(file: Path) -> Run:
    from wandb.proto import wandb_internal_pb2 as pb

    run = Run()
    for raw in _records(file):
        record = pb.Record()
        record.ParseFromString(raw)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            _note_run(run, record.run)
        elif kind == "config":
            run.config |= {_name(i): json.loads(i.value_json) for i in record.config.update}
        elif kind == "summary":
            run.summary |= {_name(i): json.loads(i.value_json) for i in record.summary.update}
        elif kind == "history":
            run.history.append({_name(i): json.loads(i.value_json) for i in record.history.item})
        elif kind == "artifact":
            (run.used if record.artifact.use_after_commit else run.logged).append(
                record.artifact.type
            )
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _records(file: Path) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of chunks with checksum, length and type."""
    data, place, parts = file.read_bytes(), 7, b""  # a header of seven bytes
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _note_run(run: Run, record: Any) -> None:
    run.name, run.group, run.job_type = record.display_name, record.run_group, record.job_type
    run.tags = list(record.tags)
    run.config |= {_name(item): json.loads(item.value_json) for item in record.config.update}


def _name(item: Any) -> str:
    return str(item.key or "/".join(item.nested_key))
