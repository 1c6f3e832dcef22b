"""Loss against what it costs: training time, peak memory, trainable parameters; Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sweep.report.figures.style import (
    ACCENT,
    AMBER,
    QUIET,
    Missing,
    about,
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

Cost = Callable[[TrialRecord], float]
COSTS: tuple[tuple[str, Cost, Callable[[float], str]], ...] = (
    ("seconds of training", lambda r: r.seconds, wording.duration),
    ("peak memory, MiB", lambda r: r.memory_bytes / 2**20, lambda mib: f"{mib:,.0f} MiB"),
    ("trainable parameters", lambda r: float(r.trainable_parameters), wording.count),
)


def cost(frames: StudyFrames) -> go.Figure:
    """A panel for each cost that was measured; the front is of complete trials."""
    seen = [r for r in frames.own if finite(r.eval_loss) and r.outcome != "running"]
    shown = [entry for entry in COSTS if any(entry[1](record) > 0 for record in seen)]
    complete = [r for r in seen if leaderboard.finished_well(r)]
    if not complete or not shown:
        raise Missing("Loss against cost needs a complete trial.")
    fig = canvas(hovermode="closest")
    for k, (name, of, said) in enumerate(shown, start=1):
        _panel(fig, k, name, of, said, seen, len(shown))
    losses = [r.eval_loss or 0.0 for r in seen]
    fig.update_yaxes(range=padded(min(losses), ceiling(losses, frames.study.baseline_loss)))
    grid(fig, len(shown), row_px=300)
    return fig


def pareto(records: Sequence[TrialRecord], of: Cost) -> list[TrialRecord]:
    """The complete trials of which none is both cheaper and better, the cheapest first."""
    front: list[TrialRecord] = []
    well = [r for r in records if leaderboard.finished_well(r) and of(r) > 0]
    for record in sorted(well, key=lambda r: (of(r), r.eval_loss or 0.0)):
        if not front or (record.eval_loss or 0.0) < (front[-1].eval_loss or 0.0):
            front.append(record)
    return front


def _panel(
    fig: go.Figure, k: int, name: str, of: Cost, said: Callable[[float], str],
    seen: list[TrialRecord], panels: int,
) -> None:  # fmt: skip
    import plotly.graph_objects as go

    suffix = "" if k == 1 else str(k)
    place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": k == 1}
    known = [r for r in seen if of(r) > 0]
    complete = [r for r in known if leaderboard.finished_well(r)]
    others = [r for r in known if not leaderboard.finished_well(r)]
    kind = scatter(panels * len(known))
    front = pareto(known, of)
    fig.add_trace(go.Scatter(
        name="Pareto front", legendgroup="front", mode="lines+markers", hoverinfo="skip",
        x=short(of(r) for r in front), y=short(r.eval_loss for r in front),
        line={"color": AMBER, "width": 2, "shape": "hv"},
        marker={"symbol": "circle-open", "size": 13, "color": AMBER, "line": {"width": 2}},
        **place,
    ))  # fmt: skip
    groups = (("stopped early", others, QUIET), ("complete", complete, ACCENT))
    for label, records, colour in groups:
        fig.add_trace(kind(
            name=label, legendgroup=label, mode="markers",
            x=short(map(of, records)), y=short(r.eval_loss for r in records),
            hovertext=[about(r, safe(f"{name}: {said(of(r))}"), of=len(seen)) for r in records],
            hoverinfo="text",
            marker={"color": colour, "size": 7, "opacity": 0.5 if colour == QUIET else 0.9},
            **place,
        ))  # fmt: skip
    amounts = [of(r) for r in known]
    fig.update_layout({
        f"xaxis{suffix}": {"title": {"text": name}, "anchor": f"y{suffix}",
                           **_extent(amounts)},
        f"yaxis{suffix}": {"anchor": f"x{suffix}", "matches": "y" if k > 1 else None,
                           "title": {"text": "last loss" if k == 1 else ""}},
    })  # fmt: skip


def _extent(amounts: Sequence[float]) -> dict[str, object]:
    """A log axis where costs differ by more than a factor of ten."""
    low, high = min(amounts), max(amounts)
    if high / low > 10:
        return {"type": "log", "range": padded(math.log10(low), math.log10(high)), "dtick": 1}
    return {"range": padded(low, high), "nticks": 5}
