"""The answer in words: what to choose, what decides, what cannot be told apart, what to try next.

Says nothing that chance explains as well, and says so where that is the case.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweep.report import advice
from sweep.report.advice import Step
from sweep.report.dimensions import Axis
from sweep.report.frames import StudyFrames
from sweep.report.importance import LEAST_TRIALS, SURE, Importances
from sweep.report.standing import Comparison, compare, standings
from sweep.results import wording
from sweep.results.wording import clean, loss, plural, share, value
from sweep.store import TrialRecord

MOST_ALIKE = 3  # sentences on knobs whose values are alike, before one sentence names them all
CLOSE = 0.02  # of the gain over the untouched base, within which one seed says little


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Sentences in plain text; none of them is markup."""

    headline: str
    choice: tuple[tuple[str, str], ...]  # label and value of the best configuration
    findings: tuple[str, ...]
    next_steps: tuple[Step, ...]


def answer(frames: StudyFrames) -> Answer:
    """What the study says, in the order in which one asks."""
    best = frames.best
    if best is None:
        return Answer(
            headline=_nothing_yet(frames),
            choice=(),
            findings=tuple(_why_nothing(frames)),
            next_steps=tuple(advice.without_a_best(frames)),
        )
    labels = {axis.name: axis.label for axis in frames.axes}
    return Answer(
        headline=_headline(frames, best),
        choice=tuple((labels.get(name, name), value(v)) for name, v in best.params.items()),
        findings=tuple(_findings(frames, best)),
        next_steps=tuple(advice.next_steps(frames, best)),
    )


def _headline(frames: StudyFrames, best: TrialRecord) -> str:
    base = frames.study.baseline_loss
    gain = wording.below(base, best.eval_loss)
    if math.isfinite(base) and best.eval_loss is not None and best.eval_loss >= base:
        return (
            f"No trial is better than the untouched base: the best complete one, trial "
            f"{best.number}, has loss {loss(best.eval_loss)}, the base {loss(base)}."
        )
    so_far = " so far" if frames.alive else ""
    compared = f", {gain} the untouched base's {loss(base)}" if gain != wording.NOTHING else ""
    return f"Trial {best.number} is the best{so_far}: loss {loss(best.eval_loss)}{compared}."


def _findings(frames: StudyFrames, best: TrialRecord) -> Iterator[str]:
    yield from _decides(frames.weights)
    yield from _told_apart(frames, best)
    yield from _runner_up(frames, best)
    yield from _exact(frames, best)


def _decides(weights: Importances) -> Iterator[str]:
    """Which dimensions matter, as far as that can be said."""
    if not weights:
        few = weights.trials < LEAST_TRIALS
        yield (
            f"{plural(weights.trials, 'trial')} with a loss at the first rung "
            f"{'is' if weights.trials == 1 else 'are'} too few to say which knob matters."
            if few
            else "The trials do not differ enough to say which knob matters."
        )
        return
    deciding, likely = weights.deciding, [i for i in weights.dimensions if i.likely]
    seen = f"of what {plural(weights.trials, 'trial')} show at the first rung"
    if deciding:
        others = [f"{_spoken(i.name)} ({_range(i.low, i.high)})" for i in deciding[1:]]
        verb = "decides most" if others else "decides"
        also = f", then {_list(others)}" if others else ""
        told = f"{_spoken(deciding[0].name)} {verb}: {_range(deciding[0].low, deciding[0].high)} "
        yield _capital(f"{told}{seen}{also}.")
    elif likely:
        names = _capital(_list([_spoken(i.name) for i in likely]))
        yield (
            f"{names} may matter most, but among {plural(len(weights.dimensions), 'knob')} and "
            f"{plural(weights.trials, 'trial')} that could still be chance."
        )
    else:
        yield (
            f"From {plural(weights.trials, 'trial')} it cannot be said which knob matters: "
            "shuffled losses show as much."
        )
    silent = [i.label for i in weights.dimensions if not i.likely]
    if silent and (deciding or likely):
        yield f"No effect beyond chance shows at the first rung for {_list(silent)}."


SPOKEN = {
    "batch_size": "the batch size",
    "dropout": "dropout",
    "epochs": "the number of epochs",
    "learning_rate": "the learning rate",
    "max_grad_norm": "gradient clipping",
    "optimizer": "the optimizer",
    "r": "the rank",
    "scheduler": "the schedule",
    "target_modules": "the choice of target modules",
    "warmup": "the warm-up",
    "weight_decay": "weight decay",
}


def _spoken(name: str) -> str:
    """A dimension as a sentence names it."""
    return SPOKEN.get(name.rpartition(".")[2], name)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _range(low: float, high: float) -> str:
    texts = [share(low).removesuffix(" %"), share(high)]
    return f"{texts[0]} to {texts[1]}" if low < high else texts[1]


def _told_apart(frames: StudyFrames, best: TrialRecord) -> Iterator[str]:
    """For each knob with a few values: the best trial's value against the others."""
    standing = standings(frames.own)
    by_name = {axis.name: axis for axis in frames.axes}
    adjust = [by_name[entry.name] for entry in frames.weights.dimensions]
    deciding = {entry.name for entry in frames.weights.deciding}
    alike: list[tuple[Axis, str]] = []
    for axis in frames.axes:
        if axis.discrete and len(axis.levels) > 1 and axis.name in best.params:
            found = compare(frames.own, standing, axis, best.params[axis.name], adjust)
            if any(_apart(c, found) for c in found):
                yield _comparison(axis, best.params[axis.name], found)
            elif axis.name in deciding:
                yield f"Which {axis.label} is best cannot be said: no two values differ surely."
            elif any(c.p is not None for c in found):
                alike.append((axis, _comparison(axis, best.params[axis.name], found)))
            else:
                yield f"Too few trials share a value of {axis.label} to compare them."
    if len(alike) <= MOST_ALIKE:
        yield from (sentence for _, sentence in alike)
    else:
        yield f"The values of {_list([axis.label for axis, _ in alike])} cannot be told apart."


def _apart(comparison: Comparison, among: Sequence[Comparison]) -> bool:
    """Whether two values differ beyond chance, though several were compared."""
    judged = sum(c.p is not None for c in among)
    return comparison.p is not None and comparison.p <= SURE / judged


def _comparison(axis: Axis, chosen: object, found: Sequence[Comparison]) -> str:
    same = [c.other for c in found if c.p is not None and not _apart(c, found)]
    better = [c.other for c in found if _apart(c, found) and c.better > 0]
    worse = [c.other for c in found if _apart(c, found) and c.better < 0]
    few = [c.other for c in found if c.p is None]
    parts = []
    if same:
        parts.append(f"{_values(sorted([chosen, *same], key=axis.place))} cannot be told apart")
    if better:
        parts.append(f"{value(chosen)} is better than {_values(better)}")
    if worse:
        stands = "stands" if len(worse) == 1 else "stand"
        parts.append(f"{_values(worse)} usually {stands} better than the best trial's")
    if few:
        parts.append(f"too few trials had {_values(few, 'or')} to say")
    return f"{axis.label} {'; '.join(parts)}."


def _values(found: Sequence[object], word: str = "and") -> str:
    return _list([value(item) for item in found], word)


def _runner_up(frames: StudyFrames, best: TrialRecord) -> Iterator[str]:
    """A second that is so near that another seed might turn them round."""
    complete = [r for r in frames.ranked if r.outcome == "complete" and r in frames.own]
    if len(complete) < 2:
        yield "Only one trial is complete, so nothing at the end compares with it."
        return
    second, base = complete[1], frames.study.baseline_loss
    gap = (second.eval_loss or 0.0) - (best.eval_loss or 0.0)
    gain = base - (best.eval_loss or 0.0)
    if gain > 0 and gap <= CLOSE * gain:
        yield (
            f"Trial {second.number} ({wording.params(second.params)}) is only {gap:.2g} behind; "
            "each configuration was trained once, so another seed might turn the two round."
        )


def _exact(frames: StudyFrames, best: TrialRecord) -> Iterator[str]:
    before, after = frames.study.baseline_accuracy, best.eval_accuracy
    if before is not None and after is not None and max(before, after) >= 0.005:
        yield f"Completions right to the last token: {share(before)} before, {share(after)} after."


def _nothing_yet(frames: StudyFrames) -> str:
    if not frames.records:
        return "No trial has started yet." if frames.alive else "No trial has been started."
    if any(r.outcome == "running" for r in frames.records) and frames.alive:
        return "No trial is complete yet."
    return "There is nothing to choose: no trial is complete."


def _why_nothing(frames: StudyFrames) -> Iterator[str]:
    counts = Counter(r.outcome for r in frames.records)
    if not counts:
        return
    told = ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common())
    yield f"{plural(len(frames.records), 'trial')}: {told}."
    reasons = Counter(_kind(r.reason) for r in frames.records if r.reason and r.outcome == "failed")
    if reasons:
        reason, often = reasons.most_common(1)[0]
        yield f"The most frequent failure, {plural(often, 'time')}: {reason}"


def _kind(reason: str | None) -> str:
    return clean((reason or "").splitlines()[0], limit=300)


def _list(names: Sequence[str], word: str = "and") -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {word} {names[-1]}"
