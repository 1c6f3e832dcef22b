"""What all figures share: colours, the empty figure, hover texts, and honest numbers.

Hover texts are a small markup to plotly, so everything that comes from users is escaped for it.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweep.results import wording
from sweep.store import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACCENT = "#5b76f7"
AMBER = "#dc9a2e"  # of a line drawn over points
QUIET = "#929bab"  # of what is dimmed; readable on white and on near-black
SCALE = ((0.0, "#b3bbc8"), (0.5, "#8b9df0"), (1.0, ACCENT))  # the bluer, the better
COLOURS: Mapping[str, str] = {
    "complete": ACCENT,
    "pruned": QUIET,
    "diverged": AMBER,
    "infeasible": "#b07d3c",
    "failed": "#e5534b",
    "stopped": "#3aa6a0",
    "running": "#3aa6a0",
}
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
WEBGL_FROM = 1500  # points, from which a browser draws them better with WebGL than as SVG
MANY = 600  # hover texts in one figure, from which each is brief, so that a page stays small
WRAP = 64  # characters of a hover text's line
LONGEST = 400  # characters of one text in a hover


class Missing(Exception):
    """A figure that the study has not the data for; the message says so in a sentence."""


def canvas(*, height: int = 420, **layout: Any) -> go.Figure:
    """An empty figure in the report's style; `layout` as plotly's."""
    import plotly.graph_objects as go

    axis = {
        "showgrid": True, "gridcolor": "rgba(140,150,165,.18)", "zeroline": False,
        "linecolor": "rgba(140,150,165,.45)", "ticks": "", "automargin": True,
        "title": {"font": {"size": 12}, "standoff": 8},
    }  # fmt: skip
    base: dict[str, Any] = {
        "colorway": [ACCENT, QUIET],
        "font": {"family": FONT, "size": 12, "color": "#7a8394"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": axis,
        "yaxis": axis,
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {}},
    }
    template = go.layout.Template(layout=base)
    margin = {"l": 8, "r": 8, "t": 8, "b": 8}
    return go.Figure(layout={"template": template, "height": height, "margin": margin} | layout)


def scatter(points: int) -> Any:
    """The trace class for so many points."""
    import plotly.graph_objects as go

    return go.Scattergl if points >= WEBGL_FROM else go.Scatter


def safe(text: object, limit: int = LONGEST) -> str:
    """Text for a label or one line of a hover: cleaned, cut, and nothing in it is markup."""
    return html.escape(wording.clean(text, limit=limit), quote=False)


def wrapped(text: object, limit: int = LONGEST) -> str:
    """A long text for a hover, in lines."""
    shown = wording.clean(text, limit=limit)
    return "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(shown, WRAP))


def about(record: TrialRecord, *more: str, of: int = 0) -> str:
    """A trial's hover text: number, outcome, loss, values, and lines that are escaped already.

    `of` is how many trials have one: among very many the values stay in the leaderboard.
    """
    said = f"<b>trial {record.number}</b> {safe(record.outcome)}"
    seen = f"loss {wording.loss(record.eval_loss)}" if record.eval_loss is not None else "no loss"
    values = wrapped(wording.params(record.params)) if of <= MANY else ""
    return "<br>".join(line for line in [said, seen, values, *more] if line)


def finite(value: float | None) -> bool:
    """Whether there is a number to draw."""
    return value is not None and math.isfinite(value)


def short(values: Iterable[float | None]) -> list[float | None]:
    """Numbers with six significant figures, null where there is none: a page need not carry 17."""
    return [float(f"{v:.6g}") if v is not None and math.isfinite(v) else None for v in values]


def ceiling(losses: Sequence[float], baseline: float) -> float:
    """Where a loss axis ends, so that a few that ran away do not flatten all others."""
    seen = sorted(loss for loss in losses if math.isfinite(loss))
    if not seen:
        return baseline if math.isfinite(baseline) else 1.0
    high = seen[min(len(seen) - 1, int(0.97 * len(seen)))]
    return min(seen[-1], max(high, baseline if math.isfinite(baseline) else high) * 1.02)


def padded(low: float, high: float, share: float = 0.06) -> list[float]:
    """A range with room at both ends."""
    room = (high - low) * share or abs(high) * share or share
    return [low - room, high + room]


def grid(fig: go.Figure, panels: int, row_px: int = 230) -> None:
    """Lays panels out in rows; the page does it again for its width, from the figure's meta."""
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    for k in range(panels):
        row, column = divmod(k, columns)
        suffix = "" if k == 0 else str(k + 1)
        fig.layout[f"xaxis{suffix}"].domain = _part(column, columns, 0.07)
        low, high = _part(rows - 1 - row, rows, 0.3 / rows if rows > 1 else 0)
        fig.layout[f"yaxis{suffix}"].domain = [low, high]
    fig.update_layout(height=rows * row_px + 60, meta={"panels": panels, "row_px": row_px})


def _part(k: int, parts: int, gap: float) -> list[float]:
    size = (1 - gap * (parts - 1)) / parts
    start = k * (size + gap)
    return [max(0.0, start), min(1.0, start + size)]
