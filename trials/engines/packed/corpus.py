"""Examples as flat arrays, and a clock's samples laid out for the device without a loop.

`Padded` gives every slot as many rows of one width, which plain batched products and attention
need; `Ragged` lays the rows end to end, which the kernels of `cuda/` need, and pads the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trials.data.examples import Examples

Ints = NDArray[np.int64]
TILE = 64  # tokens of one slot that a program of `cuda/kernels.py` is given, at most


@dataclass(frozen=True)
class Rows:
    """Examples that one slot gives to a clock, each with its position in the trial's order."""

    examples: Ints
    positions: Ints


@dataclass(frozen=True)
class Padded:
    """n slots of `rows` rows of `width` tokens."""

    slots: int
    rows: int
    width: int

    @property
    def tokens(self) -> int:
        """All that is computed."""
        return self.slots * self.rows * self.width


@dataclass(frozen=True)
class Ragged:
    """`tokens` tokens in at most `rows` rows, `targets` of them targets, of any of `slots` slots.

    The numbers are rounded up, so that few different ones occur.
    """

    slots: int
    tokens: int
    rows: int
    targets: int
    longest: int  # tokens of a row, at most

    @staticmethod
    def rest(tokens: int, longest: int) -> int:
        """The rows that hold so many tokens of no slot."""
        return -(-tokens // longest)


@dataclass(frozen=True)
class Samples:
    """A clock's samples: T tokens, N targets. What stands where there is none belongs to no slot.

    `starts`, `tiles` and `ends` say where the slots' tokens are, and lie on the device too.
    """

    input_ids: Tensor  # [rows, width]; ragged: [1, T]
    order: Tensor  # [T]: the position in the trial's order of each token's example
    tokens: Tensor  # [T]: the token's place in its example
    owner: Tensor  # [T]: its slot
    index: Tensor  # [N]: where the next token is a target, rows laid end to end, slot by slot
    targets: Tensor  # [N]: those next tokens
    slot: Tensor  # [N]: whose they are
    counts: Tensor  # [slots + 1]: how many targets each slot has, and how many belong to none
    starts: Tensor | None = None  # ragged: int32 [slots + 1]: where each slot's tokens begin
    tiles: Tensor | None = None  # ragged: int32 [tiles, 3]: see `cuda/kernels.py`
    ends: Tensor | None = None  # ragged: int32 [rows + 1]: where each row begins

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that goes to the device, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Corpus:
    """Examples in arrays. An example's last token predicts nothing and is not an input."""

    def __init__(self, examples: Examples, pad: int) -> None:
        ends = examples.arrays["input_ids_ends"]
        self._ids = examples.arrays["input_ids"].astype(np.int64)
        self._starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        mask = examples.arrays["loss_mask"].copy()
        mask[self._starts] = False  # nothing before it could predict it
        self._marked = np.flatnonzero(mask)  # the targets' places in `_ids`
        self._first = np.searchsorted(self._marked, self._starts)
        self._pad = pad
        self.lengths: Ints = examples.lengths - 1  # inputs of each example
        self.targets: Ints = np.searchsorted(self._marked, ends) - self._first
        self.longest = int(self.lengths.max())

    def samples(self, given: Sequence[Rows | None], shape: Padded | Ragged) -> Samples:
        """The rows of each slot, in slot order, laid out as `shape` says."""
        owner, place, rows = _end_to_end(given)
        lengths = self.lengths[rows.examples]
        if isinstance(shape, Padded):
            starts, width, more = (owner * shape.rows + place) * shape.width, shape.width, {}
        else:
            starts, width = np.cumsum(lengths) - lengths, shape.tokens
            more = _ends(owner, lengths, shape)
        total = shape.tokens
        at = _ranges(starts, lengths)
        ids, order, tokens, owners = (np.full(total, value) for value in (self._pad, 0, 0, 0))
        ids[at] = self._ids[_ranges(self._starts[rows.examples], lengths)]
        order[at] = np.repeat(rows.positions, lengths)
        tokens[at] = _ranges(np.zeros_like(lengths), lengths)
        owners[at] = np.repeat(owner, lengths)
        if isinstance(shape, Ragged):
            rest = int(lengths.sum())
            tokens[rest:] = np.arange(total - rest) % shape.longest
        arrays = {"input_ids": ids.reshape(-1, width), "order": order, "tokens": tokens,
                  "owner": owners, **self._targets(owner, starts, rows.examples, shape), **more}
        return Samples(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def _targets(
        self, owner: Ints, starts: Ints, examples: Ints, shape: Padded | Ragged
    ) -> dict[str, Ints]:
        counts = self.targets[examples]
        found = int(counts.sum())
        size = shape.targets if isinstance(shape, Ragged) else found
        marked = self._marked[_ranges(self._first[examples], counts)]
        index, targets, slot = (np.zeros(size, np.int64) for _ in range(3))
        index[:found] = np.repeat(starts - self._starts[examples], counts) + marked - 1
        targets[:found] = self._ids[marked]
        slot[:found] = np.repeat(owner, counts)
        slot[found:] = shape.slots
        each = np.bincount(slot, minlength=shape.slots + 1)
        return {"index": index, "targets": targets, "slot": slot, "counts": each}


def _ends(owner: Ints, lengths: Ints, shape: Ragged) -> dict[str, NDArray[Any]]:
    """Where slots, tiles and rows are; the rest at the end is rows that belong to no slot."""
    each = np.bincount(owner, weights=lengths, minlength=shape.slots).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(each)])
    parts = -(-each // TILE)
    slot = np.repeat(np.arange(shape.slots), parts)
    part = _ranges(np.zeros_like(parts), parts)
    tiles = np.zeros((shape.tokens // TILE + shape.slots + 1, 3), np.int32)
    first = part * TILE
    tiles[: len(slot)] = np.stack(
        [slot, starts[slot] + first, np.minimum(TILE, each[slot] - first)], axis=1
    )
    # Of no slot, counted negative: what is made for these tokens must be written all the same.
    free = np.arange(starts[-1], shape.tokens, TILE)
    of_none = np.stack([0 * free, free, np.maximum(-TILE, free - shape.tokens)], axis=1)
    tiles[len(slot) : len(slot) + len(free)] = of_none
    total = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.full(shape.rows + 1, shape.tokens, np.int32)
    ends[: len(total)] = total
    rest = np.arange(total[-1], shape.tokens, shape.longest)[1:]
    ends[len(total) : len(total) + len(rest)] = rest
    return {"starts": starts.astype(np.int32), "tiles": tiles, "ends": ends}


def _end_to_end(given: Sequence[Rows | None]) -> tuple[Ints, Ints, Rows]:
    """All rows, with the slot of each and its place there."""
    sizes = np.array([0 if rows is None else len(rows.examples) for rows in given])
    there = [rows for rows in given if rows is not None]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    examples = np.concatenate([rows.examples for rows in there])
    return owner, place, Rows(examples, np.concatenate([rows.positions for rows in there]))


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """start, start + 1, ... of each, end to end."""
    ends = np.cumsum(lengths)
    offsets: Ints = np.repeat(starts - (ends - lengths), lengths)
    return offsets + np.arange(ends[-1] if len(ends) else 0)
