"""Brings what our tables hold of a study to Optuna's dashboard. Everything may be done twice."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from sweep.config import SweepConfig
from sweep.dashboard import files
from sweep.dashboard.attributes import METRIC_NAMES, Attributes
from sweep.dashboard.graphs import DRAWN, save_graphs
from sweep.dashboard.notes import study_note, trial_note
from sweep.dashboard.picture import learning_curve
from sweep.results import leaderboard
from sweep.store import Store, StudyRecord, TrialRecord
from trials.contract import Sample, Setup, TrialConfig, tick_examples

CURVE, SAMPLES = "learning_curve.svg", "samples.jsonl"
UNFINISHED = ("running", "stopped")  # outcomes of trials that go on


class Pages:
    """Notes, artifacts and graphs of one study; for the driver's process, in one thread."""

    def __init__(self, config: SweepConfig, setup: Setup, uuid: str) -> None:
        self._config, self._setup, self._uuid = config, setup, uuid
        self._folder = config.results_dir / files.FOLDER
        self._store = Store(config.storage)
        self._attributes = Attributes(config.storage, config.study)
        self._adapters: dict[int, Path] = {}  # shown with their trials
        self._best: float | None = None
        self._news = self._attributes.get(DRAWN) is None  # whether graphs are due
        self._attributes.set(METRIC_NAMES, ["eval_loss"])

    def catch_up(self) -> None:
        """The study, and every ended trial that an earlier run left without its page."""
        records = self._store.trials(self._uuid)
        for record in records:
            if record.outcome not in UNFINISHED and not self._has_page(record.number):
                self._show(record)
            elif record.adapter:
                self._adapters[record.number] = Path(record.adapter)
        self._drop_adapters()
        self._show_study(records)

    def trial(self, number: int) -> None:
        """A trial that has ended; the study's note if it is the best now."""
        [record] = self._store.trials(self._uuid, number)
        if record.outcome in UNFINISHED:
            return
        if not self._has_page(number):  # `catch_up` may have come first
            self._show(record)
        self._drop_adapters()
        loss = record.eval_loss
        if leaderboard.finished_well(record) and (self._best is None or (loss or 0) < self._best):
            self._show_study(self._store.trials(self._uuid))

    def study(self) -> None:
        """The study's note and graphs as things now stand."""
        self._drop_adapters()
        self._show_study(self._store.trials(self._uuid))
        if self._news:
            save_graphs(self._store, self._row(), self._attributes.storage)

    def close(self) -> None:
        """Gives the connections back."""
        self._attributes.close()
        self._store.close()

    def _has_page(self, number: int) -> bool:
        """The note is written last, so where there is one, the rest is there."""
        trial_id = self._attributes.trial_id(number)
        return self._attributes.get(f"dashboard:{trial_id}:note_ver") is not None

    def _show(self, record: TrialRecord) -> None:
        self._news = True
        trial = self._store.trial_config(self._uuid, record.number)
        by_tick = self._store.samples(self._uuid, record.number)
        base = self._store.baseline_samples(self._uuid)
        self._picture(record, trial)
        self._samples(record, by_tick, base)
        if record.adapter:
            self._adapter(record.number, Path(record.adapter))
        last = next(reversed(by_tick.values()), ())
        note = trial_note(self._row(), record, trial, last, base)
        self._attributes.note(self._attributes.trial_id(record.number), note)

    def _show_study(self, records: Sequence[TrialRecord]) -> None:
        best = leaderboard.best(records)
        self._best = best.eval_loss if best else None
        config = self._config
        note = study_note(config, self._setup, self._row(), records, config.storage)
        self._attributes.note(None, note)

    def _row(self) -> StudyRecord:
        return next(row for row in self._store.studies() if row.uuid == self._uuid)

    def _picture(self, record: TrialRecord, trial: TrialConfig) -> None:
        marks = tick_examples(trial.budget, trial.train.batch_size)
        train = self._store.curves(self._uuid, record.number)
        baseline = self._setup.baseline_loss
        self._text(record.number, CURVE, learning_curve(record, marks, train, baseline))

    def _samples(
        self, record: TrialRecord, by_tick: dict[int, tuple[Sample, ...]], base: Sequence[Sample]
    ) -> None:
        written = [(tick, sample) for tick, of in by_tick.items() for sample in of]
        if written:
            self._text(record.number, SAMPLES, files.sample_lines(written, base))

    def _text(self, number: int, name: str, text: str) -> None:
        identity = files.artifact_id(self._uuid, number, name)
        files.write(self._folder, identity, text)
        trial_id = self._attributes.trial_id(number)
        self._attributes.artifact(trial_id, identity, files.meta(identity, name))

    def _adapter(self, number: int, folder: Path) -> None:
        self._adapters[number] = folder
        trial_id = self._attributes.trial_id(number)
        for name in files.ADAPTER:
            identity = files.artifact_id(self._uuid, number, name)
            with contextlib.suppress(FileNotFoundError):  # it is no longer among the best
                files.link(self._folder, identity, folder / name)
                self._attributes.artifact(trial_id, identity, files.meta(identity, name))

    def _drop_adapters(self) -> None:
        """Takes away the adapters that are no longer kept: first the name, then the file."""
        for number, folder in list(self._adapters.items()):
            if folder.is_dir():
                continue
            for name in files.ADAPTER:
                identity = files.artifact_id(self._uuid, number, name)
                self._attributes.artifact(self._attributes.trial_id(number), identity, None)
                (self._folder / identity).unlink(missing_ok=True)
            del self._adapters[number]
