"""Which examples each optimizer step of a trial takes, and where its ticks fall.

Positions 0 .. budget-1 are the trial's order of examples, the same for all trials of a study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from trials.contract import TrialBudget, tick_examples

WINDOW = 8  # batches sorted together by length: long enough to save padding, short against a tick


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    positions: tuple[int, ...]
    examples: int  # seen once this step is done
    ticks: tuple[int, ...]  # reached with this step; 1 .. budget.ticks


def plan(
    budget: TrialBudget,
    batch_size: int,
    *,
    seed: int = 0,
    length: Callable[[int], int] | None = None,
) -> list[Step]:
    """The steps of a trial. With `length` (of the example at a position), batches are alike in it.

    Grouping sorts within windows that end at ticks, so that every tick has seen the same examples
    with and without it; the order of the batches in a window is drawn by (seed, position).
    """
    ends = tick_examples(budget, batch_size)
    steps: list[Step] = []
    seen = 0
    for end in dict.fromkeys(ends):
        batches = list(_batches(range(seen, end), batch_size, seed, length))
        for batch in batches:
            seen += len(batch)
            reached = tuple(k + 1 for k, at in enumerate(ends) if at == seen == end)
            steps.append(Step(batch, seen, reached))
    return steps


def _batches(
    positions: Sequence[int], size: int, seed: int, length: Callable[[int], int] | None
) -> Iterator[tuple[int, ...]]:
    if length is None:
        yield from _cut(positions, size)
        return
    for window in _cut(positions, WINDOW * size):
        alike = sorted(window, key=lambda position: (length(position), position))
        batches = list(_cut(alike, size))
        Random(f"{seed} {window[0]}").shuffle(batches)
        yield from batches


def _cut(items: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])
