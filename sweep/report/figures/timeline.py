"""A timeline: which worker and slot trained which trial, from when to when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sweep.report.figures.style import COLOURS, QUIET, Missing, about, canvas, safe
from sweep.report.frames import COPY, StudyFrames
from sweep.report.rows import Attempt
from sweep.results import wording

if TYPE_CHECKING:
    import plotly.graph_objects as go

IDLE = 0.15  # of all time, from which a gap between two runs is folded away
ROW_PX = 26


def timeline(frames: StudyFrames) -> go.Figure:
    """One bar for each attempt at a trial; time in which nothing ran for long is folded away."""
    spans = [span for span in frames.attempts if span.worker != COPY]
    if not spans:
        raise Missing("The timeline needs a trial that has started.")
    rows = lanes(spans)
    names = list(dict.fromkeys(rows[key] for key in sorted(rows, key=lambda key: rows[key])))
    fig = canvas(height=110 + ROW_PX * len(names), barmode="overlay", bargap=0.25)
    for outcome in dict.fromkeys(span.outcome for span in spans):
        _bars(fig, frames, rows, outcome, [span for span in spans if span.outcome == outcome])
    fig.update_xaxes(type="date", rangebreaks=_folded(spans))
    fig.update_yaxes(categoryorder="array", categoryarray=names[::-1], showgrid=False)
    return fig


def lanes(spans: Sequence[Attempt]) -> dict[tuple[int, int], str]:
    """The row of each attempt: its worker and slot, further ones where those would overlap."""
    until: dict[tuple[str, int], float] = {}
    rows: dict[tuple[int, int], tuple[str, int]] = {}
    for span in sorted(spans, key=lambda s: s.started_at):
        slot = span.slot
        while until.get((span.worker, slot), 0.0) > span.started_at + 1e-3:
            slot += 1
        until[span.worker, slot] = span.ended_at
        rows[span.trial, span.attempt] = (span.worker, slot)
    several = {worker for worker, slot in rows.values() if slot}
    return {
        key: safe(f"{worker} · slot {slot}" if worker in several else worker, 26)
        for key, (worker, slot) in rows.items()
    }


def _bars(
    fig: go.Figure, frames: StudyFrames, rows: dict[tuple[int, int], str], outcome: str,
    spans: list[Attempt],
) -> None:  # fmt: skip
    import plotly.graph_objects as go

    records = {record.number: record for record in frames.records}
    least = 0.002 * (max(s.ended_at for s in frames.attempts) - frames.attempts[0].started_at)
    fig.add_trace(
        go.Bar(
            name=safe(outcome),
            orientation="h",
            y=[rows[span.trial, span.attempt] for span in spans],
            base=[datetime.fromtimestamp(span.started_at).isoformat(" ", "milliseconds")
                  for span in spans],
            x=[round(1000 * max(span.ended_at - span.started_at, least)) for span in spans],
            hovertext=[
                about(records[span.trial], wording.duration(span.ended_at - span.started_at)
                      + (f", attempt {span.attempt + 1}" if span.attempt else ""), of=len(spans))
                for span in spans
            ],
            hoverinfo="text",
            marker={"color": COLOURS.get(outcome, QUIET), "cornerradius": 3,
                    "line": {"width": 0.6, "color": "rgba(255,255,255,.35)"}},
        )
    )  # fmt: skip


def _folded(spans: Sequence[Attempt]) -> list[dict[str, list[str]]]:
    """The long gaps in which nothing ran: between two runs of a study lie hours, or days."""
    ordered = sorted(spans, key=lambda span: span.started_at)
    whole = max(span.ended_at for span in ordered) - ordered[0].started_at
    gaps, until = [], ordered[0].ended_at
    for span in ordered[1:]:
        if span.started_at - until > max(60.0, IDLE * whole):
            room = 0.02 * (span.started_at - until)
            ends = (until + room, span.started_at - room)
            gaps.append({"bounds": [datetime.fromtimestamp(end).isoformat(" ") for end in ends]})
        until = max(until, span.ended_at)
    return gaps
