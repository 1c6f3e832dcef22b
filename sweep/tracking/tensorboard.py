"""A study in TensorBoard: a folder of events for each trial, with its HParams session.

tensorboard --logdir results/<study>/tensorboard

A trial that goes on after a break is written again from its start: one file, in order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.store import TrialRecord
from sweep.tracking.facts import SAMPLE_COLUMNS, Row, Study, Table, Trial
from sweep.tracking.marks import Marks
from trials.contract import Outcome

FEW = 12  # different values up to which a dimension is a list of them, not an interval
FLUSH_S = 5.0  # between an event and its being readable
PLACE = "disk"
METRICS = {
    "eval_loss": "evaluation loss",
    "eval_accuracy": "exactly right",
    "train_loss": "training loss",
    "peak_memory_bytes": "peak memory (bytes)",
    "seconds": "seconds",
}


class TensorboardTracker:
    """Writes event files below `results/<study>/tensorboard`."""

    stuck = False
    place: str = PLACE
    places: Collection[str] = (PLACE,)

    def __init__(self, study: Study, marks: Marks) -> None:
        self._study, self._folder = study, study.folder / "tensorboard"
        if not marks:  # what lies there is of a deleted study, or half of a trial of this one
            shutil.rmtree(self._folder, ignore_errors=True)

    def begin(self, trial: Trial) -> TrialEvents:
        """The trial's events, from the start."""
        folder = self._folder / f"trial-{trial.number}"
        shutil.rmtree(folder, ignore_errors=True)
        events = TrialEvents(folder)
        events.start(trial)
        return events

    def close(self, records: list[TrialRecord], read: Callable[[int], Trial]) -> None:
        """The experiment as a whole: its dimensions with their values, and the measures."""
        from tensorboard.plugins.hparams import summary_v2 as api

        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        hparams = [
            api.HParam(name, _domain([record.params.get(name) for record in records]))
            for name in self._study.record.dimensions
        ]
        metrics = [api.Metric(tag, display_name=name) for tag, name in METRICS.items()]
        summary = api.hparams_config_pb(
            hparams, metrics, time_created_secs=self._study.record.started_at
        )
        baseline = {0: self._baseline()} if self._study.setup.baseline_samples else {}
        writer = Writer(self._folder)
        writer.add(summary)
        _write_samples(writer, baseline, ("prompt", "reference", "base"))
        writer.close()

    def _baseline(self) -> Table:
        samples = self._study.setup.baseline_samples
        return tuple((s.prompt, s.reference, s.generated) for s in samples)


class TrialEvents:
    """The events of one trial."""

    def __init__(self, folder: Path) -> None:
        self.logged = 0
        self._writer = Writer(folder)

    def start(self, trial: Trial) -> None:
        """The HParams session: the values of this trial."""
        from tensorboard.plugins.hparams import summary_v2 as api

        params = {name: _value(item) for name, item in trial.params().items()}
        name, began = f"trial {trial.number}", trial.record.started_at
        self._writer.add(api.hparams_pb(params, trial_id=name, start_time_secs=began), at=began)

    def log(self, row: Row) -> None:
        """A value of each measure, by examples seen."""
        self.logged = row.examples
        for name, number in row.values.items():
            if name != "tick":
                self._writer.add_scalar(name, number, row.examples, row.at)

    def end(self, trial: Trial) -> bool:
        """The samples and the session's end."""
        _write_samples(self._writer, trial.samples, SAMPLE_COLUMNS)
        self._writer.add_text("outcome", _outcome(trial))
        self._writer.add(_session_end(trial))
        self._writer.close()
        return True


class Writer:
    """An event file of TensorBoard's own writer, by the protocol buffers that it takes."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventFileWriter(str(folder), flush_secs=FLUSH_S)

    def add(self, summary: Any, step: int = 0, at: float | None = None) -> None:
        """A summary at a step, `at` seconds since the epoch (null: now)."""
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time() if at is None else at, step=step)
        event.summary.ParseFromString(summary.SerializeToString())
        self._file.add_event(event)

    def add_scalar(self, tag: str, number: float, step: int, at: float) -> None:
        """One point of a curve."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=number)]), step, at)

    def add_text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A text, which TensorBoard takes for Markdown."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self.add(text_pb(tag, markdown), step)

    def close(self) -> None:
        """Writes all of it down."""
        self._file.close()


def _session_end(trial: Trial) -> Any:
    """The end of an HParams session; TensorBoard's own function for it needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    failed = trial.record.outcome == Outcome.FAILED.value
    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(
        status=status, end_time_secs=trial.record.finished_at or time.time()
    )
    about = metadata.create_summary_metadata(
        plugin_data_pb2.HParamsPluginData(session_end_info=end)
    )
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def _write_samples(writer: Writer, samples: Mapping[int, Table], columns: Sequence[str]) -> None:
    for examples, lines in samples.items():
        for number, line in enumerate(lines):
            texts = zip(columns, line, strict=True)
            parts = (f"**{name}**\n\n{_verbatim(text)}" for name, text in texts)
            writer.add_text(f"sample {number}", "\n\n".join(parts), examples)


def _outcome(trial: Trial) -> str:
    reason = trial.record.reason
    return trial.record.outcome + (f"\n\n{_verbatim(reason)}" if reason else "")


def _verbatim(text: str) -> str:
    """A text as Markdown that shows it as it is: HTML, pictures and all."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    "


def _value(item: Any) -> Any:
    return item if isinstance(item, (bool, int, float, str)) else str(item)


def _domain(values: Sequence[Any]) -> Any:
    """What the HParams view offers to choose from; null where there is nothing yet."""
    from tensorboard.plugins.hparams import summary_v2 as api

    known = [value for value in values if value is not None]
    plain = {_value(value) for value in known}
    if not plain:
        return None
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in plain):
        if len(plain) > FEW:
            return api.RealInterval(float(min(plain)), float(max(plain)))
        return api.Discrete(sorted(float(v) for v in plain))
    return api.Discrete(sorted(plain, key=str), dtype=None if _alike(plain) else str)


def _alike(values: Collection[Any]) -> bool:
    return len({type(value) for value in values}) == 1
