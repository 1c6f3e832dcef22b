"""What mattered: each knob's share, its range over random halves, and what chance alone gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.report.figures.style import ACCENT, AMBER, QUIET, Missing, canvas, safe
from sweep.report.frames import StudyFrames
from sweep.report.importance import LEAST_TRIALS
from sweep.results.wording import plural, share

if TYPE_CHECKING:
    import plotly.graph_objects as go


def importance(frames: StudyFrames) -> go.Figure:
    """Over all trials that reached the first rung."""
    import plotly.graph_objects as go

    found = frames.weights
    if not found:
        raise Missing(
            f"Importance needs {LEAST_TRIALS} trials that reached the first rung with different "
            f"losses; there {'is' if found.trials == 1 else 'are'} {plural(found.trials, 'trial')}."
        )
    shown = found.dimensions[::-1]  # an axis begins at the bottom
    names = [safe(entry.label, 40) for entry in shown]
    fig = canvas(height=100 + 34 * len(shown))
    fig.add_trace(
        go.Scatter(
            name="share, and its range over random halves",
            y=names,
            x=[entry.share for entry in shown],
            mode="markers",
            marker={"color": [ACCENT if e.decides else QUIET for e in shown], "size": 12},
            error_x={
                "type": "data", "symmetric": False, "thickness": 2, "width": 0,
                "array": [max(0.0, e.high - e.share) for e in shown],
                "arrayminus": [max(0.0, e.share - e.low) for e in shown], "color": QUIET,
            },
            hovertext=[
                f"<b>{name}</b> {share(e.share)}<br>80 % of the halves: {share(e.low)} to "
                f"{share(e.high)}<br>chance alone as much: {e.by_chance} of the time"
                for name, e in zip(names, shown, strict=True)
            ],
            hoverinfo="text",
        )
    )  # fmt: skip
    fig.add_trace(
        go.Scatter(
            name="chance alone stays left of this 19 times of 20",
            y=names,
            x=[entry.chance for entry in shown],
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 18, "color": AMBER, "line": {"width": 2}},
            hoverinfo="skip",
        )
    )
    top = max(max(e.high, e.share, e.chance) for e in shown)
    fig.update_xaxes(tickformat=".0%", range=[-0.02 * top, 1.06 * top])
    fig.update_yaxes(ticks="outside", ticklen=8, tickcolor="rgba(0,0,0,0)")
    return fig
