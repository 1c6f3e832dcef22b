"""The process of a tracker: told which trials changed, it shows them from our tables.

python -m sweep.tracking.process < events      (started by `sweep.tracking`)

It ends when its input does, once it has written what arrived; ORPHAN_S after its driver's death at
the latest. Trials of earlier runs that it lacks are written while there is nothing else to do.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from sweep.store import Store, StudyRecord
from sweep.tracking import NAMES
from sweep.tracking.facts import Study
from sweep.tracking.follow import Following, Tracker
from sweep.tracking.marks import Marks

ORPHAN_S = 20.0  # to write down what has arrived after the driver's death
QUEUE_LIMIT = 500  # events read ahead; the others wait in the driver
NICENESS = 5  # training goes first
Answer = Callable[[Mapping[str, Any]], None]
Events = queue.Queue[dict[str, Any] | None]


def main() -> int:
    """Reads events until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to end
    events, answers = _private_streams()
    os.nice(NICENESS)
    waiting: Events = queue.Queue(QUEUE_LIMIT)
    threading.Thread(target=_read, args=(events, waiting), daemon=True).start()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    opening = waiting.get()
    if opening is not None and follow(opening, waiting, lambda answer: _say(answers, answer)):
        sys.stderr.flush()
        os._exit(0)  # the client's own end would wait for its server
    return 0


def follow(opening: Mapping[str, Any], waiting: Events, answer: Answer) -> bool:
    """Follows the study of `opening` until the events end; whether the tracker's server hangs."""
    store = Store(opening["storage"])
    try:
        following = _following(store, opening, answer)
        if _consume(following, waiting):
            following.close()
        else:
            following.leave()
        return following.tracker.stuck
    finally:
        store.close()


def _consume(following: Following, waiting: Events) -> bool:
    """Shows what comes until the end; whether the driver said that it is the end."""
    while True:
        try:
            event = waiting.get(block=not following.behind)
        except queue.Empty:
            following.catch_up()
            continue
        if event is None or "closed" in event:
            return event is not None
        following.trial(event["trial"])


def _following(store: Store, opening: Mapping[str, Any], answer: Answer) -> Following:
    record = next(r for r in store.studies() if r.uuid == opening["uuid"])
    study = _study(store, record, Path(opening["folder"]), opening["options"])
    name = opening["tracker"]
    marks = Marks(study.folder / name / "logged.jsonl", record.uuid)
    said = NAMES[name]
    return Following(
        store, study, _tracker(name, study, marks, answer), marks,
        note=lambda text: answer({"note": f"{said}: {text}"}),
    )  # fmt: skip


def _study(store: Store, record: StudyRecord, folder: Path, options: Mapping[str, Any]) -> Study:
    return Study(record=record, setup=store.setup(record.uuid), folder=folder, options=options)


def _tracker(name: str, study: Study, marks: Marks, answer: Answer) -> Tracker:
    if name == "wandb":
        from sweep.tracking.wandb.tracker import WandbTracker

        return WandbTracker(study, marks, answer)
    from sweep.tracking.tensorboard import TensorboardTracker

    return TensorboardTracker(study, marks)


def _say(answers: IO[str], answer: Mapping[str, Any]) -> None:
    try:
        print(json.dumps(answer), file=answers, flush=True)
    except OSError:
        pass  # the driver is gone


def _read(source: IO[bytes], waiting: Events) -> None:
    for line in source:
        try:
            event = json.loads(line)
        except ValueError:
            break  # half a line: the driver died while it wrote
        waiting.put(event)
    waiting.put(None)


def _end_with(driver: int) -> None:
    """Ends this process some time after its driver, whatever it is waiting for."""
    while os.getppid() == driver:
        time.sleep(1.0)
    time.sleep(ORPHAN_S)
    os._exit(1)


def _private_streams() -> tuple[IO[bytes], IO[str]]:
    """Events and answers, out of reach of other code, which reads nothing and prints to the log."""
    events, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return events, answers


if __name__ == "__main__":
    sys.exit(main())
