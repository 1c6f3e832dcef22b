"""The study's folder: configuration, trials, one CSV row each, the best adapters, the recipe.

Every file is written aside and then renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweep.observers import Closed, Opened
from sweep.observers.tally import Tally
from sweep.results import leaderboard, recipe
from sweep.results.recipe import replace
from sweep.results.trials_csv import TrialsCsv
from sweep.store import TrialRecord
from trials.contract import Report, TrialConfig, TrialResult, Verdict, from_json, to_json


class Files:
    """Keeps `results/<study>/` and `results/recipe/<study>.yaml` up to date."""

    _open = False

    def progress(self, worker: str, what: str, done: int, total: int) -> None:
        """Nothing is written before the study is open."""

    def opened(self, opened: Opened) -> None:
        """The folder, with what the sweep is and what the worker found."""
        self._config, self._tally, self._open = opened.config, Tally(opened), True
        self._folder = opened.config.study_dir
        self._csv = TrialsCsv([d.name for d in opened.config.space.dimensions])
        for record in opened.past:
            self._csv.put(record)
        (self._folder / "trials").mkdir(parents=True, exist_ok=True)
        replace(self._folder / "config.yaml", opened.config.resolved)
        replace(self._folder / "setup.json", to_json(opened.setup, indent=2) + "\n")

    def started(self, trial: TrialConfig, params: Mapping[str, Any], worker: str) -> None:
        """All that reproduces the trial."""
        self._tally.started(trial, params, worker)
        file = self._trial_file(trial.number)
        file.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed meanwhile
        replace(file, to_json(trial, indent=2) + "\n")

    def reported(self, report: Report, verdict: Verdict) -> None:
        """Remembered for the row."""
        self._tally.reported(report, verdict)

    def finished(self, trial: TrialConfig, result: TrialResult) -> None:
        """The row, the best adapters, and the recipe if this is the best trial now."""
        record = self._tally.finished(trial, result)
        self._csv.put(record)
        if record.adapter:
            self._drop_adapters()
        # The whole table each time, so that a reader never sees half of one: at 2,000 trials
        # of many seconds each, the few milliseconds that this takes are nothing.
        replace(self._folder / "trials.csv", self._csv.text())
        if self._tally.best is record:
            recipe.write(self._config, trial, record.eval_loss)

    def closed(self, closed: Closed) -> None:
        """The table once more, from the database's own records."""
        if not self._open:
            return
        kept = {r.number: r.adapter for r in self._tally.records.values()}
        for record in closed.records:
            adapter = kept.get(record.number, record.adapter)
            self._csv.put(dataclasses.replace(record, adapter=adapter))
        replace(self._folder / "trials.csv", self._csv.text())
        self._recipe_of(leaderboard.best(closed.records))

    def _recipe_of(self, best: TrialRecord | None) -> None:
        """An earlier run may have ended between a trial's commit and its recipe."""
        if best is None or not self._trial_file(best.number).is_file():
            return
        text = self._trial_file(best.number).read_text(encoding="utf-8")
        recipe.write(self._config, from_json(TrialConfig, text), best.eval_loss)

    def _trial_file(self, number: int) -> Path:
        return self._folder / "trials" / f"{number}.json"

    def _drop_adapters(self) -> None:
        """Deletes the adapters no longer among the best; only ours, in their own folder."""
        records = self._tally.records
        held = [r for r in records.values() if r.adapter and r.outcome != "running"]
        for record in leaderboard.ranked(held)[self._config.keep_adapters :]:
            folder = Path(record.adapter or "")
            if folder.resolve().parent == (self._folder / "adapters").resolve():
                shutil.rmtree(folder, ignore_errors=True)
            records[record.number] = dataclasses.replace(record, adapter=None)
            self._csv.put(records[record.number])
