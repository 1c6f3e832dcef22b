"""Several studies side by side: what each found, what each decides on, how fast each got there.

Losses compare only between studies with the same data and evaluation set; the page says where they
do not. Each study's own report has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sweep.report.answer import answer
from sweep.report.figures.style import Missing, about, canvas, finite, safe, scatter, short
from sweep.report.frames import StudyFrames
from sweep.report.leaders import gain, leaders
from sweep.report.markup import Html, el, foreign, join, table
from sweep.report.page import page
from sweep.report.sections import Section, drawing
from sweep.report.writing import best_written
from sweep.results import leaderboard, wording
from sweep.results.wording import plural, share
from sweep.store import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

PALETTE = ("#5b76f7", "#dc9a2e", "#3aa6a0", "#c2569b", "#7a9a3a", "#e5534b", "#8b6fd6", "#929bab")
MOST_SAMPLES = 6


def comparison(studies: Sequence[StudyFrames]) -> Html:
    """One page on several studies."""
    names = [wording.clean(frames.study.study, limit=60) for frames in studies]
    head = el(
        "header",
        el("p", "Sweep report", class_="eyebrow"),
        el("h1", f"{len(studies)} studies side by side"),
        el("p", ", ".join(names), class_="sub", dir="auto"),
        _headline(studies),
        class_="top",
    )
    return page(" · ".join(names)[:120], head, list(_sections(studies)))


def _headline(studies: Sequence[StudyFrames]) -> Html:
    if not _comparable(studies):
        return el(
            "p",
            "These studies do not share data, evaluation set and masking, so their losses do not "
            "compare. What each gained over its own untouched base does.",
            class_="headline",
        )
    found = [frames for frames in studies if frames.best]
    if not found:
        return el("p", "No study has a complete trial yet.", class_="headline")
    first = min(found, key=lambda frames: _loss(frames.best))
    loss = wording.loss(_loss(first.best))
    said = f"{wording.clean(first.study.study, limit=60)} found the lowest loss: {loss}, "
    return el("p", f"{said}with {wording.params(first.best.params if first.best else {})}.",
              class_="headline")  # fmt: skip


def _comparable(studies: Sequence[StudyFrames]) -> bool:
    """Whether all were evaluated on the same examples."""
    keys = ("data.content_hash", "data.loss_on", "data.max_length")
    return len({tuple(frames.facts.get(key) for key in keys) for frames in studies}) == 1


def _loss(record: TrialRecord | None) -> float:
    return math.inf if record is None or record.eval_loss is None else record.eval_loss


def _sections(studies: Sequence[StudyFrames]) -> Iterator[Section]:
    overview = _overview(studies)
    yield Section(key="overview", link="Overview", title="Overview", body=overview, specs={})
    figures: tuple[tuple[str, str, str, Callable[[Sequence[StudyFrames]], go.Figure]], ...] = (
        ("progress", "How fast each got there",
         "The best complete loss so far, by seconds of training spent in all trials.", progress),
        ("weights", "What mattered in each",
         "Each knob's share of what the trials show at the first rung. Hollow: not beyond chance.",
         weights),
        ("trials", "All trials", "The last loss of each trial against its training time.", trials),
    )  # fmt: skip
    for key, title, said, draw in figures:
        specs: dict[str, str] = {}
        body = join([el("p", said), drawing(partial(draw, studies), key, specs)])
        yield Section(key=key, link=title, title=title, body=body, specs=specs)
    if any(frames.samples_by_tick for frames in studies):
        yield Section(
            key="samples", link="Samples", title="What each best trial writes",
            body=join(_samples(studies)), specs={},
        )  # fmt: skip
    for k, frames in enumerate(studies):
        name = wording.clean(frames.study.study, limit=60)
        yield Section(key=f"study-{k}", link=name, title=name, body=_one(frames), specs={})


def _overview(studies: Sequence[StudyFrames]) -> Html:
    """A row for each study."""
    heads = ("study", "best loss", "vs its base", "best configuration", "decides", "trials",
             "training", "model", "data", "device")  # fmt: skip
    rows = [
        [
            el("td", f.study.study, class_="strong", dir="auto"),
            el("td", wording.loss(f.best.eval_loss if f.best else None), class_="number",
               data_value=repr(f.best.eval_loss) if f.best else None),
            el("td", gain(f.study.baseline_loss, f.best.eval_loss if f.best else None),
               class_="number"),
            el("td", wording.params(f.best.params) if f.best else wording.NOTHING),
            el("td", ", ".join(e.label for e in f.weights.deciding) or "cannot be said"),
            el("td", str(sum(leaderboard.counts_towards_total(r) for r in f.records)),
               class_="number"),
            el("td", wording.duration(sum(r.seconds for r in f.records)), class_="number"),
            el("td", f.study.model, dir="auto"),
            el("td", f.study.data, dir="auto"),
            el("td", f.study.device, dir="auto"),
        ]
        for f in studies
    ]  # fmt: skip
    return table([el("th", head, scope="col") for head in heads], rows, "sortable")


def _one(frames: StudyFrames) -> Html:
    found = answer(frames)
    return join([
        el("p", found.headline),
        el("ul", *(el("li", said) for said in found.findings), class_="findings"),
        leaders(frames, top=5),
    ])  # fmt: skip


def progress(studies: Sequence[StudyFrames]) -> go.Figure:
    """Best complete loss against training seconds spent so far, one line for each study."""
    import plotly.graph_objects as go

    fig = canvas(height=400)
    for colour, frames in zip(_colours(studies), studies, strict=True):
        spent, best = 0.0, math.inf
        x: list[float] = []
        y: list[float] = []
        for record in sorted(frames.own, key=lambda r: (r.finished_at or math.inf, r.number)):
            spent += record.seconds
            if leaderboard.finished_well(record) and _loss(record) < best:
                best = _loss(record)
                x, y = [*x, spent], [*y, best]
        if x:
            x, y = [*x, spent], [*y, best]
        fig.add_trace(
            go.Scatter(
                name=safe(frames.study.study, 60), mode="lines+markers", x=short(x), y=short(y),
                line={"color": colour, "shape": "hv", "width": 2}, marker={"size": 5},
            )
        )  # fmt: skip
    if not any(trace.x for trace in fig.data):
        raise Missing("No study has a complete trial yet.")
    fig.update_xaxes(title={"text": "seconds of training, all trials"}, rangemode="tozero")
    fig.update_yaxes(title={"text": "best loss so far"})
    return fig


def weights(studies: Sequence[StudyFrames]) -> go.Figure:
    """The importance of each knob in each study that has enough trials."""
    import plotly.graph_objects as go

    known = [(c, f) for c, f in zip(_colours(studies), studies, strict=True) if f.weights]
    if not known:
        raise Missing("No study has enough trials at the first rung to weigh its knobs.")
    names = list(dict.fromkeys(e.label for _, f in known for e in f.weights.dimensions))
    fig = canvas(height=110 + 34 * len(names))
    for colour, frames in known:
        shown = frames.weights.dimensions
        fig.add_trace(
            go.Scatter(
                name=safe(frames.study.study, 60), mode="markers",
                x=[e.share for e in shown], y=[safe(e.label, 40) for e in shown],
                error_x={"type": "data", "symmetric": False, "width": 0, "color": colour,
                         "array": [max(0.0, e.high - e.share) for e in shown],
                         "arrayminus": [max(0.0, e.share - e.low) for e in shown]},
                marker={"color": colour, "size": 11,
                        "symbol": ["circle" if e.decides else "circle-open" for e in shown]},
                hovertext=[f"{safe(e.label)}: {share(e.share)}" for e in shown], hoverinfo="text",
            )
        )  # fmt: skip
    fig.update_xaxes(tickformat=".0%")
    fig.update_yaxes(categoryorder="array", categoryarray=[safe(n, 40) for n in names[::-1]])
    return fig


def trials(studies: Sequence[StudyFrames]) -> go.Figure:
    """The last loss of every trial against its seconds; crosses did not complete."""
    fig = canvas(height=420, hovermode="closest")
    for colour, frames in zip(_colours(studies), studies, strict=True):
        seen = [r for r in frames.own if finite(r.eval_loss) and r.seconds > 0]
        fig.add_trace(
            scatter(sum(len(f.own) for f in studies))(
                name=safe(frames.study.study, 60), mode="markers",
                x=short(r.seconds for r in seen), y=short(r.eval_loss for r in seen),
                hovertext=[about(r) for r in seen], hoverinfo="text",
                marker={"color": colour, "size": 7, "opacity": 0.8,
                        "symbol": ["circle" if leaderboard.finished_well(r) else "x-thin-open"
                                   for r in seen]},
            )
        )  # fmt: skip
    if not any(trace.x for trace in fig.data):
        raise Missing("No trial has a loss yet.")
    fig.update_xaxes(title={"text": "seconds of training"}, type="log")
    fig.update_yaxes(title={"text": "last loss"})
    return fig


def _samples(studies: Sequence[StudyFrames]) -> Iterator[str]:
    """Prompts that several studies share, with what each study's best writer wrote."""
    written: dict[str, list[tuple[str, str]]] = {}
    references: dict[str, str] = {}
    for frames in studies:
        for sample in best_written(frames)[1]:
            references[sample.prompt] = sample.reference
            name = wording.clean(frames.study.study, limit=60)
            written.setdefault(sample.prompt, []).append((name, sample.generated))
    order = sorted(written, key=lambda prompt: -len(written[prompt]))
    for prompt in order[:MOST_SAMPLES]:
        answers = [("reference", references[prompt]), *written[prompt]]
        yield el(
            "article",
            el("div", el("h4", "prompt"), foreign(prompt), class_="prompt"),
            *(el("div", el("h4", name), foreign(said)) for name, said in answers),
            class_="sample",
        )
    if len(order) > MOST_SAMPLES:
        yield el("p", f"and {plural(len(order) - MOST_SAMPLES, 'prompt')} more")


def _colours(studies: Sequence[StudyFrames]) -> list[str]:
    return [PALETTE[k % len(PALETTE)] for k in range(len(studies))]
