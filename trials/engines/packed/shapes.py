"""How many rows each slot gives to a clock, and to what shape they are padded.

Few rows waste less where batch sizes differ, many rows use the device better: the number that
trains most tokens per token computed is taken, each clock charged with a fixed cost. A trial's
`micro_batch_size` is an upper bound, and its `packing` changes nothing: neither changes a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trials.engines.packed.corpus import Shape
from trials.engines.packed.seat import Seat
from trials.training.batches import Limit

ROWS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Grid:
    """What shapes are rounded up to, and what a clock costs beside its tokens."""

    slots: int
    tokens: int
    targets: int
    overhead: int  # of a clock, in tokens

    @classmethod
    def of(cls, device: torch.device) -> Grid:
        """Fine where padding costs time (CPU), coarse where new shapes do (compiled CUDA)."""
        if device.type == "cpu":
            return cls(slots=1, tokens=4, targets=4, overhead=128)
        return cls(slots=4, tokens=32, targets=16, overhead=1024)


def choose(seats: Sequence[Seat], limit: Limit, grid: Grid, most: int) -> Shape:
    """The shape of the next clock of at most `most` slots: within `limit` if single rows are."""
    best, score = None, 0.0
    slots = min(most, _up(max(seat.slot for seat in seats) + 1, grid.slots))
    for rows in ROWS:
        widths = [seat.widths(rows) for seat in seats]
        width, targets = (_up(max(w[k] for w in widths), size)
                          for k, size in ((0, grid.tokens), (2, grid.targets)))
        if best and not limit.allows(slots * rows, width, slots * targets):
            break
        useful = sum(tokens for _, tokens, _ in widths) / (slots * rows * width + grid.overhead)
        if useful > score:
            best, score = Shape(slots, rows, width, targets), useful
    assert best is not None
    return best


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
