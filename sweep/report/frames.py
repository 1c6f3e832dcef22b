"""A study as data frames: what the report's figures and words, and notebooks, are made of.

`read_study` reads the database once, also while a sweep writes to it. The trials are the records
that the leaderboard and the CSV are made of, so that their numbers agree by construction.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sweep.report import rows
from sweep.report.dimensions import Axis, axes
from sweep.results import leaderboard
from sweep.results.trials_csv import MEASURES
from sweep.store import Store, StudyRecord, TrialRecord
from sweep.store.runs import Used, used_by
from trials.contract import CurvePoint, Sample, Setup

if TYPE_CHECKING:
    import pandas as pd

    from sweep.report.importance import Importances

BASE = -1  # the untouched base's trial number among the samples
COPY = "copy"  # the worker of a trial that has another one's configuration and took its result


@dataclass(frozen=True, kw_only=True)
class StudyFrames:
    """One study. `trials`, `curves`, `samples` and `spans` are data frames, made when asked for.

    `facts` is the whole configuration, leaf -> value as one would type it; `attributes` are
    Optuna's (sampler, pruner, command). `setup` is null where an older version wrote it.
    """

    study: StudyRecord
    records: Sequence[TrialRecord]
    setup: Setup | None
    axes: Sequence[Axis]
    facts: Mapping[str, str]
    attributes: Mapping[str, Any]
    used: Used  # by all runs
    storage: str
    alive: bool  # a driver works on it now
    at: float  # seconds since the epoch, when it was read
    ticks: Sequence[rows.Tick] = field(repr=False)
    attempts: Sequence[rows.Attempt] = field(repr=False)
    best_steps: Sequence[CurvePoint] = field(repr=False)  # the best trial's training curve
    baseline_samples: Sequence[Sample] = field(repr=False)
    samples_by_tick: Mapping[tuple[int, int], Sequence[Sample]] = field(repr=False)

    @cached_property
    def best(self) -> TrialRecord | None:
        """The complete trial with the lowest loss, as the leaderboard has it."""
        return leaderboard.best(self.records)

    @cached_property
    def ranked(self) -> list[TrialRecord]:
        """All trials in the order of the leaderboard."""
        return leaderboard.ranked(self.records)

    @cached_property
    def own(self) -> list[TrialRecord]:
        """The trials that trained themselves: copies of others say nothing new."""
        return [record for record in self.records if record.worker != COPY]

    @cached_property
    def weights(self) -> Importances:
        """How much each dimension mattered over all trials."""
        from sweep.report.importance import importances

        return importances(self)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row for each trial: the columns of `trials.csv`, by number."""
        import pandas as pd

        names = [*MEASURES[:3], *(axis.name for axis in self.axes), *MEASURES[3:]]
        table = [{**dict(r.params), **_measures(r)} for r in self.records]
        return pd.DataFrame(table, columns=names).set_index("number", drop=False)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row for each trial and tick: evaluation loss, examples and seconds so far."""
        import pandas as pd

        names = [entry.name for entry in dataclasses.fields(rows.Tick)]
        return pd.DataFrame([dataclasses.asdict(tick) for tick in self.ticks], columns=names)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row for each trial, tick and prompt; the untouched base is trial -1 at tick 0."""
        import pandas as pd

        found = {(BASE, 0): self.baseline_samples, **self.samples_by_tick}
        table = [
            {"trial": number, "tick": tick, **dataclasses.asdict(sample)}
            for (number, tick), samples in found.items()
            for sample in samples
        ]
        return pd.DataFrame(table, columns=["trial", "tick", "prompt", "reference", "generated"])

    @cached_property
    def spans(self) -> pd.DataFrame:
        """One row for each attempt at a trial: worker, slot, begin and end in epoch seconds."""
        import pandas as pd

        table = [dataclasses.asdict(attempt) for attempt in self.attempts]
        names = [entry.name for entry in dataclasses.fields(rows.Attempt)]
        return pd.DataFrame(table, columns=names)


def read_study(store: Store, study: StudyRecord, storage: str = "") -> StudyFrames:
    """Everything the database has on one study. `storage` is its URL."""
    facts, attributes = rows.optuna_says(store, study)
    alive, now = store.beaten_at(study.study) is not None, time.time()
    told: dict[str, Any] = {
        "ticks": rows.ticks(store, study.uuid),
        "attempts": rows.attempts(store, study.uuid, now=now if alive else None),
        "samples_by_tick": rows.samples(store, study.uuid),
    }
    records = store.trials(study.uuid)  # last: each trial that is told of above is among them
    if not alive:
        records = leaderboard.left_behind(records)
    best = leaderboard.best(records)
    return StudyFrames(
        study=study,
        records=records,
        setup=_setup(store, study),
        axes=axes(study.dimensions, facts, records),
        facts={name: text for name, (_, text) in facts.items()},
        attributes=attributes,
        used=used_by(store.runs(study.uuid), None, study.seconds),
        storage=storage,
        alive=alive,
        at=now,
        baseline_samples=store.baseline_samples(study.uuid),
        best_steps=store.curves(study.uuid, best.number) if best else (),
        **told,
    )


def steps(store: Store, uuid: str) -> pd.DataFrame:
    """One row for each trial and optimizer step: what training itself showed."""
    import pandas as pd

    names = ["trial", *(entry.name for entry in dataclasses.fields(CurvePoint))]
    table = [(number, *point) for number, point in rows.steps(store, uuid)]
    return pd.DataFrame(table, columns=names)


def _setup(store: Store, study: StudyRecord) -> Setup | None:
    try:
        return store.setup(study.uuid)
    except (ValueError, TypeError):
        return None


def _measures(record: TrialRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in MEASURES}
