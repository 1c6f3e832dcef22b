"""How many rows each slot gives to a clock, and what is padded for it.

A trial's `micro_batch_size` is an upper bound, and its `packing` changes nothing: neither changes a
result. What is chosen never depends on what the device found out, so that a sweep can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from trials.engines.packed.corpus import TILE, Corpus, Padded, Ragged, Rows
from trials.engines.packed.seat import Seat
from trials.engines.packed.size import COARSE, clock_tokens, rounded
from trials.training.batches import Limit

Counts = dict[int, int]  # slot -> rows
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Shapes(Protocol):
    """What a clock computes."""

    def choose(self, seats: Sequence[Seat]) -> tuple[Padded | Ragged, Counts]:
        """The shape of the next clock, and the rows of each slot: 0 for one that must wait."""

    def rehearsed(self, tokens: int, corpus: Corpus) -> tuple[Padded | Ragged, list[Rows | None]]:
        """A clock of about so many tokens of the first slots."""

    def shrink(self) -> bool:
        """After a clock that did not fit into memory: less at once. False: it was the least."""

    def restore(self) -> None:
        """As much as at first, when the trial that did not fit is gone."""


class PaddedShapes:
    """As many rows of one width for every slot, up to the last that is taken.

    Few rows waste less where batch sizes differ, many rows use the device better: the number that
    trains most tokens per token computed is taken, each clock charged with a fixed cost.
    """

    WIDTH = 4  # rounded up to
    OVERHEAD = 128  # of a clock, in tokens

    def __init__(self, limit: Limit) -> None:
        self._limit = self._fitted = limit
        self._last = Padded(1, 1, 1)

    def choose(self, seats: Sequence[Seat]) -> tuple[Padded, Counts]:
        best, score = None, 0.0
        slots = max(seat.slot for seat in seats) + 1
        for rows in ROWS:
            widths = [seat.widths(rows) for seat in seats]
            width = _up(max(longest for longest, _, _ in widths), self.WIDTH)
            targets = max(count for _, _, count in widths)
            if best and not self._limit.allows(slots * rows, width, slots * targets):
                break
            useful = float(sum(tokens for _, tokens, _ in widths))
            useful /= slots * rows * width + self.OVERHEAD
            if useful > score:
                best, score = Padded(slots, rows, width), useful
        assert best is not None
        self._last = best
        return best, {seat.slot: best.rows for seat in seats}

    def rehearsed(self, tokens: int, corpus: Corpus) -> tuple[Padded, list[Rows | None]]:
        shortest = np.array([corpus.lengths.argmin()])
        rows = Rows(shortest, np.zeros_like(shortest))
        width = max(tokens, int(corpus.lengths.min()))
        return Padded(2, 1, width), [rows, rows]

    def shrink(self) -> bool:
        self._limit = replace(self._limit, tokens=max(1, self._last.tokens // 2))
        return self._last.rows > 1

    def restore(self) -> None:
        self._limit = self._fitted


class RaggedShapes:
    """Rows end to end: all slots' whole batches where they fit, else the same share of each.

    What the shares leave, being whole rows, is filled with more of them; slots take turns at that,
    and where not even one row of each fits.
    """

    def __init__(self, slots: int, tokens: int, longest: int) -> None:
        self.tokens = self._fitted = clock_tokens(tokens, longest)
        self._slots, self._longest = slots, longest
        self._turn = 0

    def choose(self, seats: Sequence[Seat]) -> tuple[Ragged, Counts]:
        turn = self._turn % len(seats)
        self._turn += 1
        seats = [*seats[turn:], *seats[:turn]]
        share = _level([seat.left for seat in seats], self.tokens)
        rows, free = {seat.slot: 0 for seat in seats}, self.tokens
        for seat in seats:
            parts = math.ceil(seat.left / share)
            given = seat.rows_within(min(share, seat.left / parts + self._longest / 2, free))
            _, tokens, _ = seat.widths(given)
            if tokens <= free:
                rows[seat.slot], free = given, free - tokens
        targets = 0
        for seat in seats:
            if rows[seat.slot]:
                _, tokens, _ = seat.widths(rows[seat.slot])
                rows[seat.slot] = seat.rows_within(tokens + free)
                _, more, marked = seat.widths(rows[seat.slot])
                free, targets = free - (more - tokens), targets + marked
        return self._shape(self.tokens - free, sum(rows.values()), targets), rows

    def rehearsed(self, tokens: int, corpus: Corpus) -> tuple[Ragged, list[Rows | None]]:
        shortest = np.array([corpus.lengths.argmin()])
        count = max(1, tokens // int(corpus.lengths.min()))
        examples = np.repeat(shortest, count)
        shape = self._shape(count * int(corpus.lengths.min()), count,
                            count * int(corpus.targets[shortest[0]]))
        return shape, [Rows(examples, np.arange(count)), *[None] * (self._slots - 1)]

    def shrink(self) -> bool:
        before, self.tokens = self.tokens, clock_tokens(self.tokens // 2, self._longest)
        return self.tokens < before

    def restore(self) -> None:
        self.tokens = self._fitted

    def _shape(self, tokens: int, rows: int, targets: int) -> Ragged:
        size = rounded(tokens)
        # Rows are told to attention alone, which passes over those without tokens.
        spare = Ragged.rest(size - tokens, self._longest)
        return Ragged(
            slots=self._slots, tokens=size, rows=_up(rows + spare, max(16, size // 128)),
            targets=min(size, _up(targets, max(64, size // 16))), longest=self._longest,
        )


def _level(wanted: Sequence[int], most: int) -> float:
    """The largest share such that all together, nobody more than wanted, stay within `most`."""
    left, share = float(most), math.inf
    for place, want in enumerate(sorted(wanted)):
        share = left / (len(wanted) - place)
        if want > share:
            return max(share, 1.0)
        left -= want
    return float(max(wanted))


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


assert COARSE // 2 % TILE == 0
