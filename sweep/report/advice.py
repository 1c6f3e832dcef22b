"""What to try next: a wider range, a longer budget, more trials, fewer knobs; with commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sweep.report.dimensions import Axis
from sweep.report.frames import StudyFrames
from sweep.report.importance import LEAST_TRIALS
from sweep.results.summary import DEFAULT_STORAGE, quoted, typed
from sweep.results.wording import here, plural, value
from sweep.store import TrialRecord

MOST = 3
EDGE = 0.05  # of a range, that counts as its end
STILL_FALLING = 0.05  # of the whole gain, in the last tick alone
NARROW = 5  # best trials that say where the good values lie


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A suggestion, and what to type for it, if a command does it."""

    text: str
    command: str | None = None


def next_steps(frames: StudyFrames, best: TrialRecord) -> list[Step]:
    """At most three, the weightiest first."""
    return list(islice(_steps(frames, best), MOST))


def without_a_best(frames: StudyFrames) -> Iterator[Step]:
    """Where no trial is complete."""
    outcomes = {record.outcome for record in frames.records}
    if frames.alive or not frames.records:
        return
    if "infeasible" in outcomes:
        yield Step(text="What does not fit in memory may fit with train.micro_batch_size=1 or a "
                        "smaller data.max_length.")  # fmt: skip
    if "diverged" in outcomes:
        yield Step(text="Trials diverge: search lower learning rates.")
    if "pruned" in outcomes:
        again = (f"study={frames.study.study}_again", "pruner=none")
        yield Step(text="Let trials run to their end.", command=_same_command(frames, *again))
    if "failed" in outcomes:
        yield Step(text="See logs/ in the study's folder for the whole traceback of each failure.")


def _steps(frames: StudyFrames, best: TrialRecord) -> Iterator[Step]:
    yield from _at_the_edge(frames, best)
    if _still_falling(frames, best):
        examples = frames.facts.get("budget.examples", "null")
        more = f"budget.examples={2 * int(examples)}" if examples.isdigit() else None
        yield Step(
            text="The best trial's loss still falls at its last tick: give trials a larger budget.",
            command=_from_winner(frames, more) if more else None,
        )
    if not frames.weights.deciding and frames.axes:
        total = max(2 * frames.study.n_trials, 4 * LEAST_TRIALS)
        yield Step(
            text=f"More trials, to see what matters: {plural(total, 'trial')} in place of "
            f"{frames.study.n_trials}.",
            command=_same_command(frames, f"n_trials={total}"),
        )
    yield from _narrower(frames)
    yield Step(
        text="Ask the next question from this winner: another search space, or another seed to see "
        "how much luck there was.",
        command=_from_winner(frames, "+search=schedule"),
    )


def _at_the_edge(frames: StudyFrames, best: TrialRecord) -> Iterator[Step]:
    """Numbers whose best value lies at an end of its range; those that matter first."""
    order = {entry.name: k for k, entry in enumerate(frames.weights.dimensions)}
    axes = sorted(frames.axes, key=lambda a: order.get(a.name, len(order)))
    ends = [(axis, side) for axis in axes if (side := _side(axis, best.params.get(axis.name)))]
    if not ends:
        return
    said = ", ".join(
        f"{axis.label} {side} {value(axis.high if side == 'above' else axis.low)}"
        for axis, side in ends
    )
    words = [word for axis, side in ends if (word := _widened(axis, side == "above"))]
    yield Step(
        text=f"The best values lie at the end of what was searched. Look further: {said}.",
        command=_from_winner(frames, *words) if words else None,
    )


def _side(axis: Axis, chosen: Any) -> str | None:
    """The end of its range at which a number lies, if there is anything beyond."""
    low, high = axis.span
    if not axis.numeric or isinstance(chosen, bool) or chosen is None or high <= low:
        return None
    place = axis.place(chosen)
    if high - place <= EDGE * (high - low):
        return "above"
    return "below" if place - low <= EDGE * (high - low) and axis.low > 0 else None


def _widened(axis: Axis, up: bool) -> str | None:
    """The axis again, moved over its end, as one would type it."""
    if axis.conditional:
        return None
    factor = (2 if axis.discrete else 4) if axis.log else 1.5
    if axis.discrete:
        last = axis.levels[-1] if up else axis.levels[0]
        further = [last * factor**k if up else last / factor**k for k in (0, 1, 2)]
        if isinstance(last, int) and any(x != int(x) or x < 1 for x in further):
            return None
        listed = ",".join(value(int(x) if isinstance(last, int) else x) for x in sorted(further))
        return f"{axis.name}=choice({listed})"
    low, high = (axis.high / 2, axis.high * factor) if up else (axis.low / factor, axis.low * 2)
    return _interval(axis, low, high)


def _interval(axis: Axis, low: float, high: float) -> str:
    interval = f"interval({low:.2g},{high:.2g})"
    return f"{axis.name}={f'tag(log,{interval})' if axis.log else interval}"


def _narrower(frames: StudyFrames) -> Iterator[Step]:
    """A continuum that decides, around the best trials' values."""
    by_name = {axis.name: axis for axis in frames.axes}
    for entry in frames.weights.deciding:
        axis = by_name[entry.name]
        good = [r.params[axis.name] for r in frames.ranked[:NARROW] if axis.name in r.params]
        if axis.discrete or len(good) < NARROW:
            continue
        low, high = min(good), max(good)
        if axis.place(high) - axis.place(low) >= 0.7 * (axis.span[1] - axis.span[0]):
            continue
        yield Step(
            text=f"{axis.label} between {value(low)} and {value(high)} only: the best {NARROW} "
            "trials lie there.",
            command=_from_winner(frames, _interval(axis, low, high)),
        )


def _still_falling(frames: StudyFrames, best: TrialRecord) -> bool:
    if len(best.losses) < 3:
        return False
    gain = frames.study.baseline_loss - best.losses[-1]
    return gain > 0 and best.losses[-2] - best.losses[-1] > STILL_FALLING * gain


def _from_winner(frames: StudyFrames, *overrides: str) -> str:
    """The best configuration with something else searched, as a study of its own."""
    name = frames.study.study
    words = [f"+recipe={name}", *_elsewhere(frames), *overrides, f"study={name}_next"]
    return " ".join(["python -m sweep", *map(quoted, words)])


def _same_command(frames: StudyFrames, *overrides: str) -> str | None:
    """The command that made the study, with other words for the same settings."""
    command = frames.attributes.get("command")
    if not isinstance(command, str):
        return None
    for override in overrides:
        command = re.sub(rf" {re.escape(override.partition('=')[0])}=\S+", "", command)
    return " ".join([command, *map(quoted, overrides)])


def _elsewhere(frames: StudyFrames) -> list[str]:
    folder = here(Path(frames.study.results_dir))
    words = [] if folder == "results" else [f"results_dir={folder}"]
    default = f"sqlite:///{folder}/sweep.db"
    shown = typed(frames.storage) if frames.storage else DEFAULT_STORAGE
    return words if shown in (default, DEFAULT_STORAGE) else [*words, f"storage={shown}"]
