"""W&B's client, as far as this project uses it: one run opened, filled and ended."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweep.results.wording import clean
from sweep.secrets import masked
from sweep.tracking.facts import SAMPLE_COLUMNS, Row, Study, Table
from sweep.tracking.wandb import PROJECT, run_id

INIT_TIMEOUT_S = 15.0  # for the server to answer; below what the driver waits for at the end
FINISH_TIMEOUT_S = 15.0  # for a run's upload; the rest stays on disk to be synced
LEAVE_S = 2.0  # for a healthy client to end its process; another is left to itself
NAME_LIMIT = 120  # characters; the service's limit is 128
TAG_LIMIT = 64
STATE = "sweep.json"  # in a run's folder, once it has ended: how far it went
Mode = Literal["online", "offline"]


@dataclass(slots=True)
class LiveRun:
    """A run that is open. What earlier parts of it hold is not to be written again."""

    run: Any
    logged: int  # examples up to which the server has, or will have, its rows
    sampled: bool  # whether it has its samples

    def log(self, row: Row) -> None:
        """One row of history."""
        values = {"examples": row.examples, **row.values, "_timestamp": row.at}
        self.run.log(values, step=row.step, commit=True)
        self.logged = row.examples

    def log_samples(
        self, samples: Mapping[int, Table], step: int, columns: Sequence[str] = SAMPLE_COLUMNS
    ) -> None:
        """A W&B Table for each time that samples were written, by examples, from a step on."""
        import wandb

        if self.sampled:
            return
        for examples, lines in samples.items():
            table = wandb.Table(columns=list(columns), data=[list(line) for line in lines])
            self.run.log({"examples": examples, "samples": table}, step=step, commit=True)
            step += 1
        self.sampled = bool(samples)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """The run's columns."""
        self.run.summary.update(dict(summary))

    def finish(self, failed: bool = False) -> bool:
        """Ends it; False if it was not uploaded in time."""
        online, began = not self.run.offline, time.monotonic()
        state = Path(self.run.dir).parent / STATE
        self.run.finish(exit_code=int(failed))
        arrived = not online or time.monotonic() - began < FINISH_TIMEOUT_S
        if arrived:
            state.write_text(json.dumps({"logged": self.logged, "sampled": self.sampled}))
        return arrived


def open_run(
    study: Study, number: int | str, mode: Mode, config: Mapping[str, Any], job_type: str = "trial"
) -> LiveRun:
    """A run, gone on with if the server has a part of it. Raises what the client raises."""
    import wandb

    if mode == "offline":
        discard(study, number)
    (study.folder / "wandb").mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        allow_val_change=True,
        config=dict(config),
        dir=str(study.folder),
        entity=study.options.get("entity"),
        group=clean(study.record.study, limit=NAME_LIMIT),
        id=run_id(study.record.uuid, number),
        job_type=job_type,
        mode=mode,
        name=clean(f"{study.record.study}-{number}", limit=NAME_LIMIT),
        project=study.options.get("project") or PROJECT,
        reinit="create_new",
        resume="allow" if mode == "online" else None,
        settings=_settings(),
        tags=_tags(study),
    )
    run.define_metric("examples")
    run.define_metric("*", step_metric="examples")
    if mode == "online":  # the server says
        return LiveRun(run, int(run.summary.get("examples") or 0), "samples" in run.summary.keys())
    return LiveRun(run, *_handed_over(study, number))


def discard(study: Study, number: int | str, *, synced: bool = False) -> None:
    """Deletes offline parts of a run that were not synced (or all): they are written again."""
    for folder in _folders(study, number):
        if _is_offline(folder) and (synced or not _is_synced(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _handed_over(study: Study, number: int | str) -> tuple[int, bool]:
    """What of a run the server has, as far as this machine knows: examples, samples.

    `wandb sync` appends to what is there, so a part that it has seen is not written again.
    """
    logged, sampled = 0, False
    for folder in _folders(study, number):
        state = folder / STATE
        if state.is_file() and (_is_synced(folder) or not _is_offline(folder)):
            found = json.loads(state.read_text())
            logged, sampled = max(logged, found["logged"]), sampled or found["sampled"]
    return logged, sampled


def _folders(study: Study, number: int | str) -> list[Path]:
    return list((study.folder / "wandb").glob(f"*run-*-{run_id(study.record.uuid, number)}"))


def _is_offline(folder: Path) -> bool:
    return folder.name.startswith("offline-")


def _is_synced(folder: Path) -> bool:
    return any(folder.glob("*.wandb.synced"))


def leave_service() -> None:
    """Has the client start a new process of its own for the next run.

    An answer that makes no sense may have ended the old one, and a silent server keeps it waiting.
    """
    import wandb

    leaving = threading.Thread(target=_teardown, args=(wandb.teardown,), daemon=True)
    leaving.start()
    leaving.join(LEAVE_S)


def _teardown(teardown: Callable[[], None]) -> None:
    with suppress(Exception):
        teardown()


def quiet(study: Study, mode: Mode) -> None:
    """The client's own manners, set before it is imported. Offline its telemetry is silent too."""
    os.environ.update(
        WANDB_CONSOLE="off", WANDB_ERROR_REPORTING="false", WANDB_MODE=mode, WANDB_SILENT="true"
    )
    if notes := os.environ.get("WANDB_NOTES"):  # the client would write them into every run
        os.environ["WANDB_NOTES"] = masked(notes)
    # Small files of Artifacts, which an offline run needs until it is synced.
    os.environ.setdefault("WANDB_DATA_DIR", str(study.folder / "wandb" / "data"))


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        finish_timeout=FINISH_TIMEOUT_S,
        init_timeout=INIT_TIMEOUT_S,
        save_code=False,
        silent=True,
        symlink=False,
        use_dot_wandb=False,
        x_disable_meta=True,  # the command line and what is in it stays here
        x_disable_stats=True,  # of the driver's machine: the wrong one
        x_save_requirements=False,
    )


def _tags(study: Study) -> Sequence[str]:
    setup = study.setup
    tags = ("sweep", setup.model.name, setup.data.format, setup.device.kind)
    return sorted({clean(Path(tag).name, limit=TAG_LIMIT) for tag in tags})
