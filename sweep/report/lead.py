"""The top of a study's report: what to choose, how sure that is, what to try next, four numbers."""

from __future__ import annotations

import math

from sweep.report.answer import answer
from sweep.report.frames import StudyFrames
from sweep.report.leaders import gain
from sweep.report.markup import Html, el, join
from sweep.results import leaderboard, wording


def lead(frames: StudyFrames) -> Html:
    """The answer at the top: what to choose, how sure that is, what to try next."""
    found = answer(frames)
    chips = [el("span", el("span", name, class_="name"), el("b", value), class_="chip")
             for name, value in found.choice]  # fmt: skip
    steps = [
        el("li", el("span", step.text), el("code", step.command) if step.command else None)
        for step in found.next_steps
    ]
    return join([
        el("p", found.headline, class_="headline"),
        el("p", el("span", "Use", class_="use"), *chips, class_="chips") if chips else None,
        el("ul", *(el("li", said) for said in found.findings), class_="findings"),
        el("div", el("h3", "Try next"), el("ol", *steps), class_="next") if steps else None,
        _tiles(frames),
    ])  # fmt: skip


def _tiles(frames: StudyFrames) -> Html:
    best, study = frames.best, frames.study
    done = sum(leaderboard.counts_towards_total(r) for r in frames.records)
    known = math.isfinite(study.baseline_loss)
    tiles = [
        ("best loss", wording.loss(best.eval_loss) if best else wording.NOTHING,
         f"{gain(study.baseline_loss, best.eval_loss)} against the base" if best else ""),
        ("untouched base", wording.loss(study.baseline_loss) if known else wording.NOTHING,
         wording.clean(study.model, limit=40)),
        ("trials", f"{done} of {study.n_trials}", _outcomes(frames)),
        ("wall clock", wording.duration(study.seconds), wording.clean(study.device, limit=40)),
    ]  # fmt: skip
    return el("dl", *(
        el("div", el("dt", name), el("dd", value), el("dd", more, class_="more"))
        for name, value, more in tiles
    ), class_="tiles")  # fmt: skip


def _outcomes(frames: StudyFrames) -> str:
    counts: dict[str, int] = {}
    for record in frames.records:
        counts[record.outcome] = counts.get(record.outcome, 0) + 1
    return ", ".join(f"{n} {wording.clean(outcome)}" for outcome, n in counts.items())
