"""Weights & Biases: one run for each trial, written by a process of its own.

The client can block for 90 seconds and can raise; here it can do neither to the sweep: events go
to `wandb_process` through a `Feed`, and every method returns at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sweep.config import SweepConfig
from sweep.observers import Closed, Opened
from sweep.observers.feed import Feed
from sweep.observers.tally import Tally
from sweep.observers.wandb_server import key_known as key_known
from sweep.results.wording import clean, here, plural
from sweep.secrets import masked
from sweep.store import TrialRecord
from trials.contract import CurvePoint, Report, TrialConfig, TrialResult, Verdict, tick_examples

CLOSE_TIMEOUT_S = 30.0  # for what is still to be uploaded at the end
PROJECT = "sweep"
NAME_LIMIT = 120  # characters; the service's limit is 128
TAG_LIMIT = 64


class Wandb:
    """Shows the sweep to W&B. What it needs is in `tracking.options`: project, entity, mode."""

    def __init__(
        self, note: Callable[[str], None], close_timeout_s: float = CLOSE_TIMEOUT_S
    ) -> None:
        self._note, self._close_timeout_s = note, close_timeout_s
        self._feed: Feed | None = None
        self._unsent: list[str] = []  # folders of runs that are not complete on the server

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Not W&B's affair."""

    def opened(self, opened: Opened) -> None:
        """Starts the process."""
        config = opened.config
        self._opened, self._tally = opened, Tally(opened)
        log = config.study_dir / "logs" / "wandb.log"
        self._feed = Feed("sweep.observers.wandb_process", log, self._note, self._answered)
        self._send(kind="open", **_session(opened))

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """A run begins, or goes on in a later attempt."""
        record = self._tally.started(trial, params, worker)
        self._send(
            kind="started",
            trial=trial.number,
            id=run_id(self._opened.study_uuid, trial.number),
            name=clean(f"{trial.study}-{trial.number}", limit=NAME_LIMIT),
            config=flat_config(trial, params) | {"worker": worker},
            attempt=trial.attempt,
            past=_past(trial, record),
        )

    def reported(self, report: Report, verdict: Verdict) -> None:
        """The curve since the last tick, and the tick."""
        self._tally.reported(report, verdict)
        tick = {
            "examples": report.examples,
            "eval_loss": report.eval_loss,
            "eval_accuracy": report.eval_accuracy,
            "tick": report.tick,
        }
        rows = [*_rows(report.history), {k: v for k, v in tick.items() if v is not None}]
        self._send(kind="reported", droppable=True, trial=report.trial, tick=report.tick, rows=rows)

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """The rest of the curve and the summary."""
        record = self._tally.finished(trial, result)
        summary = summarise(record, self._opened.setup.baseline_loss)
        self._send(
            kind="finished",
            trial=trial.number,
            rows=list(_rows(result.history)),
            summary=summary,
            failed=record.outcome == "failed",
        )

    def closed(self, closed: Closed) -> None:
        """Waits for what is still on its way, but not for long."""
        if self._feed is None:
            return
        began = time.monotonic()
        done = self._feed.close(self._close_timeout_s)
        if self._feed.dropped:
            self._note(f"W&B missed {plural(self._feed.dropped, 'report')}; the database has them.")
        if not done:
            waited = time.monotonic() - began
            self._note(f"W&B was not done after {waited:.0f} s and was ended. {self._later()}")
        elif self._unsent:
            self._note(f"W&B has not got everything. {self._later()}")

    def stop(self) -> None:
        """Ends the process without waiting for it."""
        if self._feed is not None:
            self._feed.stop()

    def _later(self) -> str:
        folder = shlex.quote(clean(here(self._opened.config.study_dir / "wandb")))
        return f"To upload the rest later: wandb sync --include-online {folder}/*run-*"

    def _answered(self, answer: Mapping[str, Any]) -> None:
        if "unsent" in answer:
            self._unsent.append(str(answer["unsent"]))
        if "note" in answer:
            self._note(str(answer["note"]))

    def _send(self, *, droppable: bool = False, **event: Any) -> None:
        if self._feed is not None:
            self._feed.put(event, droppable=droppable)


def run_id(study_uuid: str, number: int) -> str:
    """The same trial's run, whoever writes it and however often."""
    return hashlib.sha256(f"{study_uuid}/{number}".encode()).hexdigest()[:16]


def flat_config(trial: TrialConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every leaf of a trial under the name that a search gives it, and the searched values."""
    leaves = dict(_leaves(dataclasses.asdict(trial), ""))
    leaves.pop("attempt")  # the run is the trial's, not the attempt's
    return leaves | {name: _column(item) for name, item in params.items()}


def summarise(record: TrialRecord, baseline_loss: float) -> dict[str, Any]:
    """A run's summary columns; rates are per second of training, evaluation left out."""
    training_s = record.seconds - record.eval_seconds
    summary: dict[str, Any] = {
        "eval_loss": record.eval_loss,
        "eval_accuracy": record.eval_accuracy,
        "first_rung_loss": record.first_rung_loss,
        "baseline_loss": baseline_loss,
        "outcome": record.outcome,
        "reason": clean(record.reason) if record.reason else None,
        "ticks": record.ticks,
        "examples": record.examples,
        "tokens": record.tokens,
        "tokens_per_s": record.tokens / training_s if training_s > 0 else None,
        "seconds": record.seconds,
        "eval_seconds": record.eval_seconds,
        "peak_memory_bytes": record.memory_bytes,
        "utilisation": record.utilisation,
        "trainable_parameters": record.trainable_parameters,
    }
    return {name: item for name, item in summary.items() if item is not None}


def mode(options: Mapping[str, Any]) -> str:
    """"online" or "offline": as told, else as the environment says, else online where a key is."""
    asked = str(options.get("mode") or "auto")
    if asked != "auto":
        return asked
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("offline", "dryrun"):
        return "offline"
    return "online" if key_known() else "offline"


def sync_command(config: SweepConfig) -> str | None:
    """What to type to upload offline runs; None where nothing is tracked offline."""
    if config.tracking.name != "wandb" or mode(config.tracking.options) != "offline":
        return None
    return f"wandb sync {shlex.quote(clean(here(config.study_dir)))}/wandb/offline-run-*"


def _session(opened: Opened) -> dict[str, Any]:
    config = opened.config
    options = config.tracking.options
    tags = ("sweep", config.model.name, config.data.format, opened.setup.device.kind)
    return {
        "dir": str(config.study_dir),
        "project": options.get("project") or PROJECT,
        "entity": options.get("entity"),
        "mode": mode(options),
        "group": clean(config.study, limit=NAME_LIMIT),
        "tags": sorted({clean(tag, limit=TAG_LIMIT) for tag in tags}),
    }


def _past(trial: TrialConfig, record: TrialRecord) -> list[list[float]]:
    """Examples and loss at the ticks of earlier attempts."""
    marks = tick_examples(trial.budget, trial.train.batch_size)
    return [list(pair) for pair in zip(marks, record.losses, strict=False)]


def _rows(history: tuple[CurvePoint, ...]) -> Iterator[dict[str, float]]:
    for point in history:
        yield {
            "examples": point.examples,
            "train_loss": point.train_loss,
            "learning_rate": point.learning_rate,
            "grad_norm": point.grad_norm,
            "tokens_per_s": point.tokens_per_s,
        }


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, item in tree.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _column(item)


def _column(item: Any) -> Any:
    """One cell of a table: lists as text, URLs without their passwords."""
    if isinstance(item, (tuple, list)):
        item = "+".join(map(str, item))
    return masked(item) if isinstance(item, str) else item
