"""Learning curves of all trials: evaluation loss by tick, where the pruner decided and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sweep.report.dimensions import decades
from sweep.report.figures.style import (
    ACCENT,
    AMBER,
    COLOURS,
    QUIET,
    Missing,
    about,
    canvas,
    ceiling,
    finite,
    padded,
    safe,
    scatter,
    short,
    wrapped,
)
from sweep.report.frames import StudyFrames
from sweep.results import wording
from sweep.store import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

MANY = 60  # curves, from which each is drawn fainter
MOST_STEPS = 300  # points drawn of a training curve
MOST_MARKS = 9  # on a log axis
LOG_FROM = 12  # times that the highest loss is above the lowest, from which the axis is a log one


def learning_curves(frames: StudyFrames) -> go.Figure:
    """From the untouched base at tick 0; each outcome can be hidden in the legend."""
    seen = [record for record in frames.records if any(map(math.isfinite, record.losses))]
    if not seen:
        raise Missing("Learning curves need a trial that reached its first tick.")
    fig = canvas(height=460, hovermode="closest")
    for outcome in [*sorted({r.outcome for r in seen} - {"complete"}, reverse=True), "complete"]:
        _curves(fig, frames, outcome, [r for r in seen if r.outcome == outcome])
    if frames.best:
        name = f"best: trial {frames.best.number}"
        fig.add_trace(_line(frames, [frames.best], name, ACCENT, 3.5, 1))
        _training(fig, frames, frames.best)
    _ends(fig, [r for r in seen if r.outcome not in ("complete", "running")])
    _rungs(fig, frames, seen)
    _axes(fig, frames, seen)
    return fig


def _curves(
    fig: go.Figure, frames: StudyFrames, outcome: str, records: list[TrialRecord]
) -> None:
    if records:
        faint = 0.3 if len(records) > MANY else 0.6
        name = f"{safe(outcome)} ({len(records):,})"
        fig.add_trace(_line(frames, records, name, COLOURS.get(outcome, QUIET), 1.2, faint))


def _line(
    frames: StudyFrames, records: Sequence[TrialRecord], name: str, colour: str, width: float,
    opacity: float,
) -> object:  # fmt: skip
    """Many curves in one trace, with gaps between them: quick to draw and to hide."""
    x: list[int | None] = []
    y: list[float | None] = []
    number: list[int | None] = []
    start = [frames.study.baseline_loss] if math.isfinite(frames.study.baseline_loss) else []
    for record in records:
        losses = [*start, *record.losses]
        x += [*range(1 - len(start), len(record.losses) + 1), None]
        y += [*losses, None]
        number += [*[record.number] * len(losses), None]
    return scatter(len(x))(
        name=name,
        mode="lines",
        x=x,
        y=short(y),
        customdata=number,
        hovertemplate="trial %{customdata} at tick %{x}: loss %{y:.4f}<extra></extra>",
        line={"color": colour, "width": width},
        opacity=opacity,
    )


def _training(fig: go.Figure, frames: StudyFrames, best: TrialRecord) -> None:
    """What the best trial's own batches showed, thinned, where its ticks say how far it was."""
    steps = frames.best_steps[:: max(1, math.ceil(len(frames.best_steps) / MOST_STEPS))]
    ticks = [tick for tick in frames.ticks if tick.trial == best.number]
    if not steps or not ticks:
        return
    marks = [0, *(tick.examples for tick in ticks)]
    places = np.interp([p.examples for p in steps], marks, [0, *(tick.tick for tick in ticks)])
    fig.add_trace(
        scatter(len(steps))(
            name="its training loss",
            mode="lines",
            x=short(map(float, places)),
            y=short(point.train_loss for point in steps),
            hovertemplate="training loss %{y:.4f}<extra></extra>",
            line={"color": AMBER, "width": 1},
            opacity=0.8,
        )
    )


def _ends(fig: go.Figure, records: list[TrialRecord]) -> None:
    """Where trials were stopped; why is in the hover."""
    seen = [r for r in records if r.ticks and finite(r.losses[-1] if r.losses else None)]
    if not seen:
        return
    fig.add_trace(
        scatter(len(seen))(
            name="stopped here: why is in the hover",
            mode="markers",
            x=[len(r.losses) for r in seen],
            y=short(r.losses[-1] for r in seen),
            hovertext=[about(r, wrapped(r.reason or ""), of=len(seen)) for r in seen],
            hoverinfo="text",
            marker={"symbol": "x-thin", "size": 7,
                    "line": {"width": 1.4, "color": [COLOURS.get(r.outcome, QUIET) for r in seen]}},
        )
    )  # fmt: skip


def _rungs(fig: go.Figure, frames: StudyFrames, records: list[TrialRecord]) -> None:
    """A line at each tick where the pruner stopped trials, with how many."""
    pruned = [len(r.losses) for r in records if r.outcome == "pruned"]
    for tick in sorted(set(pruned)):
        fig.add_vline(
            x=tick,
            line={"width": 1, "dash": "dot", "color": QUIET},
            layer="below",
            annotation={"text": f"✂ {pruned.count(tick)}", "font": {"size": 11},
                        "yanchor": "bottom", "showarrow": False},
            annotation_position="top",
        )  # fmt: skip
    _untouched(fig, frames.study.baseline_loss, log=_is_log(frames, records))


def _untouched(fig: go.Figure, baseline: float, *, log: bool) -> None:
    """A line at the untouched base's loss."""
    if not math.isfinite(baseline):
        return
    fig.add_hline(y=baseline, line={"width": 1, "dash": "dash", "color": QUIET})
    fig.add_annotation(
        x=1, xref="x domain", xanchor="right", yanchor="top", showarrow=False,
        y=math.log10(baseline) if log and baseline > 0 else baseline,  # plotly wants the exponent
        text="untouched base", font={"size": 11},
    )  # fmt: skip


def _span(frames: StudyFrames, records: Sequence[TrialRecord]) -> tuple[float, float]:
    """The lowest loss and the highest that is shown."""
    losses = [loss for record in records for loss in record.losses if math.isfinite(loss)]
    base = frames.study.baseline_loss
    return min(losses), ceiling([*losses, base], base)


def _is_log(frames: StudyFrames, records: Sequence[TrialRecord]) -> bool:
    """Whether the losses differ by more than a linear axis shows."""
    low, high = _span(frames, records)
    return low > 0 and high / low >= LOG_FROM


def _axes(fig: go.Figure, frames: StudyFrames, records: list[TrialRecord]) -> None:
    low, high = _span(frames, records)
    fig.update_xaxes(title={"text": "tick"}, dtick=max(1, frames.study.ticks // 20), showgrid=False)
    if _is_log(frames, records):
        limits = padded(math.log10(low), math.log10(high), 0.05)
        marks = [10**place for place in decades(limits[0], limits[1], MOST_MARKS)]
        fig.update_yaxes(type="log", title={"text": "evaluation loss, log"}, range=limits,
                         tickvals=marks, ticktext=[wording.value(mark) for mark in marks])
    else:
        fig.update_yaxes(title={"text": "evaluation loss"}, range=padded(low, high, 0.05))
    fig.update_layout(margin={"l": 8, "r": 8, "t": 26, "b": 8})
    fig.update_layout(legend={"y": 1.06})
