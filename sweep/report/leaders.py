"""The leaderboard as an HTML table: the cells of the terminal's, with exact values beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sweep.report.frames import StudyFrames
from sweep.report.markup import Html, el, join, table
from sweep.results import leaderboard, wording
from sweep.results.leaderboard import MARKS
from sweep.store import TrialRecord

TOP = 20  # rows before the rest is folded away
SPARK_W, SPARK_H = 88, 22
WHY = 220  # characters


def leaders(frames: StudyFrames, top: int = TOP) -> Html:
    """The best rows, and all others folded away."""
    rows = frames.ranked
    shown, rest = rows[:top], rows[top:]
    parts = [_table(frames, shown, sparks=True)]
    if rest:
        more = el("summary", f"{wording.plural(len(rest), 'trial')} more")
        parts.append(el("details", more, _table(frames, rest, sparks=len(rest) <= 200)))
    return join(parts)


def _table(frames: StudyFrames, rows: Sequence[TrialRecord], sparks: bool) -> Html:
    low, high = _scale(frames, rows)
    exact = any(r.eval_accuracy is not None for r in rows)
    heads = ["", "trial", "loss", "vs base", *(["exact"] if exact else []),
             *(["curve"] if sparks else []), *(axis.label for axis in frames.axes),
             "tick", "time", "outcome", "why"]  # fmt: skip
    cells = [
        [
            el("td", MARKS.get(r.outcome, "?"), class_=f"mark {_known(r.outcome)}"),
            _number(str(r.number), r.number, "strong"),
            _number(wording.loss(r.eval_loss), r.eval_loss),
            _number(gain(frames.study.baseline_loss, r.eval_loss), _change(frames, r)),
            *([_number(_exact(r), r.eval_accuracy)] if exact else []),
            *([el("td", spark(frames, r, low, high), class_="spark")] if sparks else []),
            *(_value(r, axis.name) for axis in frames.axes),
            _number(f"{r.ticks}/{frames.study.ticks}", r.ticks),
            _number(wording.duration(r.seconds), r.seconds),
            el("td", r.outcome),
            el("td", wording.clean(leaderboard.why(r), limit=WHY), class_="why", dir="auto"),
        ]
        for r in rows
    ]
    return table([el("th", head, scope="col") for head in heads], cells, "leaders sortable")


def gain(baseline: float, loss: float | None) -> str:
    """A loss against the untouched base's: "−41 %"."""
    if loss is None or not math.isfinite(loss) or not baseline or not math.isfinite(baseline):
        return wording.NOTHING
    change = loss / baseline - 1
    return f"{'−' if change < 0 else '+'}{wording.share(abs(change))}"


def spark(frames: StudyFrames, record: TrialRecord, low: float, high: float) -> Html:
    """The evaluation curve from the untouched base on, as a small picture."""
    losses = [x for x in (frames.study.baseline_loss, *record.losses) if math.isfinite(x)]
    if len(losses) < 2:
        return Html("")
    step = (SPARK_W - 6) / max(frames.study.ticks, len(losses) - 1)
    spread = (high - low) or 1.0
    points = [
        (3 + k * step, 3 + (SPARK_H - 6) * (1 - min(max((x - low) / spread, 0.0), 1.0)))
        for k, x in enumerate(losses)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    end = el("circle", cx=f"{points[-1][0]:.1f}", cy=f"{points[-1][1]:.1f}", r="2")
    said = f"loss {wording.loss(losses[0])} to {wording.loss(losses[-1])}"
    return el("svg", el("title", said), el("polyline", points=line), end, role="img",
              width=str(SPARK_W), height=str(SPARK_H), class_=_known(record.outcome))  # fmt: skip


def _scale(frames: StudyFrames, rows: Sequence[TrialRecord]) -> tuple[float, float]:
    base = frames.study.baseline_loss
    seen = [x for r in rows for x in r.losses if math.isfinite(x)]
    known = [*seen, *([base] if math.isfinite(base) else [])] or [0.0]
    return min(known), base if math.isfinite(base) else max(known)


def _number(shown: str, exact: float | int | None, class_: str = "") -> Html:
    value = None if exact is None else repr(exact)
    return el("td", shown, class_=f"number {class_}".strip(), data_value=value)


def _value(record: TrialRecord, name: str) -> Html:
    value = record.params.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(wording.value(value), value)
    return el("td", wording.value(value), class_="number")


def _change(frames: StudyFrames, record: TrialRecord) -> float | None:
    base, loss = frames.study.baseline_loss, record.eval_loss
    return loss / base - 1 if loss is not None and base and math.isfinite(base) else None


def _exact(record: TrialRecord) -> str:
    return wording.NOTHING if record.eval_accuracy is None else wording.share(record.eval_accuracy)


def _known(outcome: str) -> str:
    return outcome if outcome in MARKS else "unknown"
