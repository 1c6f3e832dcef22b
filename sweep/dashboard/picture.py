"""A trial's learning curve as a picture: SVG, a few kilobytes, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from sweep.results import wording
from sweep.store import TrialRecord
from trials.contract import CurvePoint

WIDTH, HEIGHT = 480, 360  # pixels; shown small, so its letters are large
LEFT, RIGHT, TOP, BOTTOM = 64, 464, 44, 304  # of the plot within
MOST = 300  # points drawn of a training curve
TRAIN, EVAL, BASE, INK, PAPER = "#9aa5b1", "#1f77b4", "#d62728", "#333333", "#ffffff"
LINES = {"untouched base": BASE, "evaluation loss": EVAL, "training loss": TRAIN}
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """What the plot spans."""

    examples: float
    low: float
    high: float

    def place(self, x: float, y: float) -> str:
        """A point's pixels; what lies above the plot is drawn at its edge."""
        across = LEFT + (RIGHT - LEFT) * x / self.examples
        share = (min(y, self.high) - self.low) / (self.high - self.low)
        return f"{across:.1f},{BOTTOM - (BOTTOM - TOP) * share:.1f}"


def learning_curve(
    record: TrialRecord, marks: Sequence[int], train: Sequence[CurvePoint], baseline: float
) -> str:
    """The losses of a trial; `marks` are the examples seen at tick 1, 2, ..."""
    measured = _finite(zip(marks, record.losses, strict=False))
    trained = _finite((point.examples, point.train_loss) for point in train)
    thinned = trained[:: max(1, math.ceil(len(trained) / MOST))]
    start = _finite(iter([(0, baseline)]))
    frame = _frame([*start, *measured], trained, marks)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="15">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        _text(LEFT - 48, 26, _title(record)),
        *_axes(frame),
        *_baseline(frame, start),
        _line(frame, thinned, TRAIN, 1),
        _line(frame, [*start, *measured], EVAL, 2.5),
        *(_dot(frame, point) for point in measured),
        "</svg>", "",
    ])  # fmt: skip


def _finite(points: Iterator[tuple[int, float]] | zip[tuple[int, float]]) -> Points:
    return [(float(x), y) for x, y in points if math.isfinite(y)]


def _frame(measured: Points, trained: Points, marks: Sequence[int]) -> Frame:
    seen = [y for _, y in measured] or [y for _, y in trained] or [1.0]
    low = min([*seen, *(y for _, y in trained)])
    high = max(seen)  # a wild training step must not flatten the rest
    spread = (high - low) or abs(high) or 1.0
    floor = low - 0.05 * spread
    bottom = max(floor, 0.0) if low >= 0 else floor
    return Frame(float(max(marks, default=1)), bottom, high + 0.05 * spread)


def _title(record: TrialRecord) -> str:
    return wording.clean(
        f"trial {record.number} {record.outcome}, loss {wording.loss(record.eval_loss)}: "
        f"{wording.params(record.params)}",
        limit=58,
    )


def _axes(frame: Frame) -> Iterator[str]:
    yield (f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="{INK}"/>')
    for share in (0.0, 0.5, 1.0):
        loss = frame.low + share * (frame.high - frame.low)
        height = BOTTOM - share * (BOTTOM - TOP)
        yield _text(LEFT - 6, height + 4, wording.loss(loss), anchor="end")
        across = LEFT + share * (RIGHT - LEFT)
        anchor = "end" if share == 1.0 else "middle"
        yield _text(across, BOTTOM + 20, f"{frame.examples * share:,.0f}", anchor=anchor)
    yield _text((LEFT + RIGHT) / 2, HEIGHT - 12, "examples", anchor="middle")
    for row, (name, colour) in enumerate(LINES.items()):
        yield _text(RIGHT, TOP + 30 + 20 * row, name, colour=colour, anchor="end")


def _baseline(frame: Frame, start: Points) -> Iterator[str]:
    for _, loss in start:
        first, last = frame.place(0, loss), frame.place(frame.examples, loss)
        yield (f'<polyline points="{first} {last}" fill="none" stroke="{BASE}" '
               'stroke-dasharray="5 4"/>')  # fmt: skip


def _line(frame: Frame, points: Points, colour: str, width: float) -> str:
    placed = " ".join(frame.place(x, y) for x, y in points)
    return f'<polyline points="{placed}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _dot(frame: Frame, point: tuple[float, float]) -> str:
    x, _, y = frame.place(*point).partition(",")
    return f'<circle cx="{x}" cy="{y}" r="4" fill="{EVAL}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = INK) -> str:
    return (f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}"'
            f'>{escape(text)}</text>')  # fmt: skip
