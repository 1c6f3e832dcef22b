"""Slices: the loss along each knob; of all trials at the first rung, of complete ones at last."""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING

from sweep.report.dimensions import Axis
from sweep.report.figures.style import (
    ACCENT,
    AMBER,
    MANY,
    QUIET,
    Missing,
    canvas,
    ceiling,
    finite,
    grid,
    padded,
    safe,
    scatter,
    short,
)
from sweep.report.frames import StudyFrames
from sweep.results import leaderboard, wording
from sweep.store import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROOM = 36  # characters of tick labels that stand side by side under a panel
JITTER = 0.16  # of the distance between two levels, so that equal ones are seen


def slices(frames: StudyFrames) -> go.Figure:
    """One panel for each knob that some trial with a loss at the first rung has."""
    seen = [r for r in frames.own if finite(r.first_rung_loss)]
    axes = [axis for axis in frames.axes if any(axis.name in r.params for r in seen)]
    if not axes:
        raise Missing("Slices need a trial that reached the first rung.")
    fig = canvas(hovermode="closest")
    for k, axis in enumerate(axes, start=1):
        _panel(fig, k, axis, [r for r in seen if axis.name in r.params], len(axes))
    losses = [loss for r in seen for loss in (r.first_rung_loss, r.eval_loss) if finite(loss)]
    top = ceiling([loss or 0.0 for loss in losses], frames.study.baseline_loss)
    fig.update_yaxes(range=padded(min(loss or 0.0 for loss in losses), top))
    grid(fig, len(axes))
    return fig


def _panel(fig: go.Figure, k: int, axis: Axis, records: list[TrialRecord], panels: int) -> None:
    suffix = "" if k == 1 else str(k)
    complete = [r for r in records if leaderboard.finished_well(r)]
    many = scatter(panels * (len(records) + len(complete)))
    place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": k == 1}
    early, end = "loss at the first rung, all trials", "loss at the end, complete trials"
    fig.add_trace(_points(many, axis, records, early, QUIET, first=True, **place))
    fig.add_trace(_points(many, axis, complete, end, ACCENT, first=False, **place))
    if axis.discrete:
        fig.add_trace(_medians(axis, records, **place))
    at, texts = axis.ticks(most=5)
    low, high = axis.span
    fig.update_layout({
        f"xaxis{suffix}": {
            "title": {"text": safe(axis.label, 40)}, "tickvals": at, "anchor": f"y{suffix}",
            "ticktext": [safe(text, 14) for text in texts], "range": padded(low, high, 0.1),
            "tickangle": 0 if sum(min(len(text), 14) for text in texts) <= ROOM else 35,
        },
        f"yaxis{suffix}": {"anchor": f"x{suffix}", "matches": "y" if k > 1 else None},
    })  # fmt: skip


def _points(
    kind: type, axis: Axis, records: list[TrialRecord], name: str, colour: str, *, first: bool,
    **place: object,
) -> object:  # fmt: skip
    losses = [r.first_rung_loss if first else r.eval_loss for r in records]
    return kind(
        name=name,
        legendgroup=name,
        mode="markers",
        x=short(_jittered(axis, record) for record in records),
        y=short(losses),
        customdata=[[r.number, safe(wording.value(r.params[axis.name]))] for r in records],
        hovertemplate="trial %{customdata[0]}<br>%{customdata[1]}: loss %{y:.4f}<extra></extra>",
        marker={"color": colour, "size": (5 if first else 7) * (0.6 if len(records) > MANY else 1),
                "opacity": 0.55 if first else 0.9, "line": {"width": 0}},
        **place,
    )  # fmt: skip


def _jittered(axis: Axis, record: TrialRecord) -> float:
    place = axis.place(record.params[axis.name])
    if not axis.discrete:
        return place
    return place + JITTER * (2 * random.Random(f"{axis.name} {record.number}").random() - 1)


def _medians(axis: Axis, records: list[TrialRecord], **place: object) -> object:
    """A bar at the middle loss of each level at the first rung."""
    import plotly.graph_objects as go

    x: list[float | None] = []
    y: list[float | None] = []
    for k in range(len(axis.levels)):
        here = [r.first_rung_loss or 0.0 for r in records if axis.place(r.params[axis.name]) == k]
        if len(here) > 1:
            middle = statistics.median(here)
            x, y = [*x, k - 0.3, k + 0.3, None], [*y, middle, middle, None]
    return go.Scatter(
        name="median at the first rung",
        legendgroup="median",
        mode="lines",
        x=x,
        y=short(y),
        line={"color": AMBER, "width": 2},
        hoverinfo="skip",
        **place,
    )
