"""The sections of a study's report: a title, a sentence or two, a figure or a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.report.figures import FIGURES, Missing
from sweep.report.figures.cost import COSTS, pareto
from sweep.report.frames import StudyFrames
from sweep.report.importance import Importances
from sweep.report.leaders import leaders
from sweep.report.markup import Html, el, join, table
from sweep.report.surroundings import surroundings
from sweep.report.writing import writing
from sweep.results import summary, wording
from sweep.results.wording import plural, share
from sweep.store import TrialRecord
from sweep.store.runs import Used

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_ON_FRONT = 15  # rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page; `specs` are its figures' JSON by element id."""

    key: str
    link: str  # its title in the navigation
    title: str
    body: Html
    specs: Mapping[str, str]


def sections(frames: StudyFrames, prefix: str = "") -> list[Section]:
    """All sections in the order in which one asks. `prefix` keeps several studies' ids apart."""
    made = (
        ("leaderboard", "Leaderboard", "Leaderboard", _leaderboard),
        ("importance", "Importance", "What mattered", _importance),
        ("parallel_coordinates", "Parallel", "All knobs at once", _parallel),
        ("slices", "Slices", "Each knob", _slices),
        ("contour", "Contour", "The two that matter most", _contour),
        ("learning_curves", "Curves", "Learning curves", _curves),
        ("samples", "Samples", "What the model writes now", writing),
        ("cost", "Cost", "What it costs", _cost),
        ("timeline", "Timeline", "Workers and slots", _timeline),
        ("setup", "Setup", "Configuration and versions", surroundings),
    )
    return [_section(frames, *named, prefix) for named in made]


Body = Callable[[StudyFrames], Iterator[str]]


def _section(
    frames: StudyFrames, name: str, link: str, title: str, body: Body, prefix: str
) -> Section:
    """The section's words, with its figure where the words leave a place for it."""
    key = f"{prefix}{name}"
    specs: dict[str, str] = {}
    parts = [
        drawing(lambda: FIGURES[name](frames), key, specs) if part is FIGURE else part
        for part in body(frames)
    ]
    return Section(key=key, link=link, title=title, body=join(parts), specs=specs)


FIGURE = Html("<!-- here goes the figure -->")


def drawing(draw: Callable[[], go.Figure], key: str, specs: dict[str, str]) -> Html:
    """A figure's place on the page, its JSON into `specs`; a sentence where it cannot be drawn."""
    try:
        fig = draw()
    except Missing as missing:
        return el("p", str(missing), class_="missing")
    specs[key] = fig.to_json()
    wait = el("p", "This figure needs JavaScript. The tables do not.", class_="missing")
    style = f"min-height:{fig.layout.height or 400}px"
    return el("div", el("div", wait, class_="figure", id=f"figure-{key}", style=style,
                        data_figure=key), class_="scroll figures")  # fmt: skip


def _leaderboard(frames: StudyFrames) -> Iterator[str]:
    yield el("p", "Complete trials by loss, then the others by how far they came and why not on. "
                  "The whole table is also in trials.csv.")  # fmt: skip
    yield leaders(frames) if frames.records else el("p", "No trial yet.", class_="missing")


def _importance(frames: StudyFrames) -> Iterator[str]:
    weights = frames.weights
    counts = [plural(weights.trials, "trial")]
    counts += [f"{weights.pruned:,} of them pruned later"] if weights.pruned else []
    counts += [f"{weights.diverged} diverged, counted as worst"] if weights.diverged else []
    rung = f"tick {frames.study.first_rung} of {frames.study.ticks}"
    yield el("p", f"How much each knob decided the loss at the first rung ({rung}), the one number "
                  f"that pruned and complete trials share: {', '.join(counts)}. Blue is "
                  "beyond chance.")  # fmt: skip
    yield FIGURE
    if weights:
        yield _weights(weights)
    yield el("details", el("summary", "How this is judged"), el("p", JUDGED))


def _weights(weights: Importances) -> Html:
    """The figure's numbers, for those who cannot see it."""
    heads = ("knob", "share", "80 % of random halves", "as much by chance")
    rows = [
        [
            el("td", e.label, class_="strong" if e.decides else None),
            el("td", share(e.share), class_="number", data_value=repr(e.share)),
            el("td", f"{share(e.low)} to {share(e.high)}", class_="number"),
            el("td", f"{e.by_chance} of the time", class_="number", data_value=repr(e.p)),
        ]
        for e in weights.dimensions
    ]
    return table([_head(head, number=head != "knob") for head in heads], rows)


def _head(text: str, *, number: bool) -> Html:
    return el("th", text, scope="col", class_="number" if number else None)


JUDGED = (
    "The shares are Optuna's PED-ANOVA: how differently the best trials are spread along a knob "
    "than all trials are. It is computed again for random halves of the trials, and for losses "
    "that were shuffled among the trials: what shuffling shows as well is chance. With several "
    "knobs the bar is raised, so that one false word in twenty reports remains. An early loss "
    "hardly depends on the rank: a knob that is silent here may still matter at the end. Values "
    "of a knob are compared through every pair of trials, at the last tick that both reached, "
    "after what the other knobs and the time of proposing explain."
)


def _parallel(frames: StudyFrames) -> Iterator[str]:
    yield el("p", "One line is one trial; the bluer, the lower its loss. Trials that are not "
                  "complete are dimmed. Drag along an axis to keep the lines that pass there; "
                  "click beside the mark to let go; drag a name to move its axis.")  # fmt: skip
    yield FIGURE


def _slices(frames: StudyFrames) -> Iterator[str]:
    yield el("p", "Grey: the loss of every trial at the first rung. Blue: complete trials at their "
                  "end. What looks like an effect of one knob may be another's, where the sampler "
                  "moved both.")  # fmt: skip
    yield FIGURE


def _contour(frames: StudyFrames) -> Iterator[str]:
    yield el("p", "The loss at the first rung, smoothed between the trials (the dots), and left "
                  "blank where no trial was near. The bluer, the lower.")  # fmt: skip
    yield FIGURE


def _curves(frames: StudyFrames) -> Iterator[str]:
    pruned = sum(r.outcome == "pruned" for r in frames.records)
    rule = wording.clean(frames.attributes.get("pruner", "the pruner"), limit=40)
    said = f"The pruner ({rule}) stopped {plural(pruned, 'trial')}; dotted lines are the ticks at "
    said += "which it did, with how many. Point at a cross to read why."
    begin = "Evaluation loss from the untouched base on. "
    yield el("p", begin + (said if pruned else "The pruner stopped none."))
    yield FIGURE


def _cost(frames: StudyFrames) -> Iterator[str]:
    for name, text in summary.costs(frames.records, frames.study.ticks):
        yield el("p", el("b", f"{name}: "), text)
    yield el("p", el("b", "all runs: "), _used(frames.used))
    if summary.at_once(frames.records) > 1:
        yield el("p", "Trials that share a device wait for each other: their seconds depend on how "
                      "many there were.")  # fmt: skip
    yield FIGURE
    fronts = {name: {r.number for r in pareto(frames.own, of)} for name, of, _ in COSTS}
    on = [r for r in frames.ranked if any(r.number in front for front in fronts.values())]
    if on:
        yield el("p", "Of these trials none is both cheaper and better:")
        yield _front(on[:MOST_ON_FRONT], fronts)


def _used(used: Used) -> str:
    wall, device = wording.duration(used.seconds), wording.duration(used.device_seconds)
    took = f"{wall} by the clock, {device} of device time"
    return took if used.money is None else f"{took}, money {wording.amount(used.money)}"


def _front(records: Sequence[TrialRecord], fronts: Mapping[str, set[int]]) -> Html:
    """The trials on the Pareto fronts, with what each costs."""
    heads = ("trial", "loss", *fronts)
    rows = [
        [
            el("td", str(r.number), class_="number strong"),
            el("td", wording.loss(r.eval_loss), class_="number", data_value=repr(r.eval_loss)),
            *(
                el("td", said(of(r)) if of(r) > 0 else wording.NOTHING, class_="number",
                   data_value=repr(of(r)))
                for _, of, said in COSTS
            ),
            el("td", ", ".join(name.split(",")[0] for name in fronts if r.number in fronts[name])),
        ]
        for r in records
    ]  # fmt: skip
    last = _head("on the front of", number=False)
    return table([*(_head(head, number=True) for head in heads), last], rows)


def _timeline(frames: StudyFrames) -> Iterator[str]:
    workers = sorted({span.worker for span in frames.attempts})
    yield el("p", f"{plural(len(frames.attempts), 'attempt')} on {plural(len(workers), 'worker')}. "
                  "Long idle times between two runs are folded away.")  # fmt: skip
    yield FIGURE
