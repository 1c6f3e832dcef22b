"""Parallel coordinates: one line for each trial across all knobs to its loss, the best bluest.

Brush an axis to keep the lines that pass there. Trials that are not complete are dimmed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweep.report.dimensions import Axis
from sweep.report.figures.style import Missing, canvas, ceiling, finite, safe, short
from sweep.report.frames import StudyFrames
from sweep.results import leaderboard, wording
from sweep.store import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

LIGHT = ("#c9ced8", "#b4c0f8", "#7d92f2", "#2440d8")  # not complete, worst, good, best
DARK = ("#414859", "#4d5fae", "#7d92f2", "#d0d9ff")
MIDDLE = ("#aab1be", "#93a4f4", "#6f86f3", "#3450e6")  # where the background is not known
LABEL = 18  # characters of an axis label
MOST_AXES = 14


def parallel_coordinates(frames: StudyFrames) -> go.Figure:
    """Every trial with a loss."""
    import plotly.graph_objects as go

    shown = [r for r in reversed(frames.ranked) if finite(r.eval_loss)]  # the best drawn last
    if not shown:
        raise Missing("Parallel coordinates need a trial with a loss.")
    columns = [_column(axis, shown) for axis in frames.axes[:MOST_AXES]]
    fig = canvas(height=440, margin={"l": 56, "r": 64, "t": 56, "b": 24})
    fig.update_layout(meta={"light": _scale(LIGHT), "dark": _scale(DARK), "least_px": 90})
    fig.add_trace(
        go.Parcoords(
            dimensions=[*columns, _loss_column(frames, shown)],
            line={"color": _goodness(shown), "cmin": 0, "cmax": 1, "colorscale": _scale(MIDDLE)},
            unselected={"line": {"opacity": 0.04}},
            labelfont={"size": 12},
            tickfont={"size": 11},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
        )
    )
    return fig


def _scale(colours: Sequence[str]) -> list[list[Any]]:
    """The colours of 0 .. 0.5 (not complete) and 0.5 .. 1, of which the last tenth stands out."""
    dim, worst, good, best = colours
    return [[0.0, dim], [0.49, dim], [0.5, worst], [0.9, good], [1.0, best]]


def _column(axis: Axis, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """A knob; where some trials do not have it, they pass below its range."""
    places = [axis.place(record.params.get(axis.name)) for record in records]
    (low, high), (at, texts) = axis.span, axis.ticks()
    if any(map(math.isnan, places)):
        below = low - 0.15 * ((high - low) or 1.0)
        places = [below if math.isnan(place) else place for place in places]
        at, texts, low = [below, *at], [wording.NOTHING, *texts], below
    if low == high:
        low, high = low - 0.5, high + 0.5
    return {
        "label": safe(axis.label, LABEL),
        "values": short(places),
        "range": [low, high],
        "tickvals": at,
        "ticktext": [wording.clean(text, limit=LABEL) for text in texts],  # no markup here
    }


def _loss_column(frames: StudyFrames, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """The last loss; one that ran away ends at the top of the axis."""
    losses = [record.eval_loss or 0.0 for record in records]
    low, high = min(losses), ceiling(losses, frames.study.baseline_loss)
    if not low < high:
        low, high = low - 0.5, high + 0.5
    at = [low + (high - low) * k / 4 for k in range(5)]
    texts = [f"{place:.3g}" for place in at]
    if max(losses) > high:
        texts[-1] = f"≥ {texts[-1]}"
    return {
        "label": "loss",
        "values": short(min(loss, high) for loss in losses),
        "range": [low, high],
        "tickvals": at,
        "ticktext": texts,
    }


def _goodness(records: Sequence[TrialRecord]) -> list[float]:
    """From 0.5 for the worst complete trial to 1 for the best; 0 for the others."""
    complete = [record for record in records if leaderboard.finished_well(record)]
    place = {record.number: k for k, record in enumerate(complete, start=1)}
    most = max(len(complete), 1)
    return [0.5 + 0.5 * place[r.number] / most if r.number in place else 0.0 for r in records]
