"""A study in a notebook: data frames, and the report's figures as methods.

    from sweep import load_study
    study = load_study("lora_rank")
    study.trials.sort_values("eval_loss")
    study.learning_curves()
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.report import figures
from sweep.report.answer import Answer, answer
from sweep.report.frames import steps
from sweep.report.studies import REPORT, read_studies
from sweep.results import wording
from sweep.store import Store

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class LoadedStudy:
    """One study as it was when it was loaded; `refresh` reads it again.

    A figure for which there are too few trials raises `sweep.report.figures.Missing` and says why.
    """

    def __init__(self, name: str, storage: str) -> None:
        self.name, self.storage = name, storage
        self.frames = read_studies([name], storage)[0]

    def refresh(self) -> LoadedStudy:
        """The study as it is now."""
        return LoadedStudy(self.name, self.storage)

    @property
    def trials(self) -> pd.DataFrame:
        """One row for each trial: the columns of `trials.csv`."""
        return self.frames.trials

    @property
    def curves(self) -> pd.DataFrame:
        """One row for each trial and tick: evaluation loss, accuracy, examples, seconds."""
        return self.frames.curves

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row for each trial and optimizer step: training loss, learning rate, gradient norm.

        Read when asked for: many trials have many steps.
        """
        store = Store(self.storage)
        try:
            return steps(store, self.frames.study.uuid)
        finally:
            store.close()

    @property
    def samples(self) -> pd.DataFrame:
        """One row for each trial, tick and prompt; the untouched base is trial -1."""
        return self.frames.samples

    @property
    def importances(self) -> pd.DataFrame:
        """One row for each dimension: share, its range, and how often chance shows as much."""
        import dataclasses

        import pandas as pd

        table = [dataclasses.asdict(entry) for entry in self.frames.weights.dimensions]
        names = ["name", "share", "low", "high", "chance", "p", "decides"]
        return pd.DataFrame(table, columns=names)

    @property
    def answer(self) -> Answer:
        """The answer in words, as at the top of the report."""
        return answer(self.frames)

    def importance(self) -> go.Figure:
        """What mattered, how surely, and what chance alone gives."""
        return figures.importance(self.frames)

    def parallel_coordinates(self) -> go.Figure:
        """All knobs and the loss, brushable."""
        return figures.parallel_coordinates(self.frames)

    def slices(self) -> go.Figure:
        """The loss along each knob."""
        return figures.slices(self.frames)

    def contour(self) -> go.Figure:
        """The loss over the two knobs that matter most."""
        return figures.contour(self.frames)

    def learning_curves(self) -> go.Figure:
        """Every trial's evaluation loss, where the pruner decided and why."""
        return figures.learning_curves(self.frames)

    def cost(self) -> go.Figure:
        """Loss against time, memory and trainable parameters, with the Pareto front."""
        return figures.cost(self.frames)

    def timeline(self) -> go.Figure:
        """Which worker and slot trained what, and when."""
        return figures.timeline(self.frames)

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the report; without a path where the sweep writes it."""
        from sweep.report.page import write_report

        study = self.frames.study
        usual = Path(study.results_dir) / study.study / REPORT
        return write_report(self.frames, Path(path or usual))

    def __repr__(self) -> str:
        frames = self.frames
        best = frames.best
        found = f"best: trial {best.number}, loss {wording.loss(best.eval_loss)}, " \
                f"{wording.params(best.params)}" if best else "no complete trial"  # fmt: skip
        return (
            f"{wording.clean(self.name)}: {wording.plural(len(frames.records), 'trial')}; {found}\n"
            f"data frames: .trials .curves .steps .samples .importances\n"
            f"figures: {' '.join(f'.{name}()' for name in figures.FIGURES)}\n"
            "words: .answer; file: .report(); read again: .refresh()"
        )


def load_study(name: str, storage: str | None = None) -> LoadedStudy:
    """Loads a study, also while it runs.

    `storage` is a database URL, a database file, or a results folder; by default `results` in the
    working directory. Raises `InputError`, which names the known studies.
    """
    return LoadedStudy(name, _url(storage or "results"))


def _url(storage: str) -> str:
    if "://" in storage:
        return storage
    path = Path(storage)
    return f"sqlite:///{path / 'sweep.db' if path.is_dir() or not path.suffix else path}"
