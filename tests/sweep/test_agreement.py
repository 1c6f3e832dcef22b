"""One sweep, read where its users look: SQLite, CSV, report, dashboard and W&B tell the same."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sweeping
import tracked
from dashing import served
from reported import Cells, spec

from sweep import load_study
from sweep.config import SweepConfig
from sweep.observers import Observers
from sweep.observers.dashboard import Dashboard
from sweep.observers.files import Files
from sweep.observers.report import ReportPage
from sweep.tracking.observer import Tracking

DIMENSIONS = ("lora.r", "train.learning_rate")
FAULTS = "engine.faults=[oom@3:2,nan@4:2,exception@5:1]"
OUTCOMES = {"complete", "pruned", "infeasible", "diverged", "failed"}


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a source says of one trial; its losses are the finite ones by tick."""

    outcome: str
    reason: str | None
    loss: float | None
    losses: dict[int, float]
    params: tuple[float, ...]  # as in DIMENSIONS


Trials = dict[int, Told]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A sweep with all its observers, W&B among them offline, that ended as any trial can."""
    made = sweeping.sweep_config(
        tmp_path_factory.mktemp("agreement"), "n_trials=14", "samples=2", *tracked.OFFLINE,
        "tracking.close_timeout_s=300", FAULTS,
    )  # fmt: skip
    notes: list[str] = []
    seen = [Files(), ReportPage(notes.append), Dashboard(notes.append, 300.0)]
    observers = [*seen, Tracking("wandb", notes.append)]
    sweeping.run_inline(made, Observers(observers, note=notes.append))
    assert notes == [f"report    {made.study_dir / 'report.html'}"]
    return made


@pytest.fixture(scope="module")
def stored(config: SweepConfig) -> Trials:
    """What the tables have, by plain SQL."""
    db = sqlite3.connect(config.results_dir / "sweep.db")
    curves: dict[int, dict[int, float]] = {}
    for number, tick, loss in db.execute("select number, tick, eval_loss from sweep_ticks"):
        curves.setdefault(number, {})[tick] = math.nan if loss is None else loss
    rows = db.execute("select number, outcome, reason, eval_loss, params from sweep_trials")
    found = {
        number: Told(
            outcome=outcome, reason=reason, loss=loss, losses=_finite(curves.get(number, {})),
            params=tuple(float(json.loads(params)[name]) for name in DIMENSIONS),
        )
        for number, outcome, reason, loss, params in rows
    }  # fmt: skip
    db.close()
    assert {trial.outcome for trial in found.values()} == OUTCOMES and len(found) == 15
    return found


def test_the_csv_agrees(config: SweepConfig, stored: Trials) -> None:
    rows = _csv(config)
    assert len(rows) == len(stored)
    for row in rows:
        trial = stored[int(row["number"])]
        assert (row["outcome"], row["reason"] or None) == (trial.outcome, trial.reason)
        assert _number(row["eval_loss"]) == trial.loss
        assert tuple(float(row[name]) for name in DIMENSIONS) == trial.params
        assert int(row["ticks"]) == max(trial.losses, default=0) + (trial.outcome == "diverged")


def test_a_notebook_agrees(config: SweepConfig, stored: Trials) -> None:
    study = load_study("test", str(config.results_dir))
    for row in study.trials.to_dict("records"):
        trial = stored[row["number"]]
        reason = row["reason"] if isinstance(row["reason"], str) else None  # pandas has NaN there
        assert (row["outcome"], reason) == (trial.outcome, trial.reason)
        assert _known(row["eval_loss"]) == trial.loss
        mine = study.curves[study.curves.trial == row["number"]]
        assert _finite(dict(zip(mine.tick, mine.eval_loss, strict=True))) == trial.losses
    assert len(study.trials) == len(stored)


def test_the_report_agrees(config: SweepConfig, stored: Trials) -> None:
    page = (config.study_dir / "report.html").read_text()
    rows = [row for row in Cells(page).rows if row]
    assert len(rows) == len(stored)
    for row in rows:
        trial = stored[int(row[1])]
        assert _number(row[2].strip("–")) == trial.loss
        assert tuple(float(cell) for cell in row[6:8]) == trial.params
        assert row[10] == trial.outcome and row[11] in (trial.reason or "")
    curves = _drawn(spec(page, "learning_curves"))
    assert curves == {n: _short(t.losses) for n, t in stored.items() if t.losses}
    counts = Counter(trial.outcome for trial in stored.values())
    for outcome in OUTCOMES:
        assert f"{counts[outcome]} {outcome}" in page.partition("<nav")[0]


def test_the_dashboard_agrees(config: SweepConfig, stored: Trials) -> None:
    with served(config) as client:
        study = client.study("test")
    assert len(study["trials"]) == len(stored)
    for shown in study["trials"]:
        trial = stored[shown["number"]]
        said = {entry["key"]: entry["value"] for entry in shown["user_attrs"]}
        assert (said["outcome"], said.get("reason")) == (trial.outcome, trial.reason)
        assert {s["step"]: s["value"] for s in shown["intermediate_values"]} == trial.losses
        assert tuple(float(p["param_external_value"]) for p in shown["params"]) == trial.params
        if trial.outcome in ("complete", "pruned"):
            assert shown["values"] == [trial.loss]


def test_wandb_agrees(config: SweepConfig, stored: Trials) -> None:
    runs = tracked.by_number(config)
    runs.pop("baseline")
    assert set(runs) == set(stored)
    for number, trial in stored.items():
        run = runs[number]
        assert (run.summary["outcome"], run.summary.get("reason")) == (trial.outcome, trial.reason)
        assert run.summary.get("eval_loss") == trial.loss
        losses = {row["tick"]: row["eval_loss"] for row in run.history if "eval_loss" in row}
        assert losses == trial.losses
        params = (run.config["lora"]["r"], run.config["train"]["learning_rate"])
        assert params == trial.params


@pytest.mark.parametrize("source", ["csv", "notebook", "report", "dashboard", "wandb"])
def test_the_best_is_the_same_everywhere(
    config: SweepConfig, stored: Trials, source: str
) -> None:
    complete = {n: t.loss or 0.0 for n, t in stored.items() if t.outcome == "complete"}
    assert len(complete) > 1
    assert BEST[source](config) == min(complete, key=lambda number: complete[number])


def _best_of_the_csv(config: SweepConfig) -> int:
    rows = _csv(config)
    complete = [row for row in rows if row["outcome"] == "complete"]
    return int(min(complete, key=lambda row: float(row["eval_loss"]))["number"])


def _best_of_the_notebook(config: SweepConfig) -> int:
    return int(load_study("test", str(config.results_dir)).answer.headline.split()[1])


def _best_of_the_report(config: SweepConfig) -> int:
    page = (config.study_dir / "report.html").read_text()
    first = next(row for row in Cells(page).rows if row)
    assert f"Trial {first[1]} is the best" in page
    return int(first[1])


def _best_of_the_dashboard(config: SweepConfig) -> int:
    with served(config) as client:
        study = client.study("test")
    [best] = study["best_trials"]
    assert f"**Best: trial {best['number']}**" in study["note"]["body"]
    return int(best["number"])


def _best_of_wandb(config: SweepConfig) -> int:
    runs = {n: run.summary for n, run in tracked.by_number(config).items() if n != "baseline"}
    complete = {n: s["eval_loss"] for n, s in runs.items() if s["outcome"] == "complete"}
    return int(min(complete, key=lambda number: complete[number]))


BEST: dict[str, Callable[[SweepConfig], int]] = {
    "csv": _best_of_the_csv,
    "notebook": _best_of_the_notebook,
    "report": _best_of_the_report,
    "dashboard": _best_of_the_dashboard,
    "wandb": _best_of_wandb,
}


def _csv(config: SweepConfig) -> list[dict[str, str]]:
    text = (config.study_dir / "trials.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def _drawn(figure: dict[str, Any]) -> dict[int, dict[int, float]]:
    """The curves of the figure, each without the untouched base at its start."""
    found: dict[int, dict[int, float]] = {}
    numbered = [trace for trace in figure["data"] if "customdata" in trace]  # all evaluations
    for trace in numbered:
        for number, tick, loss in zip(trace["customdata"], trace["x"], trace["y"], strict=True):
            if number is not None and tick and loss is not None:
                found.setdefault(number, {})[tick] = loss
    return found


def _finite(losses: dict[int, float]) -> dict[int, float]:
    return {tick: loss for tick, loss in losses.items() if math.isfinite(loss)}


def _short(losses: dict[int, float]) -> dict[int, float]:
    return {tick: float(f"{loss:.6g}") for tick, loss in losses.items()}


def _number(text: str) -> float | None:
    return float(text) if text else None


def _known(loss: float | None) -> float | None:
    return None if loss is None or math.isnan(loss) else loss
