"""What a trial wrote for the evaluation prompts, beside the data and the untouched base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sweep.results import leaderboard
from sweep.results.wording import clean
from sweep.store import Store, TrialRecord
from trials.contract import InputError, Sample

TEXT_LIMIT = 2000  # characters of one text


def page(store: Store, uuid: str, records: Sequence[TrialRecord], number: int | None) -> Group:
    """The samples of a trial, or of the best one that has some. Raises `InputError`."""
    if number is not None and number not in {record.number for record in records}:
        raise InputError(f"There is no trial {number}; the last one is {len(records) - 1}.")
    numbers = [r.number for r in leaderboard.ranked(records)] if number is None else [number]
    found = ((n, written) for n in numbers if (written := store.samples(uuid, n)))
    whose, by_tick = next(found, (None, {}))
    base = store.baseline_samples(uuid)
    if whose is None and (number is not None or not base):
        which = "No trial has" if number is None else f"Trial {number} has no"
        raise InputError(
            f"{which} samples. Type samples=3 with the next sweep to have each complete trial "
            "answer three evaluation prompts."
        )
    own: Sequence[Sample] = next(reversed(by_tick.values()), base)
    before = {sample.prompt: sample.generated for sample in base}
    return Group(*(_sample(sample, before, whose) for sample in own))


def _sample(sample: Sample, before: Mapping[str, str], whose: int | None) -> Table:
    """Each text under its name, whole and in lines."""
    texts = {"prompt": sample.prompt, "reference": sample.reference}
    if sample.prompt in before:
        texts["untouched base"] = before[sample.prompt]
    if whose is not None:
        texts[f"trial {whose}"] = sample.generated
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in texts.items():
        shown = clean(text, limit=TEXT_LIMIT, lines=True)
        grid.add_row(name, Text(shown, "bold" if name.startswith("trial") else ""))
    grid.add_row("", "")
    return grid
