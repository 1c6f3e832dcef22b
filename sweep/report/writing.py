"""Samples: prompts with what the data says, what the untouched base and the best trial write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sweep.report.frames import StudyFrames
from sweep.report.markup import Html, el, foreign
from sweep.store import TrialRecord
from trials.contract import Sample

MOST = 12  # prompts


def writing(frames: StudyFrames) -> Iterator[str]:
    """The same prompts, answered by the untouched base and by the best trial that has samples."""
    chosen, own = best_written(frames)
    if chosen is None and not frames.baseline_samples:
        yield el("p", "No samples were written: samples=3 has each complete trial answer three "
                      "evaluation prompts.", class_="missing")  # fmt: skip
        return
    whose = f"trial {chosen.number}" if chosen else ""
    if chosen and (frames.best is None or chosen.number != frames.best.number):
        whose += " (the best that wrote any)"
    also = f", and what {whose} writes" if chosen else ""
    yield el("p", "Greedy answers to evaluation prompts: what the data says, what the untouched "
                  f"base writes{also}.")  # fmt: skip
    base = {sample.prompt: sample for sample in frames.baseline_samples}
    for sample in (own or frames.baseline_samples)[:MOST]:
        yield _sample(sample, base.get(sample.prompt), whose if own else None)


def best_written(frames: StudyFrames) -> tuple[TrialRecord | None, Sequence[Sample]]:
    """The best trial that wrote samples, and its last ones."""
    last = {number: tick for number, tick in sorted(frames.samples_by_tick)}
    chosen = next((record for record in frames.ranked if record.number in last), None)
    if chosen is None:
        return None, ()
    return chosen, frames.samples_by_tick[chosen.number, last[chosen.number]]


def _sample(sample: Sample, base: Sample | None, whose: str | None) -> Html:
    answers = [("reference", sample.reference, False)]
    if base is not None:
        answers.append(("untouched base", base.generated, _same(base)))
    if whose is not None:
        answers.append((whose, sample.generated, _same(sample)))
    return el(
        "article",
        el("div", el("h4", "prompt"), foreign(sample.prompt), class_="prompt"),
        *(el("div", el("h4", name, el("span", " ✓ exact", class_="exact") if right else None),
             foreign(text)) for name, text, right in answers),
        class_="sample",
    )  # fmt: skip


def _same(sample: Sample) -> bool:
    return sample.generated.strip() == sample.reference.strip()
