"""The loss at the first rung over the two knobs that matter most, smoothed between the trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sweep.report.dimensions import Axis
from sweep.report.figures.style import (
    MANY,
    SCALE,
    Missing,
    about,
    canvas,
    ceiling,
    finite,
    padded,
    safe,
    short,
)
from sweep.report.frames import StudyFrames
from sweep.store import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

CELLS = 64  # along each side
LEAST_TRIALS = 6
WIDTH = 0.14  # of a trial's influence, in shares of an axis
REACH = 0.26  # nothing is drawn further from all trials


def contour(frames: StudyFrames) -> go.Figure:
    """The first two knobs where none can be weighed."""
    import plotly.graph_objects as go

    first, second = _chosen(frames)
    seen = [
        r for r in frames.own
        if finite(r.first_rung_loss) and first.name in r.params and second.name in r.params
    ]  # fmt: skip
    if len(seen) < LEAST_TRIALS:
        raise Missing(
            f"The contour needs {LEAST_TRIALS} trials that reached the first rung; there are "
            f"{len(seen)} with both {first.label} and {second.label}."
        )
    losses = [r.first_rung_loss or 0.0 for r in seen]
    top = ceiling(losses, frames.study.baseline_loss)
    xs, ys = ([axis.place(r.params[axis.name]) for r in seen] for axis in (first, second))
    colours: dict[str, Any] = {"colorscale": [(1 - at, colour) for at, colour in SCALE[::-1]]}
    limits = {"zmin": min(losses), "zmax": top}
    fig = canvas(height=460, hovermode="closest")
    fig.add_trace(
        go.Contour(
            **_surface(first, second, xs, ys, [min(loss, top) for loss in losses]),
            **colours,
            **limits,
            ncontours=14,
            contours={"coloring": "fill"},
            line={"width": 0.4, "color": "rgba(128,128,128,.35)"},
            opacity=0.75,
            hoverinfo="skip",
            colorbar={"title": {"text": "loss at the first rung", "side": "right"}, "thickness": 10,
                      "outlinewidth": 0, "len": 0.9},
        )
    )  # fmt: skip
    fig.add_trace(_trials(seen, xs, ys, losses, colours, top))
    _label(fig, first, second)
    return fig


def _chosen(frames: StudyFrames) -> tuple[Axis, Axis]:
    by_name = {axis.name: axis for axis in frames.axes}
    order = [entry.name for entry in frames.weights.dimensions]
    names = order + [name for name in by_name if name not in order]
    if len(names) < 2:
        raise Missing("A contour needs two searched knobs.")
    return by_name[names[0]], by_name[names[1]]


def _surface(
    first: Axis, second: Axis, xs: list[float], ys: list[float], losses: list[float]
) -> dict[str, Any]:
    """A kernel-weighted mean of the trials' losses (Nadaraya 1964), blank where none is near."""
    import numpy as np

    def unit(axis: Axis, places: Any) -> Any:
        low, high = axis.span
        return (np.asarray(places, dtype=float) - low) / ((high - low) or 1.0)

    grid_x, grid_y = (np.linspace(*axis.span, CELLS) for axis in (first, second))
    away_x = unit(first, grid_x)[None, :, None] - unit(first, xs)[None, None, :]
    away_y = unit(second, grid_y)[:, None, None] - unit(second, ys)[None, None, :]
    squares = away_x**2 + away_y**2
    weight = np.exp(-squares / (2 * WIDTH**2))
    mean = (weight * np.asarray(losses)).sum(axis=2) / np.maximum(weight.sum(axis=2), 1e-300)
    mean[squares.min(axis=2) > REACH**2] = np.nan
    return {"x": short(grid_x), "y": short(grid_y), "z": [short(row) for row in mean]}


def _trials(
    records: list[TrialRecord], xs: list[float], ys: list[float], losses: list[float],
    colours: dict[str, Any], top: float,
) -> go.Scatter:  # fmt: skip
    import plotly.graph_objects as go

    return go.Scatter(
        mode="markers",
        x=short(xs),
        y=short(ys),
        showlegend=False,
        hovertext=[about(r, f"first rung {r.first_rung_loss:.4f}", of=len(records))
                   for r in records],
        hoverinfo="text",
        marker={"color": short(min(loss, top) for loss in losses), "cmin": min(losses), "cmax": top,
                "size": 8 if len(records) < MANY else 4,
                "line": {"width": 1, "color": "rgba(90,100,120,.8)"}, **colours},
    )  # fmt: skip


def _label(fig: go.Figure, first: Axis, second: Axis) -> None:
    for axis, update in ((first, fig.update_xaxes), (second, fig.update_yaxes)):
        at, texts = axis.ticks()
        update(
            title={"text": safe(axis.label, 40)},
            tickvals=at,
            ticktext=[safe(text, 18) for text in texts],
            range=padded(*axis.span, 0.05),
        )
